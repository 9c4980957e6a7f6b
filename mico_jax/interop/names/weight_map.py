"""Weight maps: the place of each of our parameters in another library's file.

A map is a list of entries; the modules of this folder make one per family of
models. Both directions follow from it and are exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import (
  Iterable,
  Iterator,
  Mapping,
  MutableMapping,
  Sequence,
)
from typing import Any

import numpy as np

from mico_jax.aliases import Params
from mico_jax.checkpoint.manifest import flatten
from mico_jax.interop.files.tensors import Item, copy_blocks


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters and the tensors of a file that it is made of.

  Attributes:
    path: of our parameter.
    names: of the tensors, which are packed side by side; `{i}` is the layer.
    kind: "linear" (transposed), "conv" (a kernel, flattened), "filter" (a
      kernel with its axes reordered) or "same".
    lead: number of leading axes of length one in the file.
    layers: number of stacked layers; 0: not stacked.
    side: rows and columns of a "conv" kernel; 0: the encoder's patch size.
    first: number of the first stacked layer in the file.
    step: difference between the numbers of two stacked layers.
  """

  path: tuple[str, ...]
  names: tuple[str, ...]
  kind: str = "same"
  lead: int = 0
  layers: int = 0
  side: int = 0
  first: int = 0
  step: int = 1

  def tensors(self) -> list[str]:
    """Names in the file: layer after layer, its packed parts side by side."""
    return [
      name.format(i=self.first + i * self.step)
      for i in range(max(self.layers, 1))
      for name in self.names
    ]


def linear(
  path: Sequence[str], names: Sequence[str], layers: int = 0, bias: bool = True
) -> Iterator[Entry]:
  """A linear layer; the outputs of several names are packed side by side."""
  weights = tuple(f"{n}.weight" for n in names)
  yield Entry((*path, "kernel"), weights, "linear", layers=layers)
  if bias:
    biases = tuple(f"{n}.bias" for n in names)
    yield Entry((*path, "bias"), biases, layers=layers)


def layer_norm(
  path: Sequence[str], name: str, layers: int = 0
) -> Iterator[Entry]:
  """A LayerNorm."""
  yield Entry((*path, "scale"), (f"{name}.weight",), layers=layers)
  yield Entry((*path, "bias"), (f"{name}.bias",), layers=layers)


def to_ours(value: np.ndarray, entry: Entry) -> np.ndarray:
  """A tensor in the layout of our parameter.

  Raises:
    ValueError: for a tensor that does not have the axes of its kind.
  """
  if any(n != 1 for n in value.shape[: entry.lead]):
    raise ValueError(f"leading axes of {value.shape} are not of length one.")
  value = value.reshape(value.shape[entry.lead :])
  if entry.kind == "linear":
    return value.T
  if entry.kind == "conv":  # (out, in, rows, columns)
    return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
  if entry.kind == "filter":  # ours is (rows, columns, in, out)
    return value.transpose(2, 3, 1, 0)
  return value


def to_theirs(
  value: np.ndarray, entry: Entry, *, patch_size: int
) -> np.ndarray:
  """A tensor of the file, in C order; the inverse of `to_ours`.

  Args:
    value: one layer and one packed part of our parameter.
    entry: of the parameter.
    patch_size: of the encoder, in pixels.
  """
  if entry.kind == "linear":
    value = value.T
  elif entry.kind == "conv":
    side = entry.side or patch_size
    value = value.reshape(side, side, -1, value.shape[-1])
  if entry.kind in ("conv", "filter"):
    value = value.transpose(3, 2, 0, 1)
  value = value.reshape((1,) * entry.lead + value.shape)
  if value.ndim != 2 or value.dtype.itemsize < 2:  # see `_shape`
    return np.asarray(value, order="C")
  result = np.empty(value.shape, value.dtype)
  copy_blocks(result, value)
  return result


def parameters(
  tensors: MutableMapping[str, np.ndarray],
  table: Iterable[Entry],
  shapes: Mapping[tuple[str, ...], Any],
) -> tuple[dict[str, Any], list[str]]:
  """Our parameters from tensors.

  Args:
    tensors: by the names of the table; those that are used are removed.
    table: weight map of the parameters to build.
    shapes: arrays (or the like) of our parameters, by path.

  Returns:
    Nested dict of float32 arrays, and the names that are missing.

  Raises:
    ValueError: naming a tensor of another shape.
  """
  tree: dict[str, Any] = {}
  missing: list[str] = []
  for entry in table:
    names, width = entry.tensors(), len(entry.names)
    absent = [name for name in names if name not in tensors]
    arrays = [tensors.pop(name) for name in names if name in tensors]
    missing += absent
    if absent:
      continue
    try:
      parts = [to_ours(np.asarray(value), entry) for value in arrays]
      layers = [
        np.concatenate(parts[i : i + width], axis=-1) if width > 1 else parts[i]
        for i in range(0, len(parts), width)
      ]
      value = np.stack(layers) if entry.layers else layers[0]
    except (ValueError, IndexError) as error:
      raise ValueError(
        f"{' + '.join(entry.names)}: shapes {[x.shape for x in arrays][:4]} "
        f"do not fit {'/'.join(entry.path)}: {error}"
      ) from error
    want = tuple(shapes[entry.path].shape)
    if value.shape != want:
      raise ValueError(
        f"{' + '.join(entry.names)}: shape {value.shape} in our layout, the "
        f"config expects {want}; resize first."
      )
    node = tree
    for key in entry.path[:-1]:
      node = node.setdefault(key, {})
    node[entry.path[-1]] = np.asarray(value, np.float32, order="C")
  return tree, missing


def items(
  params: Params, table: Iterable[Entry], *, patch_size: int, prefix: str = ""
) -> Iterator[Item]:
  """The tensors of a weight map, each made when it is read.

  Args:
    params: nested dict of host arrays (or of gradients).
    table: weight map of the tensors to write.
    patch_size: of the encoder, for its patch embedding.
    prefix: of every name.
  """
  flat = flatten(params)
  for entry in table:
    stacked = np.asarray(flat["/".join(entry.path)])
    one = stacked.shape[bool(entry.layers) :]
    width = one[-1] // len(entry.names) if one else 0
    # All tensors of an entry have one shape, whose computation is slow for
    # large arrays.
    shape = _shape((*one[:-1], width) if one else (), entry, patch_size)
    for at, name in enumerate(entry.tensors()):
      layer, part = divmod(at, len(entry.names))
      piece = stacked[layer] if entry.layers else stacked
      if len(entry.names) > 1:
        piece = piece[..., part * width : (part + 1) * width]
      read = lambda p=piece, e=entry: to_theirs(p, e, patch_size=patch_size)
      yield Item(prefix + name, shape, piece.dtype, read)


def _shape(
  shape: tuple[int, ...], entry: Entry, patch_size: int
) -> tuple[int, ...]:
  like = np.broadcast_to(np.zeros((), np.int8), shape)
  return to_theirs(like, entry, patch_size=patch_size).shape
