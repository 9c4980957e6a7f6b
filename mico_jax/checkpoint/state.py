"""Conversion between a train state and the arrays of a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import storage
from mico_jax.checkpoint.manifest import CheckpointError


def counters(state: Any) -> dict[str, int]:
  """The scalar fields of a train state: steps done, steps skipped."""
  return {
    field.name: int(np.asarray(getattr(state, field.name)))
    for field in dataclasses.fields(state)
    if field.name not in manifest_lib.ARRAY_ITEMS
  }


def likes(
  target: Any, step: int, items: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """Item -> path -> array or ShapeDtypeStruct of the state to restore.

  Raises:
    CheckpointError: if the checkpoint does not fit `target`.
  """
  likes: dict[str, dict[str, Any]] = {}
  for name in manifest_lib.ARRAY_ITEMS:
    wanted = getattr(target, name, None)
    if wanted is None:
      continue
    if name not in items:
      raise CheckpointError(
        f"the checkpoint of step {step} has no {name}, but this run needs it; "
        "start a new workdir with --init."
      )
    storage.from_path_dict(wanted, items[name])
    likes[name] = storage.path_dict(wanted)
    for path, like in likes[name].items():
      entry = items[name][path]
      storage.check_fits(entry["shape"], entry["dtype"], like)
  return likes


def fill(
  target: Any,
  step: int,
  arrays: Mapping[str, Mapping[str, Any]],
  data: Mapping[str, Any],
) -> Any:
  """The target train state with the checkpoint's values."""
  values = {
    name: storage.from_path_dict(getattr(target, name), placed)
    for name, placed in arrays.items()
  }
  for name, number in {**data["counters"], "step": step}.items():
    like = getattr(target, name, None)
    if hasattr(like, "dtype"):
      values[name] = storage.place(np.asarray(number, like.dtype), like)
    elif like is not None:
      values[name] = number
  return target.replace(**values)
