"""What a batch of a task holds, and filling it row by row."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
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
from mico_jax.data.targets import shape_of, targets_of
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
  config: Config, task: str, *, batch_size: int = 0, text_length: int = 0
) -> dict[str, Any]:
  """Shapes of the arrays of a task's batch, nested as the batch.

  Args:
    config: of the run.
    task: name of the task.
    batch_size: rows; 0: the task's global batch.
    text_length: most tokens of the texts of groups; 0: those of the config.

  Returns:
    A mapping like the batch (`mico_jax.aliases`) whose leaves are `ArrayShape`.
  """
  spec = config.tasks[task]
  size = batch_size or spec.batch_size
  slots = TextSlots.of(config, spec, longest=text_length)

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
  for name, target in targets_of(config, spec).items():
    shape, dtype = shape_of(target)
    for part, kind in (("target", dtype), ("target_weight", "float32")):
      out.setdefault(part, {})[name] = ArrayShape((size, *shape), kind)
  return out


def empty_batch(spec: Mapping[str, Any], pad: int = 0) -> dict[str, Any]:
  """Zero arrays (token ids: `pad`) of the shapes of `batch_spec`."""

  def make(node: Any, fill: int) -> Any:
    return np.full(node.shape, fill, np.dtype(node.dtype))

  return _each(spec, pad, make)


def _each(
  spec: Mapping[str, Any], pad: int, make: Callable[[ArrayShape, int], Any]
) -> dict[str, Any]:
  """A spec with leaves as `make` gives them; it is told what fills them."""
  words = {k for k, m in MODALITIES.items() if m.kind == "interface"}
  words.update(_TEXTS)

  def each(node: Any, name: str) -> Any:
    if isinstance(node, ArrayShape):
      return make(node, pad if name in words else 0)
    return {k: each(v, name if name in _TEXTS else k) for k, v in node.items()}

  return {k: each(v, k) for k, v in spec.items()}


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


class Buffers:
  """Batches whose arrays are used again once nobody has them any more.

  Fresh memory costs a page fault for every 4 KiB; that of a batch which was
  consumed costs none. An array is free when only this object refers to it:
  views of it, and buffers of JAX that share its memory, refer to it too.
  """

  def __init__(self, pad: int, most: int):
    """Keeps nothing yet.

    Args:
      pad: token id that fills texts.
      most: batches of each kind that are kept.
    """
    self._pad, self._most = pad, most
    self._lock = threading.Lock()
    self._kept: dict[Hashable, list[list[np.ndarray]]] = {}

  def take(self, kind: Hashable, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as `empty_batch` makes it.

    Args:
      kind: of batch, always of the same shapes.
      spec: of `batch_spec`.
    """
    with self._lock:
      kept = self._kept.setdefault(kind, [])
      free = next((arrays for arrays in kept if _free(arrays)), None)
      if free is None:
        made: list[np.ndarray] = []
        batch = _each(
          spec, self._pad, lambda node, fill: _new(node, fill, made)
        )
        if len(kept) < self._most:
          kept.append(made)
        return batch
      again = iter(free)  # refers to them before the lock goes
      return _each(spec, self._pad, lambda _, fill: _filled(next(again), fill))


def _new(node: ArrayShape, fill: int, made: list[np.ndarray]) -> np.ndarray:
  made.append(np.full(node.shape, fill, np.dtype(node.dtype)))
  return made[-1]


def _filled(array: np.ndarray, fill: int) -> np.ndarray:
  array[...] = fill
  return array


def _free(arrays: list[np.ndarray]) -> bool:
  """Whether nobody but the list refers to any of the arrays."""
  return all(sys.getrefcount(arrays[i]) <= _ALONE for i in range(len(arrays)))


_ALONE = 2  # the list, and the argument of `getrefcount`
