"""Where another world's file holds each of our parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from mico_jax.interop.files.tensors import copy_blocks


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters and where a released file holds it.

  Attributes:
    path: of our parameter.
    names: released names whose tensors are packed side by side; `{i}` is the
      layer.
    kind: "linear" (transposed), "conv" (a kernel, flattened), "filter" (a
      kernel as a convolution takes it) or "same".
    lead: leading axes of length one in the released tensor.
    layers: number of stacked layers; 0: not stacked.
    side: rows and columns of a "conv" kernel; 0: the encoder's patch size.
  """

  path: tuple[str, ...]
  names: tuple[str, ...]
  kind: str = "same"
  lead: int = 0
  layers: int = 0
  side: int = 0


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
  """The inverse of `to_ours`, in C order.

  Args:
    value: one layer and one of the packed parts of our parameter.
    entry: where it goes.
    patch_size: of the encoder.
  """
  if entry.kind == "linear":
    value = value.T
  elif entry.kind == "conv":
    side = entry.side or patch_size
    value = value.reshape(side, side, -1, value.shape[-1])
  if entry.kind in ("conv", "filter"):
    value = value.transpose(3, 2, 0, 1)
  value = value.reshape((1,) * entry.lead + value.shape)
  if value.ndim != 2 or value.dtype.itemsize < 2:  # or only a shape is asked
    return np.asarray(value, order="C")
  found = np.empty(value.shape, value.dtype)
  copy_blocks(found, value)
  return found
