"""Shapes of the arrays of a batch, and filling them row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def input_spec(
  config: Config, keys: Sequence[str], size: int, *, train: bool = True
) -> dict[str, Any]:
  """Shapes of rows, weights and inputs, nested as a batch without texts.

  Args:
    config: of the run.
    keys: modalities of the inputs.
    size: rows of the batch.
    train: whether the modes are those of training.
  """
  inputs = {key: input_shape(config, key, train=train) for key in keys}
  return {
    "row": ArrayShape((size,), "int32"),
    "weight": ArrayShape((size,), "float32"),
    "inputs": {
      k: ArrayShape((size, *s.shape), s.dtype) for k, s in inputs.items()
    },
    "present": {k: ArrayShape((size,), "bool") for k in keys},
  }


def batch_spec(
  config: Config, task: str, *, batch_size: int = 0
) -> dict[str, Any]:
  """Shapes of the arrays of a task's batch, nested as the batch.

  Args:
    config: of the run.
    task: name of the task.
    batch_size: rows; 0: the task's global batch.

  Returns:
    A mapping like the batch (`mico_jax.aliases`) whose leaves are `ArrayShape`.
  """
  spec = config.tasks[task]
  size = batch_size or spec.batch_size
  slots = TextSlots.of(config, spec)

  def tokens(*shape: int) -> ArrayShape:
    return ArrayShape((size, *shape), "int32")

  out = input_spec(config, keys_of(groups_of(spec)), size)
  out["text"] = {g: tokens(n) for g, n in slots.groups.items()}
  if slots.negatives:
    out["negative_text"] = {
      g: tokens(slots.negatives, n) for g, n in slots.groups.items()
    }
  if slots.asking:
    out["question"] = tokens(slots.question)
    out["answer"] = tokens(slots.answer)
  return out


def empty_batch(spec: Mapping[str, Any], pad: int = 0) -> dict[str, Any]:
  """Zero arrays (token ids: `pad`) of the shapes of `batch_spec`."""
  texts = {k for k, m in MODALITIES.items() if m.kind == "interface"}
  texts.update(_TEXTS)

  def make(node: Any, name: str) -> Any:
    if isinstance(node, ArrayShape):
      fill = pad if name in texts else 0
      return np.full(node.shape, fill, np.dtype(node.dtype))
    return {k: make(v, name if name in _TEXTS else k) for k, v in node.items()}

  return {k: make(v, k) for k, v in spec.items()}


_TEXTS = ("text", "negative_text", "question", "answer")


def fill_row(batch: dict[str, Any], i: int, sample: Mapping[str, Any]) -> None:
  """Writes a sample, nested as the batch, into row `i` of its arrays."""
  for name, value in sample.items():
    if isinstance(value, Mapping):
      for key, array in value.items():
        batch[name][key][i] = array
        if name == "inputs":
          batch["present"][key][i] = True
    else:
      batch[name][i] = value
