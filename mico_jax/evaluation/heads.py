"""What the heads of objectives predict of a gallery, and its labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.config import Config, ConfigError
from mico_jax.data.identity import tell
from mico_jax.data.records import Record
from mico_jax.data.targets import read_target
from mico_jax.evaluation.evaluator import Job, Needs
from mico_jax.modalities import DecodeError, letters
from mico_jax.objectives import make_objective
from mico_jax.objectives.heads import Head

_ROWS = 4096  # at once


def trained_groups(config: Config, objective: str) -> tuple[str, ...]:
  """The groups that tasks train an objective on, each once."""
  found: dict[str, None] = {}
  for task in config.tasks.values():
    found.update(dict.fromkeys(task.objectives.get(objective, ())))
  return tuple(found)


def head_needs(config: Config, objective: str) -> Needs | None:
  """Pooled features of the groups of an objective; None: nothing trains it."""
  groups = trained_groups(config, objective)
  if not groups:
    return None
  return Needs(read=tuple(dict.fromkeys(map(letters, groups))), pooled=True)


def head_of(job: Job, objective: str) -> Any:
  """An objective of the run, whose parameters the job has.

  Raises:
    ConfigError: if the parameters are not there.
  """
  head = make_objective(job.config.objectives, objective)
  there = job.embedder.params.get("objective", {}).get(objective, {})
  if lost := [
    g for g in trained_groups(job.config, objective) if g not in there
  ]:
    raise ConfigError(
      f"the checkpoint has no {objective} head of {', '.join(lost)}; evaluate "
      "the checkpoint of the run that trained it."
    )
  return head


class Predicted(NamedTuple):
  """What a head says of the items that have a label.

  Attributes:
    outputs: of the head.
    labels: as a batch holds them.
    weights: 1 where a label is there, else 0.
  """

  outputs: Float[np.ndarray, "N _"]
  labels: Shaped[np.ndarray, "N K"]
  weights: Float[np.ndarray, "N K"]


def predicted(job: Job, head: Head, group: str) -> Predicted:
  """What a head says of the items of a group that have a label.

  Items of a class that the head does not know are told and left out.

  Args:
    job: of which the gallery kept its pooled features.
    head: from `head_of`.
    group: that tasks train.

  Raises:
    ConfigError: if no item has a label.
  """
  target, gallery = head.target(group), job.gallery
  items, labels, weights, unknown = [], [], [], []
  for i in gallery.usable(letters(group)):
    record: Record | None = gallery.records[i]
    assert record is not None  # it is usable
    try:
      value, weight = read_target(record.fields, target)
    except DecodeError as error:
      unknown.append(str(error))
      continue
    if weight.any():
      items.append(int(i))
      labels.append(value)
      weights.append(weight)
  where = f"{head.name} of {group!r}"
  if unknown:
    tell(
      f"{where}: {len(unknown)} samples are left out; the first: {unknown[0]}"
    )
  if not items:
    raise ConfigError(
      f"{where}: none of {len(gallery.records)} samples of "
      f"{job.protocol.source!r} has a label in {', '.join(target.fields)}"
      f"{f': {unknown[0]}' if unknown else '.'}"
    )
  features = np.concatenate([gallery.pooled[x] for x in letters(group)], -1)
  run = job.embedder.compiled(
    f"{head.name}/{group}",
    lambda: jax.jit(lambda params, rows: head.outputs(params, group, rows)),
  )
  params = {"objective": job.embedder.params["objective"]}
  outputs = [
    np.asarray(run(params, rows))
    for rows in np.split(features[items], range(_ROWS, len(items), _ROWS))
  ]
  return Predicted(np.concatenate(outputs), np.stack(labels), np.stack(weights))
