"""Tensors of foreign files, read when they are needed.

`open_tensors` reads names, shapes and dtypes of a file of weights, or of
several; the numbers stay on disk until a tensor is read. Nothing that a file
holds is ever run.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mico_jax.checkpoint.manifest import CheckpointError

INDEX = ".index.json"  # of sharded files: {"weight_map": {name: file}}
# What reading fields of JSON that is not as expected raises.
MALFORMED = (
  ValueError,
  KeyError,
  TypeError,
  AttributeError,
  RecursionError,  # nested too deeply
)


class WeightsError(CheckpointError):
  """Foreign weights that cannot be used; the message is one line."""


@dataclass(frozen=True)
class Tensor:
  """A tensor of a file; an array to NumPy, which then reads it.

  Attributes:
    name: in the file.
    shape: of the tensor.
    dtype: as stored; bfloat16 by `ml_dtypes`.
    load: reads it; each call reads again.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  load: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes of the tensor."""
    return math.prod(self.shape) * self.dtype.itemsize

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    array = self.load()
    return array if dtype is None else array.astype(dtype)

  def __getitem__(self, index: Any) -> Any:
    return self.load()[index]


Tensors = dict[str, Tensor]


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Tensors:
  """Arrays in memory as tensors."""
  return {
    name: Tensor(name, value.shape, value.dtype, lambda value=value: value)
    for name, value in arrays.items()
  }


def renamed(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
  """The tensors under other names; each still knows the one in its file.

  Raises:
    WeightsError: if two tensors get the same name.
  """
  found: Tensors = {}
  for name, tensor in tensors.items():
    new = rename(name)
    if new in found:
      raise WeightsError(
        f"{tensor.name!r} and {found[new].name!r} of the file mean the same "
        f"tensor ({new!r}); remove one."
      )
    found[new] = tensor
  return found


def count_layers(names: Collection[str], pattern: str) -> int:
  """Layers of a stack: one more than the largest index in the names.

  Args:
    names: of all tensors.
    pattern: regex of the beginning of a name; its first group is the index.

  Raises:
    ValueError: for an index that so few tensors cannot have, which would
      otherwise be believed until the memory is full.
  """
  found = [re.match(pattern, name) for name in names]
  layers = 1 + max((int(m[1]) for m in found if m), default=-1)
  if layers > len(names):
    raise ValueError(f"layer {layers - 1} of a file of {len(names)} tensors")
  return layers


def open_tensors(path: str | pathlib.Path) -> Tensors:
  """The tensors of a file of weights.

  Args:
    path: a .safetensors file, a PyTorch file (.pt, .pth, .bin; needs torch),
      or the index of sharded ones (*.index.json).

  Raises:
    WeightsError: if it is no such file, is cut short or holds anything else
      than tensors.
  """
  from mico_jax.interop.files import safetensors_file, torch_file

  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f"{path}: no such file.")
  if path.name.endswith(INDEX):
    return _open_shards(path)
  if path.suffix == ".safetensors":
    return safetensors_file.open_tensors(path)
  return torch_file.open_tensors(path)


def _open_shards(path: pathlib.Path) -> Tensors:
  try:
    places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    files = sorted({str(name) for name in places.values()})
  except MALFORMED as error:
    raise WeightsError(
      f"{path}: not an index of sharded weights ({type(error).__name__}); "
      'expected {"weight_map": {tensor: file}}.'
    ) from error
  found: Tensors = {}
  for name in files:
    if pathlib.Path(name).name != name or name in (".", ".."):
      raise WeightsError(
        f"{path}: names the file {name!r} outside of its folder; expected "
        "plain file names."
      )
    if name.endswith(INDEX):
      raise WeightsError(
        f"{path}: names {name!r}, another index; expected files of tensors."
      )
    tensors = open_tensors(path.parent / name)
    unlisted = [k for k in tensors if places.get(k) != name]
    if unlisted:
      raise WeightsError(
        f"{path}: {name!r} holds {unlisted[0]!r} ({len(unlisted)} such), which "
        "the index does not list there; the index is that of another file."
      )
    found |= tensors
  missing = [name for name in places if name not in found]
  if missing:
    raise WeightsError(
      f"{path}: {missing[0]!r} is not in {places[missing[0]]!r} "
      f"({len(missing)} such); a shard is missing or cut short."
    )
  return found
