"""Probes and the health of embeddings against references in float64."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mico_jax import config as c
from mico_jax.cli.main import main
from mico_jax.data.records import Record
from mico_jax.evaluation import labelled, metrics
from mico_jax.evaluation.evaluator import Job
from mico_jax.evaluation.evaluators import (
  few_shot,
  health,
  linear_probe,
  nearest,
  regression,
)
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.results import Protocol
from mico_jax.testing import tiny_checkpoint


def _unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_votes_of_the_nearest():
  rng = np.random.default_rng(0)
  known, asked = rng.standard_normal((30, 5)), rng.standard_normal((9, 5))
  labels = rng.integers(0, 4, 30).tolist()
  got = nearest.class_votes(
    asked, known, labels, k=7, temperature=0.1, excluded={2: [0, 1, 2, 3]}
  )
  for row in range(9):
    cosine = _unit(asked)[row] @ _unit(known).T
    order = [j for j in np.argsort(-cosine) if row != 2 or j > 3][:7]
    want = np.zeros(max(labels) + 1)
    for j in order:
      want[labels[j]] += np.exp((cosine[j] - 1) / 0.1)
    np.testing.assert_allclose(got[row], want, rtol=1e-12)


def test_ridge_is_the_solution_of_its_equations():
  rng = np.random.default_rng(1)
  x = rng.standard_normal((40, 6)) * [1, 2, 3, 4, 5, 6] + 3
  y = x @ rng.standard_normal(6) + rng.standard_normal(40)
  fit = regression.fit_ridge(x, y, 0.1)
  # As least squares with a row of its own for each penalised weight.
  z = (x - x.mean(0)) / x.std(0)
  stacked = np.concatenate([z, np.sqrt(0.1 * 40) * np.eye(6)])
  weights, *_ = np.linalg.lstsq(
    stacked, np.concatenate([y - y.mean(), np.zeros(6)]), rcond=None
  )
  new = rng.standard_normal((5, 6))
  want = (new - x.mean(0)) / x.std(0) @ weights + y.mean()
  np.testing.assert_allclose(fit(new), want, rtol=1e-9)


def test_health_of_known_sets():
  eye = np.eye(6)
  same = np.repeat(eye[:1], 9, axis=0)
  assert health.effective_rank(eye) == pytest.approx(6.0)
  assert health.effective_rank(np.repeat(eye[:1], 9, axis=0)) == pytest.approx(
    1
  )
  # Orthogonal rows are all at distance sqrt(2).
  assert health.uniformity(eye) == pytest.approx(-4.0)
  assert health.uniformity(same) == pytest.approx(0)
  rows = _unit(np.random.default_rng(2).standard_normal((1500, 8)))
  squared = ((rows[:, None, :4] - rows[None, :, :4]) ** 2).sum(-1)
  squared += ((rows[:, None, 4:] - rows[None, :, 4:]) ** 2).sum(-1)
  pairs = np.exp(-2 * squared[np.triu_indices(1500, 1)])
  assert health.uniformity(rows) == pytest.approx(np.log(pairs.mean()))


def test_validation_parts_hold_some_of_every_class():
  labels = ["a"] * 10 + ["b"] * 4 + ["c"] * 2
  held = labelled.validation_part(labels, 0.25, seed=3)
  assert held is not None
  count = {
    x: sum(h for h, y in zip(held, labels, strict=True) if y == x)
    for x in "abc"
  }
  assert count == {"a": 2, "b": 1, "c": 1}
  again = labelled.validation_part(labels, 0.25, seed=3)
  np.testing.assert_array_equal(held, again)
  assert labelled.validation_part(["a", "b", "b"], 0.5, seed=0) is None


class _Embedder:
  """What probes ask an embedder for."""

  def __init__(self, config):
    self.config = config


def _job(train: Gallery, test: Gallery, field: str) -> Job:
  """A job whose training gallery was read already."""
  sources = {
    name: c.SourceConfig(kind="manifest", path=name) for name in ("x", "y")
  }
  settings = c.EvaluationConfig(
    source="x", probe_source="y", groups=("i",), label=field
  )
  config = c.Config(data=c.DataConfig(sources=sources), evaluation=settings)
  job = object.__new__(Job)
  parts = {
    "embedder": _Embedder(config),
    "source": None,
    "gallery": test,
    "protocol": Protocol(source="x", bootstrap=20),
    "cheap": False,
    "shared": {"training gallery y": train},
  }
  for name, value in parts.items():
    object.__setattr__(job, name, value)
  return job


def _gallery(features, **fields) -> Gallery:
  n = len(features)
  records = [
    Record(f"r{i}", fields={k: v[i] for k, v in fields.items()})
    for i in range(n)
  ]
  rows = features.astype(np.float32)
  return Gallery(
    records=[*records],
    present={"image": np.ones(n, bool)},
    embeddings={"i": rows},
    pooled={"i": rows},
    batches=[],
  )


def _classes(rng, n):
  labels = rng.integers(0, 3, n)
  centres = np.eye(3, 40) * 2.0
  return centres[labels] + rng.standard_normal((n, 40)), labels.tolist()


def test_the_penalty_is_chosen_on_training_samples():
  """Few noisy samples of many numbers: the weak penalties fit the noise."""
  rng = np.random.default_rng(4)
  x, labels = _classes(rng, 90)
  y, targets = _classes(rng, 400)
  job = _job(_gallery(x, label=labels), _gallery(y, label=targets), "label")
  accuracy = lambda *penalties: (
    linear_probe.LinearProbe(penalties=penalties).measure(job)[0].value
  )
  each = {p: accuracy(p) for p in (1e-6, 0.5)}
  assert each[0.5] > each[1e-6] + 0.03
  assert accuracy(1e-6, 0.5) == each[0.5]
  # What is measured on has no say in the choice.
  wrong = [(t + 1) % 3 for t in targets]
  lies = _job(_gallery(x, label=labels), _gallery(y, label=wrong), "label")
  chosen = linear_probe.LinearProbe(penalties=(1e-6, 0.5)).measure(lies)[0]
  fixed = linear_probe.LinearProbe(penalties=(0.5,)).measure(lies)[0]
  assert chosen.value == fixed.value


def test_few_shot_and_nearest_classes(capsys):
  rng = np.random.default_rng(5)
  x, labels = _classes(rng, 60)
  y, targets = _classes(rng, 200)
  job = _job(_gallery(x, label=labels), _gallery(y, label=targets), "label")
  some = few_shot.FewShot(shots=(1, 10, 50), draws=5).measure(job)
  assert [r.name for r in some] == [
    "few-shot/i/1 of each/accuracy",
    "few-shot/i/10 of each/accuracy",
  ]
  assert "50 of each cannot be drawn" in capsys.readouterr().err
  assert 0.4 < some[0].value < some[1].value
  vote = nearest.Nearest(k=15).measure(job)[0]
  assert vote.value > 0.6
  # All features alike: no class wins by its place.
  flat = _job(
    _gallery(np.ones((60, 4)), label=labels),
    _gallery(np.ones((200, 4)), label=targets),
    "label",
  )
  assert few_shot.FewShot(shots=(2,)).measure(flat)[0].value == 0.0


def test_classes_of_unequal_size_also_count_alike():
  """Always saying the large class is half right in the mean over two."""
  rng = np.random.default_rng(3)
  train = rng.standard_normal((40, 4))
  labels = ["large"] * 30 + ["small"] * 10
  train[:30, 0] += 20
  train[30:, 0] -= 20
  asked = rng.standard_normal((20, 4))
  asked[:, 0] += 20  # all of them look like the large class
  targets = ["large"] * 15 + ["small"] * 5
  job = _job(
    _gallery(train, label=labels), _gallery(asked, label=targets), "label"
  )
  for kind in (linear_probe.LinearProbe(), nearest.Nearest()):
    accuracy, mean = kind.measure(job)
    assert (accuracy.name.split("/")[-1], accuracy.value) == ("accuracy", 0.75)
    assert (mean.name.split("/")[-1], mean.value) == ("mean per class", 0.5)
    assert (mean.n, mean.total, mean.baseline) == (2, 2, 0.5)
  with pytest.raises(ValueError, match="2 values for 1 classes"):
    metrics.class_means(np.ones(2), ["a"])


def test_numbers_are_predicted():
  rng = np.random.default_rng(6)
  x, y = rng.standard_normal((80, 5)), rng.standard_normal((50, 5))
  weights = rng.standard_normal(5)
  far = lambda rows: (rows.astype(np.float32) @ weights).tolist()
  job = _job(_gallery(x, far=far(x)), _gallery(y, far=far(y)), "far")
  mae, r2 = regression.Regression(field="far").measure(job)
  assert mae.value < 0.01 * (mae.baseline or 0.0)
  assert r2.value > 0.999
  assert abs(r2.baseline or 0.0) < 0.2
  broken = _job(_gallery(x, far=far(x)), _gallery(y, far=["?"] * 50), "far")
  with pytest.raises(c.ConfigError, match="'far' of a sample of 'x' is '\\?'"):
    regression.Regression(field="far").measure(broken)


def test_by_the_command_line(tmp_path, capsys):
  """Probes of a checkpoint whose training source holds the test samples."""
  rows = []
  for i in range(8):
    image = np.full((32, 32, 3), 30 * i, np.uint8)
    Image.fromarray(image).save(tmp_path / f"{i}.png")
    rows.append(
      {
        "id": str(i),
        "image": f"{i}.png",
        "caption": "a",
        "label": i % 2,
        "far": i,
      }
    )
  (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
  run = tiny_checkpoint.save_tiny(tmp_path / "run")
  source = {"kind": "manifest", "path": str(tmp_path / "m.jsonl"), "split": ""}
  settings = {
    "source": "m",
    "probe_source": "m",
    "suite": "probing,embeddings",
    "groups": ("i",),
    "label": "label",
    "size": 0,
    "options": {"regression": {"field": "far"}, "few_shot": {"shots": (1,)}},
  }
  words = ["evaluate", "--checkpoint", str(run), "--check", "off", "--json"]
  words += [f"--config.data.sources.m={source!r}"]
  words += [f"--config.evaluation.{k}={v!r}" for k, v in settings.items()]
  assert main(words) == 0
  captured = capsys.readouterr()
  names = [r["name"] for r in json.loads(captured.out)["results"]]
  assert names == [
    "linear probe/i/accuracy",
    "nearest/i/accuracy",
    "few-shot/i/1 of each/accuracy",
    "regression/i/MAE",
    "regression/i/R2",
    "health/i/alignment",
    "health/i/modality gap",
    "health/i/uniformity",
    "health/i/effective rank",
    "health/t of i/effective rank",
  ]
  assert "holds 8 of the 8 samples that are measured on" in captured.err
