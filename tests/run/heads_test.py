"""Heads of objectives from the labels of a manifest to the measured result."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import mico_jax
from mico_jax.config import (
  ConfigError,
  EvaluationConfig,
  ObjectivesConfig,
  OptimizerConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.data.records import Record
from mico_jax.data.sources import open_sources
from mico_jax.data.targets import pin_targets
from mico_jax.data.usable import tell_groups
from mico_jax.evaluation.evaluators.classifier import second_class_f1
from mico_jax.evaluation.evaluators.reidentification import (
  Reidentification,
  identity_ranks,
)
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.results import Protocol
from mico_jax.models import build
from mico_jax.run.commands.evaluate import evaluate_model
from mico_jax.run.monitor import metric_log
from mico_jax.run.pretrain import pretrain
from mico_jax.run.warm_start import warm_start
from mico_jax.testing.tiny_checkpoint import tiny_config
from mico_jax.testing.tiny_data import manifest_source, write_manifest
from mico_jax.testing.tiny_model import tiny_model
from mico_jax.train.state import init_params

KINDS = ("dark", "light", "dark", "light", "grey", "grey", "dark", "light")
NUMBER = {"fields": ("size",), "kind": "number"}
HEADS = {
  "classification": {"targets": {"i": {"fields": ("kind",)}}},
  "regression": {"targets": {"i": NUMBER}},
  "reidentification": {"targets": {"i": {"fields": ("kind",)}}},
}


def config_of(path, *, options=HEADS, **changes):
  base = tiny_config()
  data = dataclasses.replace(
    base.data, sources={"train": manifest_source(path)}, inputs={}
  )
  return dataclasses.replace(
    base,
    data=data,
    model=tiny_model(
      vision={"image_size": 16, "patch_size": 8, "depth": 1},
      text={"vocab_size": 512, "max_positions": 48, "depth": 1},
      heads=("t", "v"),
      frame_table={"video": 1},
    ),
    tasks={
      "one": TaskConfig(
        sources={"train": 1},
        batch_size=8,
        objectives={name: ("i",) for name in options}
        | {"contrastive": ("ti",)},
      )
    },
    objectives=ObjectivesConfig(options=options),
    evaluation=EvaluationConfig(
      source="train", suite="heads", size=0, batch_size=8, bootstrap=10
    ),
    **changes,
  )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
  sizes = [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 9.5]
  folder = tmp_path_factory.mktemp("set")
  return write_manifest(folder, kind=KINDS, size=sizes)


@pytest.fixture(scope="module")
def run(manifest, tmp_path_factory):
  """(workdir, results): a run of deltas and heads beside a contrast."""
  config = config_of(
    manifest,
    optimizer=OptimizerConfig(learning_rate=0.02, lora_rank=2, warmup=0.0),
    train=TrainConfig(steps=6, log_every=1, tensorboard=False),
  )
  workdir = tmp_path_factory.mktemp("run")
  return workdir, pretrain(config, workdir).results


def test_heads_are_trained_stored_and_measured(run):
  workdir, results = run
  stored = json.loads((workdir / "config.json").read_text())
  options = stored["objectives"]["options"]
  classes = options["classification"]["targets"]["i"]["classes"]
  assert classes == ["dark", "grey", "light"]
  known = [1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 9.5]
  target = options["regression"]["targets"]["i"]
  np.testing.assert_allclose(target["mean"], [np.mean(known)])
  np.testing.assert_allclose(target["scale"], [np.std(known)])
  lines = metric_log.read_metrics(workdir)
  lines = [x for x in lines if "loss/classification/i" in x]
  assert lines[-1]["loss/classification/i"] < lines[0]["loss/classification/i"]
  assert lines[0]["rows/regression/i"] == pytest.approx(7 / 8)
  assert lines[0]["rows/classification/i"] == 1
  found = {result.name: result for result in results}
  assert set(found) == {
    "classifier/i/accuracy",
    "classifier/i/mean per class",  # the classes differ in size
    *(f"regressor/i/size/{x}" for x in ("MAE", "RMSE", "R2")),
    *(f"re-id/i->i/{x}" for x in ("R@1", "R@5", "R@10", "mAP")),
  }
  mae = found["regressor/i/size/MAE"]
  assert (mae.n, mae.total) == (7, 8)
  spread = np.abs(np.asarray(known) - np.mean(known)).mean()
  assert mae.baseline == pytest.approx(spread)
  assert found["classifier/i/accuracy"].gallery == 3


def test_a_checkpoint_gives_the_same_results(run, manifest):
  workdir, results = run
  model = mico_jax.load(str(workdir), check="off")
  again = {result.name: result.value for result in evaluate_model(model)}
  assert again == pytest.approx({r.name: r.value for r in results}, abs=1e-4)
  # And the head is what its parameters say, on the features of the model.
  head = jax.device_get(model.objective_params["classification"]["i"])
  assert head["kernel"].shape == (16, 3)


def test_init_takes_heads_of_the_same_classes_alone(run, manifest):
  workdir, _ = run
  model = mico_jax.load(str(workdir), check="off")
  former = jax.device_get(model.objective_params)
  other = {"fields": ("kind",), "classes": ("dark", "light", "grey")}
  options = HEADS | {"classification": {"targets": {"i": other}}}
  config = config_of(manifest, options=options)
  config = pin_targets(config, open_sources(config))
  params = init_params(build(model.config.model), config, jax.random.key(5))
  loaded, _, notes = warm_start(params, workdir, objectives=config.objectives)
  same = jax.tree.map(
    lambda a, b: bool(np.array_equal(a, b)),
    {k: v for k, v in loaded["objective"].items() if k in former},
    former,
  )
  assert all(jax.tree.leaves(same["regression"]))
  assert all(jax.tree.leaves(same["reidentification"]))
  assert not same["classification"]["i"]["kernel"]
  assert any("classification/i learned something else" in n for n in notes)


@pytest.mark.parametrize(
  ("target", "message"),
  [
    ({"fields": ("sort",)}, "0 classes in field 'sort'"),
    ({**NUMBER, "fields": ("sort",)}, "has no number in any training sample"),
    ({**NUMBER, "fields": ("kind",)}, "'kind' is 'dark'; expected a number"),
  ],
)
def test_labels_that_the_training_samples_lack(manifest, target, message):
  name = "regression" if "kind" in target else "classification"
  config = config_of(manifest, options={name: {"targets": {"i": target}}})
  with pytest.raises(ConfigError, match=message):
    pin_targets(config, open_sources(config))


@pytest.mark.parametrize(
  ("target", "message"),
  [
    (
      {"fields": ("sort",), "classes": ("a", "b")},
      "no field 'sort'; there are",
    ),
    ({"fields": ("kind",), "classes": ("a", "b")}, "'dark', none of the 2"),
  ],
)
def test_a_run_without_a_label_does_not_start(manifest, target, message):
  options = {"classification": {"targets": {"i": target}}}
  config = config_of(manifest, options=options)
  with pytest.raises(ConfigError, match=f"none of 8 samples .*{message}"):
    tell_groups(config, open_sources(config))


def test_some_lack_a_label(manifest, capsys):
  target = {"fields": ("kind",), "classes": ("dark", "light")}
  options = {"classification": {"targets": {"i": target}}}
  config = config_of(manifest, options=options)
  tell_groups(config, open_sources(config))
  told = capsys.readouterr().err
  assert "2 of 8 samples looked at count as broken" in told
  assert "'grey', none of the 2 known classes" in told


@pytest.mark.parametrize("cameras", [False, True])
def test_ranks_of_identities(cameras):
  """Against a loop over queries that sorts what may be found."""
  rng = np.random.default_rng(4)
  rows = rng.standard_normal((12, 4))
  identity = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, -1, -1])
  camera = np.array([0, 1, 1, 2, 0, 0, 1, 0, 0, 0, 1, 1])
  items = np.arange(10)  # the last two have no identity
  _, ranks, precision = identity_ranks(
    rows[items],
    rows[items],
    items,
    items,
    identity,
    camera if cameras else None,
  )
  wanted = []
  for q in items:
    same = lambda g, q=q: identity[g] == identity[q]
    kept = [
      g
      for g in items
      if g != q and not (cameras and same(g) and camera[g] == camera[q])
    ]
    kept.sort(key=lambda g, q=q: -(rows[q] @ rows[g]))
    hits = [i + 1 for i, g in enumerate(kept) if same(g)]
    if hits:
      part = np.mean([(n + 1) / place for n, place in enumerate(hits)])
      wanted.append((hits[0], part))
  assert len(wanted) == (7 if cameras else 9)
  np.testing.assert_array_equal(ranks, [rank for rank, _ in wanted])
  np.testing.assert_allclose(precision, [part for _, part in wanted])


def test_places_and_galleries_that_are_drawn():
  """Against a loop that draws and sorts; camera 0 and 1 hang in one place."""
  rng = np.random.default_rng(1)
  rows = rng.standard_normal((40, 4)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  person, camera = np.arange(40) % 5, np.arange(40) // 5 % 4
  place = np.array([0, 0, 1, 2])[camera]
  records = [
    Record(str(i), fields={"who": int(p), "cam": int(c), "place": int(o)},
           media={"image" if c else "thermal": dict})
    for i, (p, c, o) in enumerate(zip(person, camera, place, strict=True))
  ]  # fmt: skip
  usable = {"i": np.flatnonzero(camera > 0), "h": np.flatnonzero(camera == 0)}
  present = {"image": camera > 0, "thermal": camera == 0}
  gallery = Gallery(records, present, {"i": rows, "h": rows}, {}, [])
  measure = Reidentification(
    camera="cam", place="place", shots=1, trials=4, seed=7
  )
  found = {
    result.name: result
    for sides in (("h", "i"), ("i", "h"))
    for result in measure.direction(gallery, Protocol(), *sides, "who")
  }
  with pytest.raises(ConfigError, match="no sample has a field 'spot'"):
    Reidentification(place="spot").direction(
      gallery, Protocol(), "h", "i", "who"
    )
  firsts = []
  for trial in range(4):
    draw = np.random.default_rng([7, trial])
    kinds = {}
    for i in usable["i"]:
      kinds.setdefault((person[i], camera[i]), []).append(i)
    shown = [draw.permutation(v)[0] for v in kinds.values()]
    assert len(shown) == 15
    for q in usable["h"]:
      kept = [g for g in shown if place[g] != place[q]]
      best = max(kept, key=lambda g, q=q: rows[q] @ rows[g])
      firsts.append(person[best] == person[q])
  result = found["re-id/h->i/R@1"]
  assert result.value == pytest.approx(np.mean(firsts))
  assert (result.n, result.total, result.gallery) == (10, 10, 15)
  # Back, pictures of camera 1 find nobody who is elsewhere.
  assert (found["re-id/i->h/R@1"].n, found["re-id/i->h/R@1"].total) == (20, 30)


def test_f1_of_the_second_class():
  logits = np.array([[0, 1], [0, 1], [1, 0], [0, 1], [1, 0], [1, 1.0]])
  labels = np.array([1, 0, 1, 1, 0, 1])
  make = lambda true, taken: second_class_f1(
    "f1", true, taken, protocol=Protocol(bootstrap=10), total=7
  )
  (result,) = make(labels == 1, logits[:, 1] > logits[:, 0])
  precision, recall = 2 / 3, 2 / 4  # a tie is not taken for the class
  want = 2 * precision * recall / (precision + recall)
  assert result.value == pytest.approx(want)
  assert (result.n, result.total) == (6, 7)
  assert result.interval[0] < want < result.interval[1]
  assert not make(labels == 3, labels == 4)
