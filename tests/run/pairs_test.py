"""A run whose samples have no caption: contrast and retrieval of contexts."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mico_jax.config import (
  ConfigError,
  EvaluationConfig,
  InputConfig,
  ObjectivesConfig,
  OptimizerConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.evaluation.evaluators.instance_pairs import (
  InstancePairs,
  partner_ranks,
)
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.run.pretrain import pretrain
from mico_jax.testing.tiny_checkpoint import tiny_config
from mico_jax.testing.tiny_data import manifest_source, png

COUNT = 8


@pytest.fixture
def config(tmp_path):
  """Pictures and depth maps of a manifest that has nothing else."""
  lines = []
  for i in range(COUNT):
    (tmp_path / f"{i}.png").write_bytes(png(25 * i))
    depth = np.full((16, 16), 500 + 200 * i, np.uint16)
    depth[:4, : i + 1] = 0
    Image.fromarray(depth).save(tmp_path / f"{i}.depth.png")
    files = {"image": f"{i}.png", "depth": f"{i}.depth.png"}
    lines.append(json.dumps({"id": f"s{i}", **files, "split": "train"}))
  (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
  base = tiny_config()
  shrink = lambda part: dataclasses.replace(part, depth=1, width=16, mlp_dim=16)
  source = manifest_source(tmp_path / "m.jsonl", depth_unit="millimetre")
  return dataclasses.replace(
    base,
    model=dataclasses.replace(
      base.model,
      vision=shrink(base.model.vision),
      text=shrink(base.model.text),
      heads=("t", "v", "d"),
      frame_table={"video": 1, "depth": 1},
    ),
    data=dataclasses.replace(
      base.data, sources={"all": source}, inputs={"image": InputConfig()}
    ),
    tasks={
      "pairs": TaskConfig(
        sources={"all": 1},
        batch_size=8,
        objectives={"contrastive": ("i:d",)},
      )
    },
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup=0.0),
    train=TrainConfig(steps=16, log_every=1, tensorboard=False),
    evaluation=EvaluationConfig(
      source="all", size=0, batch_size=8, bootstrap=10
    ),
  )


def test_samples_without_captions_train(config, tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(
    setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])
  )
  summary = pretrain(config, tmp_path / "w")
  assert summary.step == 16
  assert not (tmp_path / "w" / "bad_samples.jsonl").exists()
  lines = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line).get("loss/contrastive/i:d") for line in lines]
  losses = [x for x in losses if x is not None]
  assert sum(losses[-4:]) / 4 < losses[0] - 0.05
  results = {result.name: result for result in summary.results}
  assert set(results) == {
    f"instance/{way}/R@{k}" for way in ("i->d", "d->i") for k in (1, 5)
  }
  assert results["instance/i->d/R@1"].n == COUNT
  assert results["instance/i->d/R@5"].baseline == 5 / COUNT
  assert "these groups can use" not in capfd.readouterr().err
  stored = json.loads((tmp_path / "w" / "config.json").read_text())
  assert stored["data"]["inputs"]["depth"]["mode"] == "metric_standardised"


def test_a_text_objective_refuses_them(config, tmp_path):
  task = dataclasses.replace(
    config.tasks["pairs"],
    objectives={"contrastive": ("i:d",), "matching": ("i:d",)},
  )
  config = dataclasses.replace(
    config, tasks={"pairs": task}, objectives=ObjectivesConfig()
  )
  with pytest.raises(ConfigError, match="matching needs a text"):
    setup.resolve(config)


def test_heads_of_both_contexts_must_exist(config):
  model = dataclasses.replace(config.model, heads=("t", "v"))
  with pytest.raises(ConfigError, match="'i:d': no contrastive head for 'd'"):
    setup.resolve(dataclasses.replace(config, model=model))


def test_ranks_of_partners():
  rng = np.random.default_rng(0)
  query, key = rng.standard_normal((2, 10, 4)).astype(np.float32)
  key[4] = key[7]  # a twin counts as ranked before
  score = query @ key.T
  want = [
    1 + sum(score[i, j] >= score[i, i] for j in range(10) if j != i)
    for i in range(10)
  ]
  assert partner_ranks(query, key).tolist() == want


@pytest.mark.parametrize(
  ("pair", "match"),
  [("tv", "evaluation.groups"), ("v", "'v' has no text")],
)
def test_pairs_of_the_option(config, pair, match):
  with pytest.raises(ConfigError, match=match):
    InstancePairs(pairs=(pair,)).check(config)
  needs = InstancePairs(pairs=("v:d", "d:n")).needs(config)
  assert needs is not None
  assert needs.embed == ("v", "d", "n")
