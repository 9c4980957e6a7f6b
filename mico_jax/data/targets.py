"""Labels of samples as arrays of a batch, for objectives with a head.

An objective says in its option `targets` which fields of a record it learns:
group -> `TargetConfig`. A batch then holds, under the name "objective/group",
`target` and `target_weight` of the same shape: 1 where the label is there, 0
where the record has none, so that such a row has no part in the loss. What is
there and is no label, such as a class that the config does not list, makes the
sample a broken one, which is replaced, named and counted.

  kind      target                        of a record
  class     int32 [1]                     the number of its class
  classes   float32 [classes]             1 for each class that it has, else 0
  number    float32 [fields]              (number - mean) / scale

Classes and scales that a config leaves open are those of the training samples.
They are written into the config of the run, so a checkpoint knows them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.config import (
  Config,
  ConfigError,
  TargetConfig,
  TaskConfig,
  from_dict,
)
from mico_jax.data.identity import tell
from mico_jax.data.records import Record
from mico_jax.data.sources import Source
from mico_jax.modalities import DecodeError

OPTION = "targets"  # of an objective: group -> `TargetConfig`
READ = 200_000  # samples, at most, whose labels make up a list of classes
_NAMED = 5
T = TypeVar("T")


def targets_of(config: Config, task: TaskConfig) -> dict[str, TargetConfig]:
  """The targets of a task's batches by name, "objective/group"."""
  found = {}
  for name, groups in task.objectives.items():
    stated: Any = config.objectives.options.get(name, {}).get(OPTION)
    for group in groups if isinstance(stated, Mapping) else ():
      if group in stated:
        where = f"objectives.options.{name}.{OPTION}.{group}"
        found[f"{name}/{group}"] = from_dict(
          stated[group], TargetConfig, where=where
        )
  return found


def shape_of(target: TargetConfig) -> tuple[tuple[int, ...], str]:
  """Shape and dtype of the target of a row."""
  if target.kind == "class":
    return (1,), "int32"
  many = target.classes if target.kind == "classes" else target.fields
  return (len(many),), "float32"


@functools.lru_cache(64)
def _numbers(target: TargetConfig) -> Mapping[str, int]:
  """What the field holds -> number of the class."""
  return {x: i for i, x in enumerate(target.labels or target.classes)}


def read_target(
  fields: Mapping[str, Any], target: TargetConfig
) -> tuple[Shaped[np.ndarray, " K"], Float[np.ndarray, " K"]]:
  """The target of a record, and the weight of each of its parts, 1 or 0.

  Args:
    fields: of the record.
    target: which of them, and what they may hold.

  Raises:
    DecodeError: for a class that is not listed, several where one is expected,
      and what is no finite number.
  """
  shape, dtype = shape_of(target)
  value, weight = np.zeros(shape, dtype), np.zeros(shape, np.float32)
  if target.kind == "number":
    for i, name in enumerate(target.fields):
      number = _number(fields.get(name), name)
      if number is not None:
        value[i] = (number - target.mean[i]) / target.scale[i]
        weight[i] = 1.0
    return value, weight
  (name,) = target.fields
  labels = _labels(fields.get(name), name)
  if labels is None:
    return value, weight
  numbers = [_class_number(label, name, target) for label in labels]
  if target.kind == "classes":
    value[numbers] = 1.0
  elif len(numbers) == 1:
    value[0] = numbers[0]
  else:
    raise DecodeError(
      f"field {name!r} holds {len(numbers)} classes, {labels!r:.80}; expected "
      f"one, or state kind='classes'."
    )
  weight[:] = 1.0
  return value, weight


def _labels(value: Any, name: str) -> list[str] | None:
  """The classes that a field names; None: it is missing."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  items = value if isinstance(value, (list, tuple)) else [value]
  for item in items:
    if not isinstance(item, (str, int, float)):
      raise DecodeError(
        f"field {name!r} is {value!r:.80}; expected a class: a text or number."
      )
  return [str(item) for item in items]


def _class_number(label: str, name: str, target: TargetConfig) -> int:
  number = _numbers(target).get(label)
  if number is None:
    known = target.labels or target.classes
    shown = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
    raise DecodeError(
      f"field {name!r} is {label!r:.80}, none of the {len(known)} known "
      f"classes: {shown}."
    )
  return number


def _number(value: Any, name: str) -> float | None:
  """A number of a field; None: it is missing."""
  if isinstance(value, str):  # a cell of a table
    try:
      value = float(value) if value.strip() else None
    except ValueError:
      raise DecodeError(
        f"field {name!r} is {value!r:.80}; expected a number."
      ) from None
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise DecodeError(f"field {name!r} is {value!r:.80}; expected a number.")
  if not math.isfinite(value):
    raise DecodeError(f"field {name!r} is {value}; expected a finite number.")
  return float(value)


def load_targets(
  record: Record, targets: Mapping[str, TargetConfig]
) -> dict[str, dict[str, np.ndarray]]:
  """Targets of a sample as a batch holds them; {} without any.

  Raises:
    DecodeError: as `read_target`.
  """
  if not targets:
    return {}
  read = {n: read_target(record.fields, t) for n, t in targets.items()}
  return {
    "target": {name: value for name, (value, _) in read.items()},
    "target_weight": {name: weight for name, (_, weight) in read.items()},
  }


def tell_targets(
  config: Config, source: str, records: Sequence[Record]
) -> None:
  """Says how many samples of a source lack a label, or have an unknown one.

  Args:
    config: of the run.
    source: name of the source.
    records: of it, that were looked at.

  Raises:
    ConfigError: if none of them has a label.
  """
  for task, spec in config.tasks.items():
    if not spec.sources.get(source) or not spec.steps or not records:
      continue
    for name, target in targets_of(config, spec).items():
      good, missing, first = 0, 0, ""
      for record in records:
        try:
          there = read_target(record.fields, target)[1].any()
        except DecodeError as error:
          first = first or str(error)
          continue
        good, missing = good + bool(there), missing + (not there)
      where = f"source {source!r}, task {task}, {name}"
      if not good:
        why = first or (
          f"no field {' or '.join(map(repr, target.fields))}; there are "
          f"{', '.join(sorted(records[0].fields)[:12])}."
        )
        raise ConfigError(
          f"{where}: none of {len(records)} samples looked at has a label: "
          f"{why}"
        )
      if missing:
        tell(
          f"{where}: {missing} of {len(records)} samples looked at have no "
          "label and take no part in it."
        )
      if first:
        tell(
          f"{where}: {len(records) - good - missing} of {len(records)} samples "
          f"looked at count as broken; the first: {first}"
        )


# ------------------------------------------------- what the training data say
def pin_targets(config: Config, sources: Mapping[str, Source]) -> Config:
  """The config with classes and scales of targets that it leaves open.

  Args:
    config: of the run.
    sources: its open sources.

  Raises:
    ConfigError: if the training samples do not give them.
  """
  options = {k: dict(v) for k, v in config.objectives.options.items()}
  for name, given in options.items():
    if not isinstance(given.get(OPTION), Mapping):
      continue
    given[OPTION] = dict(given[OPTION])
    for group, stated in given[OPTION].items():
      where = f"objectives.options.{name}.{OPTION}.{group}"
      target = from_dict(stated, TargetConfig, where=where)
      of = {
        source: None
        for task in config.tasks.values()
        if group in task.objectives.get(name, ())
        for source in task.sources
      }
      read = _Training(where, [(s, sources[s]) for s in of])
      given[OPTION][group] = dataclasses.asdict(_filled(target, read))
  objectives = dataclasses.replace(config.objectives, options=options)
  return dataclasses.replace(config, objectives=objectives)


@dataclasses.dataclass(frozen=True)
class _Training:
  """The fields of the training samples of a target.

  Attributes:
    where: the target in the config, for messages.
    sources: that are read, by name.
  """

  where: str
  sources: Sequence[tuple[str, Source]]

  def fields(self) -> Iterator[Mapping[str, Any]]:
    """Of every sample that can be read."""
    if not self.sources:
      raise ConfigError(
        f"{self.where}: no task trains this group; remove it, or name it in "
        "tasks.*.objectives."
      )
    count = sum(len(source) for _, source in self.sources)
    if count > READ:
      raise ConfigError(
        f"{self.where}: {count} training samples are too many to take classes "
        f"or scales from (at most {READ}); state `classes`, or `mean` and "
        "`scale`."
      )
    for _, source in self.sources:
      for index in range(len(source)):
        try:
          yield source.record(index).fields
        except DecodeError:
          continue  # counted when a batch asks for it

  def each(self, call: Callable[[Mapping[str, Any]], T]) -> tuple[list[T], str]:
    """What a call makes of every sample, and why it failed first; "": never."""
    found, first = [], ""
    for fields in self.fields():
      try:
        found.append(call(fields))
      except DecodeError as error:  # counted when a batch asks for it
        first = first or str(error)
    return found, first


def _filled(target: TargetConfig, read: _Training) -> TargetConfig:
  """A target with its open parts as the training samples have them."""
  change = dataclasses.replace
  if target.kind != "number":
    if target.classes:
      return target
    (name,) = target.fields
    labels, first = read.each(lambda fields: _labels(fields.get(name), name))
    found = {label for of in labels for label in of or ()}
    if len(found) < 2:
      raise ConfigError(
        f"{read.where}: the training samples have {len(found)} classes in "
        f"field {name!r}; expected two or more. {first}".rstrip()
      )
    return change(target, classes=tuple(sorted(found, key=_natural)))
  if target.mean or target.scale:
    return target
  rows, first = read.each(
    lambda fields: [_number(fields.get(name), name) for name in target.fields]
  )
  table = np.asarray(rows, np.float64).reshape(-1, len(target.fields))
  if not np.isfinite(table).any(axis=0).all():
    raise ConfigError(
      f"{read.where}: a field of {', '.join(target.fields)} has no number in "
      f"any training sample. {first}".rstrip()
    )
  mean, scale = np.nanmean(table, axis=0), np.nanstd(table, axis=0)
  if not (scale > 0).all():
    raise ConfigError(
      f"{read.where}: {target.fields[int(np.argmin(scale))]!r} is the same in "
      "all training samples; there is nothing to learn."
    )
  return change(target, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()))


def _natural(label: str) -> tuple[bool, int, str]:
  """Sorts whole numbers by value, before texts."""
  whole = label.isascii() and label.isdigit()
  return not whole, int(label) if whole else 0, label
