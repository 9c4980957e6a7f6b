"""Promise: another text tower is a word in the config.

A run with the causal tower through the commands a user types: it trains, its
losses fall, its checkpoint verifies, it writes captions and can be exported.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import mico_jax
from mico_jax.cli import main as cli
from mico_jax.config import (
  EvaluationConfig,
  OptimizerConfig,
  TaskConfig,
  TrainConfig,
  to_dict,
)
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.run.monitor.metric_log import read_metrics
from mico_jax.testing.tiny_checkpoint import tiny_config

TOWER = ("--config.model.text.encoder=causal", "--config.model.text.kv_heads=1")
OBJECTIVES = ("contrastive", "matching", "captioning")


def config_file(folder):
  """A config of the first tower: one modality, all three objectives."""
  base = tiny_config()
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(base.model.vision, depth=1),
    heads=("t", "v"),
    frame_table={"video": 1},
  )
  few = dataclasses.replace(base.data.sources["train"], size=4)
  config = dataclasses.replace(
    base,
    model=model,
    data=dataclasses.replace(base.data, sources={"train": few}, inputs={}),
    tasks={
      "one": TaskConfig(
        sources={"train": 1},
        batch_size=4,
        objectives=dict.fromkeys(OBJECTIVES, ("ti",)),
      )
    },
    optimizer=OptimizerConfig(
      learning_rate=3e-3, schedule="constant", warmup=0.0
    ),
    train=TrainConfig(
      steps=80, log_every=1, checkpoint_every=0, tensorboard=False
    ),
    evaluation=EvaluationConfig(),
  )
  path = folder / "config.py"
  path.write_text(
    "from mico_jax import config as c\n\n"
    f"VALUES = {to_dict(config)!r}\n\n"
    "def get_config():\n"
    "  return c.to_config_dict(c.from_dict(VALUES))\n"
  )
  return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("causal")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])
    )
    argv = ["pretrain", "--config", str(config_file(folder)), *TOWER]
    assert cli.main([*argv, "--workdir", str(folder / "w")]) == 0
  return folder / "w"


@pytest.fixture(scope="module")
def model(workdir):
  return mico_jax.load(workdir)  # strict: its self-check agrees


def frames():
  random = np.random.default_rng(0)
  return [random.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(2)]


def test_every_loss_falls(workdir):
  found = read_metrics(workdir)
  for name in OBJECTIVES:
    losses = [x[f"loss/{name}"] for x in found if f"loss/{name}" in x]
    assert len(losses) == 80
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5]), name


def test_the_checkpoint_is_of_that_tower(model):
  assert model.config.model.text.encoder == "causal"
  assert not model.notes
  assert set(model.params["text"]) == {"blocks", "embed", "norm"}


def test_it_embeds_matches_and_writes(model):
  rows = model.embed(image=frames(), text=["a red cube", "two balls"])
  for value in rows.values():
    np.testing.assert_allclose(np.linalg.norm(value, axis=1), 1, atol=1e-5)
  scores = model.match(text=["a red cube", "two balls"], image=frames())
  assert ((scores > 0) & (scores < 1)).all()
  for beams in (1, 3):
    texts = model.caption(image=frames(), max_new_tokens=8, num_beams=beams)
    assert len(texts) == 2
    assert all(texts), beams


@pytest.mark.parametrize("form", ["torch", "safetensors", "stablehlo"])
def test_it_is_exported(workdir, tmp_path, capsys, form):
  if form == "torch":
    pytest.importorskip("torch")
  out = tmp_path / "out"
  argv = ["export", "--to", form, "--checkpoint", str(workdir), "--json"]
  assert cli.main([*argv, "--out", str(out)]) == 0
  report = json.loads(capsys.readouterr().out)
  names = {one["name"] for one in report["tensors"]}
  if form == "stablehlo":
    assert "text/blocks/attn/qkv/kernel" in names
  else:
    assert "text.blocks.1.cross_attn.kv.weight" in names
  if form != "safetensors":
    assert max(report["compared"].values()) <= 1e-5
    wanted = {"embed/text"} | ({"caption"} if form == "torch" else set())
    assert wanted <= set(report["compared"])


@pytest.mark.parametrize("form", ["mico", "transformers"])
def test_layouts_without_its_names_say_so(workdir, tmp_path, capsys, form):
  argv = ["export", "--to", form, "--checkpoint", str(workdir)]
  assert cli.main([*argv, "--out", str(tmp_path / "out")]) == 2
  assert "no names for text.encoder='causal'" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_options_of_masks_say_nothing_to_it(tmp_path, capsys):
  argv = ["pretrain", "--config", str(config_file(tmp_path)), *TOWER]
  argv += ["--config.objectives.captioning.mask_prob=0.3"]
  assert cli.main([*argv, "--workdir", str(tmp_path / "w")]) == 2
  assert "mask_prob=0.3 has no effect with" in capsys.readouterr().err
