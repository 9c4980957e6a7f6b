"""A tower trained here, exported, imported back: a better start than none."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from mico_jax import config as c
from mico_jax.checkpoint import restore
from mico_jax.interop import exporter
from mico_jax.interop.exporting import export
from mico_jax.interop.importer import import_checkpoint
from mico_jax.run.pretrain import pretrain
from mico_jax.testing.tiny_checkpoint import tiny_config

FORMER, LATER = 200, 60  # steps


def config_of(steps: int, seed: int) -> c.Config:
  """Images of OmniWorld against their captions."""
  config = tiny_config(
    seed=seed,
    tasks={
      "image": c.TaskConfig(
        sources={"train": 1},
        batch_size=32,
        objectives={"contrastive": ("ti",)},
      )
    },
    optimizer=c.OptimizerConfig(learning_rate=2e-3, warmup=0.1),
    train=c.TrainConfig(
      steps=steps, checkpoint_every=0, log_every=10, tensorboard=False
    ),
    evaluation=c.EvaluationConfig(),
  )
  world = c.SourceConfig(kind="omniworld", split="train", size=100_000)
  model = config.model
  return dataclasses.replace(
    config,
    model=dataclasses.replace(
      model,
      vision=dataclasses.replace(model.vision, image_size=32, num_heads=2),
      heads=("t", "v"),
      frame_table={"video": 1},
    ),
    data=dataclasses.replace(
      config.data, sources={"train": world}, inputs={"image": c.InputConfig(1)}
    ),
  )


def losses(workdir: pathlib.Path) -> list[float]:
  """Losses that a run logged."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [row["loss"] for row in rows if "loss" in row]


def exchanged(source: export.OpenedCheckpoint, form: str, folder: pathlib.Path):
  """The tower alone, written in a form and imported: its new checkpoint."""
  exporter.run(source, form, folder / form)
  small = ["width=32", "depth=1", "num_heads=1", "mlp_dim=32", "vocab_size=512"]
  out = folder / f"from_{form}"
  report = import_checkpoint(
    "timm",
    folder / form,
    out,
    overrides=[
      "data.tokenizer.kind=omniworld",
      *(f"model.text.{text}" for text in small),
    ],
    self_check=False,
  )
  assert not any(path.startswith("vision/") for path in report.new)
  return out


@pytest.mark.slow
def test_an_imported_tower_beats_scratch(tmp_path):
  pretrain(config_of(FORMER, seed=0), tmp_path / "former")
  source = export.open_source(tmp_path / "former")
  for form in ("timm", "openclip-vision"):
    imported = exchanged(source, form, tmp_path)
    found = restore.open_checkpoint(imported).params["vision"]
    jax.tree.map(np.testing.assert_array_equal, found, source.params["vision"])
  # New images, captions in new order, a fresh text tower: only the tower helps.
  later = config_of(LATER, seed=1)
  pretrain(later, tmp_path / "scratch")
  pretrain(later, tmp_path / "tuned", init=str(imported))
  scratch, tuned = losses(tmp_path / "scratch"), losses(tmp_path / "tuned")
  assert len(scratch) == len(tuned) == LATER // 10
  assert np.mean(tuned[-3:]) < np.mean(scratch[-3:]) - 0.05, (scratch, tuned)
