"""Configs that fine-tune a pretrained model, from the published settings.

`configs/finetune/*.py` hold the tables (arXiv:2406.09412, appendix B.2; the
groups of each set: arXiv:2305.18500); here a row becomes a config. The model
comes from `--init`; sizes are a preset's. Steps follow from epochs and the
number of training samples of the published splits. Frames of the test differ
for some sets: evaluate with `--config.data.inputs.video.frames=N`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mico_jax import config as c
from mico_jax.models.presets import PRESETS
from mico_jax.printing import known_names


@dataclasses.dataclass(frozen=True)
class Setting:
  """One row of the table.

  Attributes:
    group: text against these letters.
    learning_rate: of all parameters.
    batch_size: global.
    epochs: over `samples`.
    samples: of the training split.
    size: of images and frames, in pixels.
    frames: per video in training.
    test_frames: per video in the test.
    slices: of sound.
  """

  group: str
  learning_rate: float
  batch_size: int
  epochs: float
  samples: int
  size: int = 224
  frames: int = 1
  test_frames: int = 1
  slices: int = 1

  @property
  def steps(self) -> int:
    """Optimizer steps."""
    return max(1, round(self.epochs * self.samples / self.batch_size))


def parse(
  arg: str, table: Mapping[str, Setting]
) -> tuple[str, Setting, str, str, c.ModelConfig]:
  """Name, row, manifest, vocabulary and model of a config's argument.

  Args:
    arg: "SET,MANIFEST,VOCABULARY,PRESET"; parts left out take their defaults:
      the first set, SET/manifest.jsonl, vocab.txt, mico_g14.
    table: rows by name.

  Raises:
    ConfigError: for an unknown set or preset.
  """
  parts = [part.strip() for part in arg.split(",")] + [""] * 4
  name = parts[0] or next(iter(table))
  preset = parts[3] or "mico_g14"
  for what, value, known in (("set", name, table), ("preset", preset, PRESETS)):
    if value not in known:
      raise c.ConfigError(
        f"no {what} {value!r} to fine-tune; {known_names(value, known)}"
      )
  manifest = parts[1] or f"{name}/manifest.jsonl"
  return name, table[name], manifest, parts[2] or "vocab.txt", PRESETS[preset]


def make(
  name: str,
  setting: Setting,
  manifest: str,
  vocabulary: str,
  model: c.ModelConfig,
  *,
  objectives: Mapping[str, tuple[str, ...]],
  max_length: Mapping[str, int],
  evaluation: Mapping[str, Any],
  optimizer: Mapping[str, Any] | None = None,
  augment: Mapping[str, Mapping[str, Any]] | None = None,
) -> c.Config:
  """The config of a row.

  Args:
    name: of the set.
    setting: its row.
    manifest: with splits "train" and "test".
    vocabulary: WordPiece file, or "omniworld" for the shipped tokenizer.
    model: whose sizes `--init` gives.
    objectives: of the one task.
    max_length: tokens by kind of text.
    evaluation: fields that differ from a retrieval of the task's group.
    optimizer: fields that differ from the table's.
    augment: transforms of the training samples; None: crops and flips of
      pictures as VAST has them (mode "crop_flip").
  """
  size = setting.size
  if size % model.vision.patch_size:  # the nearest that patches fill
    size = round(size / model.vision.patch_size) * model.vision.patch_size
  vision = dataclasses.replace(model.vision, image_size=size)
  task = c.TaskConfig(
    sources={"train": 1},
    batch_size=setting.batch_size,
    objectives=dict(objectives),
    augment=augment or {},
  )
  tuning: dict[str, Any] = {
    "name": "adamw_mico",
    "learning_rate": setting.learning_rate,
    "weight_decay": 0.01,
    "warmup": 0.1,
    **(optimizer or {}),
  }
  measured: dict[str, Any] = {
    "source": "test",
    "size": 0,
    "groups": (setting.group.removeprefix("t"),),
    **evaluation,
  }
  return c.Config(
    name=name,
    model=dataclasses.replace(model, vision=vision),
    data=_data(
      setting,
      manifest,
      vocabulary,
      max_length,
      # The same pixels in training, without draws of its own.
      mode="crop_flip" if augment is None else "mico_train",
    ),
    tasks={name: task},
    optimizer=c.OptimizerConfig(**tuning),
    train=c.TrainConfig(
      steps=setting.steps,
      checkpoint_every=max(1, setting.steps // 5),
    ),
    evaluation=c.EvaluationConfig(**measured),
    generation=c.GenerationConfig(3, length_penalty=0.6, max_new_tokens=40),
  )


def _data(
  setting: Setting,
  manifest: str,
  vocabulary: str,
  max_length: Mapping[str, int],
  mode: str,
) -> c.DataConfig:
  """Sources, inputs and tokenizer of a row; see `make`."""
  pictures = c.InputConfig(1, mode, eval_mode="crop_flip")
  tokenizer = c.TokenizerConfig(
    kind="wordpiece", path=vocabulary, max_length={**max_length}
  )
  if vocabulary == "omniworld":
    tokenizer = dataclasses.replace(tokenizer, kind="omniworld", path="")
  return c.DataConfig(
    sources={
      split: c.SourceConfig(kind="manifest", path=manifest, split=split)
      for split in ("train", "test")
    },
    inputs={
      "image": pictures,
      "video": dataclasses.replace(pictures, frames=setting.frames),
      "audio": c.InputConfig(frames=setting.slices),
    },
    tokenizer=tokenizer,
  )
