"""What a batch of a task holds, and filling it row by row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax.config import Config
from mico_jax.data.samples import (
  ArrayShape,
  TextSlots,
  groups_of,
  input_shape,
  keys_of,
)
from mico_jax.modalities import MODALITIES


def batch_spec(
  config: Config, task: str, *, batch_size: int = 0
) -> dict[str, Any]:
  """What a batch of a task holds: nested as the batch, leaves `ArrayShape`.

  Args:
    config: of the run.
    task: its name.
    batch_size: rows; 0: the task's global batch.
  """
  spec = config.tasks[task]
  size = batch_size or spec.batch_size
  slots = TextSlots.of(config, spec)
  keys = keys_of(groups_of(spec))

  def rows(shape: tuple[int, ...], dtype: str) -> ArrayShape:
    return ArrayShape((size, *shape), dtype)

  inputs = {key: input_shape(config, key) for key in keys}
  out: dict[str, Any] = {
    "row": rows((), "int32"),
    "weight": rows((), "float32"),
    "inputs": {k: rows(s.shape, s.dtype) for k, s in inputs.items()},
    "present": {k: rows((), "bool") for k in keys},
    "text": {g: rows((n,), "int32") for g, n in slots.groups.items()},
  }
  if slots.negatives:
    out["negative_text"] = {
      g: rows((slots.negatives, n), "int32") for g, n in slots.groups.items()
    }
  if slots.asking:
    out["question"] = rows((slots.question,), "int32")
    out["answer"] = rows((slots.answer,), "int32")
  return out


def empty_batch(spec: Mapping[str, Any], pad: int = 0) -> dict[str, Any]:
  """Zero arrays (token ids: `pad`) of the shapes of `batch_spec`."""
  words = {k for k, m in MODALITIES.items() if m.kind == "interface"}
  words.update(_TEXTS)

  def make(node: Any, name: str) -> Any:
    if isinstance(node, ArrayShape):
      fill = pad if name in words else 0
      return np.full(node.shape, fill, np.dtype(node.dtype))
    return {k: make(v, name if name in _TEXTS else k) for k, v in node.items()}

  return {k: make(v, k) for k, v in spec.items()}


_TEXTS = ("text", "negative_text", "question", "answer")


def fill_row(batch: dict[str, Any], i: int, sample: Mapping[str, Any]) -> None:
  """Writes a sample into row `i`."""
  for name, value in sample.items():
    if isinstance(value, Mapping):
      for key, array in value.items():
        batch[name][key][i] = array
        if name == "inputs":
          batch["present"][key][i] = True
    else:
      batch[name][i] = value
