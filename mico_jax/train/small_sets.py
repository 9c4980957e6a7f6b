"""Configs that train from scratch on a small set whose classes are captions.

`configs/perception/*.py` hold what differs from set to set. A class is a fixed
caption and the contrast with it is the one objective, so a run gives all three
measures: the nearest caption, which, trained on the labels of the set, is its
fine-tuned classifier; a linear probe on the frozen features; and the vote of
the nearest training samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mico_jax import config as c
from mico_jax.modalities import sides
from mico_jax.models.staged import staged_config

VALIDATION = "validation"
# Other voices and rooms, out of few.
SOUNDS: Mapping[str, Mapping[str, Any]] = {
  "speed": {"change": 0.2},
  "shift": {},
  "equalize": {"decibels": 9.0},
  "gain": {},
  "spec_augment": {"time_width": 16, "frequency_width": 12},
}


def parse(argument: str) -> tuple[str, bool]:
  """Manifest and whether settings are chosen, of a config's argument.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".

  Raises:
    ConfigError: for anything else behind the comma.
  """
  manifest, comma, part = argument.partition(",")
  if comma and part.strip() != VALIDATION:
    raise c.ConfigError(
      f"{part!r} behind the comma of {argument!r}; expected "
      f'"MANIFEST" or "MANIFEST,{VALIDATION}".'
    )
  return manifest, bool(comma)


def sources(
  argument: str,
  *,
  captions: Mapping[str, str],
  held: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
  by: str = "label",
  root: str = "",
  test: Mapping[str, Any] | None = None,
  files: Mapping[str, str] | None = None,
  stated: Mapping[str, Any] | None = None,
) -> dict[str, c.SourceConfig]:
  """Sources "train" and "test" of a manifest.

  With "validation" in the argument both are parts of the training split: the
  set's own test samples are never opened.

  Args:
    argument: see `parse`.
    captions: kind of caption -> record field.
    held: what `where` keeps for training and for measuring in a validation run;
      None: four and one fifth of the samples.
    by: record field whose values both of these fifths show alike; "": none.
    root: of the manifest's files, see `SourceConfig`.
    test: what `where` keeps of the test split.
    files: modality -> name of its file, made of record fields.
    stated: further fields of the sources, such as units and rates.

  Raises:
    ConfigError: see `parse`.
  """
  manifest, validation = parse(argument)
  source = c.SourceConfig(
    kind="manifest",
    path=manifest,
    root=root,
    split="train",
    captions=captions,
    options={"files": files} if files else {},
    **(stated or {}),
  )
  change = dataclasses.replace
  if not validation:
    return {
      "train": source,
      "test": change(source, split="test", where=test or {}),
    }
  if held is not None:
    learn, measure = held
    return {
      "train": change(source, where=learn),
      "test": change(source, where=measure),
    }
  return {
    "train": change(source, take=0.8, take_by=by),
    "test": change(source, skip=0.8, take_by=by),
  }


def convnet(
  image_size: int, width: int, depths: tuple[int, ...], patch_size: int = 4
) -> c.VisionConfig:
  """A ConvNeXt V2 whose stages double in width, from `width` channels on.

  It learns from thousands of samples what a vision transformer needs many more
  for: which places are near each other.
  """
  size = staged_config("convnext", depths, width)
  return dataclasses.replace(size, image_size=image_size, patch_size=patch_size)


def make(
  name: str,
  data: Mapping[str, c.SourceConfig],
  *,
  vision: c.VisionConfig,
  groups: Mapping[str, Mapping[str, float]],
  inputs: Mapping[str, c.InputConfig],
  steps: int,
  batch_size: int = 64,
  learning_rate: float = 2e-3,
  augment: Mapping[str, Mapping[str, Any]] | None = None,
  audio: c.AudioConfig | None = None,
  label_smoothing: float = 0.1,
  frame_table: Mapping[str, int] | None = None,
  heads: tuple[str, ...] = (),
  evaluation: Mapping[str, Any] | None = None,
  learned: Mapping[str, Mapping[str, Any]] | None = None,
) -> c.Config:
  """The config of a set.

  Args:
    name: of the set.
    data: see `sources`.
    vision: the encoder.
    groups: contrastive group -> kinds of captions it reads, with weights.
    inputs: how each modality reaches the encoder.
    steps: of training.
    batch_size: samples of a step.
    learning_rate: at the top of the schedule.
    augment: transforms of the training samples.
    audio: filterbank.
    label_smoothing: of the contrast.
    frame_table: frames of each context; of those that differ from one.
    heads: of the text and of each context.
    evaluation: fields that differ from all measures of each group.
    learned: objectives with a head beside the contrast, and their options, of
      which `targets` or `windows` name the groups.
  """
  contexts = tuple(sides(group)[1] for group in groups)
  measured: dict[str, Any] = {
    "source": "test",
    "size": 0,
    "suite": "classification,nearest" + (",heads" if learned else ""),
    "groups": contexts,
    "label": "label",
    "probe_source": "train",
    **(evaluation or {}),
  }
  width = 64
  text = c.TextConfig(
    vocab_size=0,
    width=width,
    depth=1,
    num_heads=2,
    mlp_dim=2 * width,
    max_positions=32,
    dropout=0.0,
  )
  return c.Config(
    name=name,
    model=c.ModelConfig(
      vision=vision,
      text=text,
      embed_dim=96,
      scan=False,
      heads=heads,
      frame_table=frame_table or {},
    ),
    data=c.DataConfig(
      sources=data,
      inputs=inputs,
      audio=audio or c.AudioConfig(),
      cache_mib=512,
      tokenizer=c.TokenizerConfig(
        # Without captions there is nothing to train a vocabulary on.
        kind="sentencepiece" if groups else "omniworld",
        max_length={"default": 24},
      ),
    ),
    tasks={
      name: c.TaskConfig(
        sources={"train": 1},
        batch_size=batch_size,
        objectives={
          "contrastive": tuple(groups),
          **{
            name: tuple(options.get("targets", options.get("windows", ())))
            for name, options in (learned or {}).items()
          },
        },
        texts=groups,
        augment=augment or {},
      )
    },
    objectives=c.ObjectivesConfig(
      contrastive=c.ContrastiveConfig(label_smoothing=label_smoothing),
      options=learned or {},
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=learning_rate,
      schedule="cosine",
      warmup=0.1,
      weight_decay=0.05,
      clip_norm=1.0,
    ),
    train=c.TrainConfig(steps=steps, log_every=20, checkpoint_every=10_000),
    evaluation=c.EvaluationConfig(**measured),
  )
