"""Stages of a run: fields that change at certain steps.

    stages={"short": StageConfig(start=0, set=("tasks.films.steps=0",
                                               "train.patch_dropout=0.5"))}

The config without its stages is what is evaluated and served, and what trains
until the first stage starts. A stage is that config with some fields set, from
its first step until the next stage; a last one that changes nothing comes back
to it. Steps are numbered through: a step of a stage reads, draws and learns
what it would in a run that had been of that stage's config all along. So a
stage that leaves the mixture as it is goes on in the order of the samples, and
nothing about stages needs to be stored to resume.

Fields of `FIELDS` may change. Others would change the parameters, the sources
or the schedule: train those in a run of their own that starts from this one
(`--init`), as with another `model.vision.image_size`, whose position table is
resized then. To train other objectives in a stage, make them a task whose
`steps` are 0 elsewhere.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from mico_jax.config.fields import ConfigError
from mico_jax.config.loading import override
from mico_jax.config.training import Config

FIELDS = (
  r"tasks\.[^.]+\.(steps|temperature|sources(\..+)?|texts(\..+)?)",
  r"data\.inputs\.[^.]+\.(frames|mode|dropout)",
  r"data\.(text_buckets|num_negatives|tokenizer\.max_length\.[^.]+)",
  r"objectives\.[^.]+\.(weight|label_smoothing|mask_prob)",
  r"optimizer\.learning_rate",
  r"train\.(patch_dropout|micro_batches)",
)


class Stage(NamedTuple):
  """A stage of a run.

  Attributes:
    name: in the config; "": what comes before the first one.
    start: first step.
    end: one past the last step.
    config: that holds for these steps, without stages.
  """

  name: str
  start: int
  end: int
  config: Config


def stages_of(config: Config) -> tuple[Stage, ...]:
  """The stages of a run, in order; the whole run if it has none.

  Raises:
    ConfigError: for stages that start together or too late, and for fields that
      a stage may not set.
  """
  if not config.stages:
    return (Stage("", 0, config.train.steps, config),)
  base = dataclasses.replace(config, stages={})
  named = sorted(config.stages.items(), key=lambda item: item[1].start)
  parts = [(name, spec.start, spec.set) for name, spec in named]
  if parts[0][1] > 0:
    parts.insert(0, ("", 0, ()))
  ends = [start for _, start, _ in parts[1:]] + [config.train.steps]
  stages = []
  for (name, start, values), end in zip(parts, ends, strict=True):
    if start >= end:
      other = "train.steps" if end == config.train.steps else "the next stage"
      raise ConfigError(
        f"stages.{name}.start={start}: must be before {other} ({end})."
      )
    stages.append(Stage(name, start, end, _with(base, name, values)))
  return tuple(stages)


def stage_at(config: Config, step: int) -> Stage:
  """The stage of a step; the last one beyond the run."""
  stages = stages_of(config)
  return next((s for s in stages if step < s.end), stages[-1])


def _with(base: Config, name: str, values: tuple[str, ...]) -> Config:
  """The config of a stage; what its mixture comes to is not pinned."""
  if not values:
    return base
  where = f"stages.{name}.set"
  for text in values:
    path, sep, _ = text.partition("=")
    if not sep:
      raise ConfigError(f"{where}: {text!r:.200}: write FIELD=VALUE.")
    if not any(re.fullmatch(field, path) for field in FIELDS):
      raise ConfigError(
        f"{where}: {text!r:.200}: a stage cannot change {path!r:.100}; it may "
        f"set {', '.join(map(_shown, FIELDS))}. For anything else start a run "
        "of its own from this one (--init)."
      )
  try:
    config = override(base, values)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from None
  tasks = {
    name: dataclasses.replace(task, mixture={})
    for name, task in config.tasks.items()
  }
  return dataclasses.replace(config, tasks=tasks)


def _shown(field: str) -> str:
  """A pattern of `FIELDS` as a user reads it."""
  text = field.replace(r"(\..+)?", "").replace("[^.]+", "*")
  return text.replace("\\.", ".")
