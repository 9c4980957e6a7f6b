"""Lazy tensors: those of files to read, and those to write.

A `Tensor` has name, shape and dtype; its numbers stay on disk until it is
loaded. An `Item` is a tensor to write; its numbers are made when it is written.
"""

from __future__ import annotations

import collections
import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import ConfigError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
STRIP = 64  # columns copied at once from a transposed matrix
# Errors of reading fields of malformed JSON.
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
  """A tensor of a file; converting it to a NumPy array loads it.

  Attributes:
    name: in the file.
    shape: of the tensor.
    dtype: as stored; bfloat16 by `ml_dtypes`.
    load: reads the array, at each call.
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
  """The tensors under other names; `Tensor.name` stays that in the file.

  Raises:
    WeightsError: if two tensors get the same name.
  """
  result: Tensors = {}
  for name, tensor in tensors.items():
    new = rename(name)
    if new in result:
      raise WeightsError(
        f"{tensor.name!r} and {result[new].name!r} of the file mean the same "
        f"tensor ({new!r}); remove one."
      )
    result[new] = tensor
  return result


def count_layers(names: Collection[str], pattern: str) -> int:
  """Layers of a stack: one more than the largest index in the names.

  Args:
    names: of all tensors.
    pattern: regex of the beginning of a name; its first group is the index.

  Raises:
    ValueError: for an index that exceeds the number of tensors, before memory
      is allocated for so many layers.
  """
  matches = [re.match(pattern, name) for name in names]
  layers = 1 + max((int(m[1]) for m in matches if m), default=-1)
  if layers > len(names):
    raise ValueError(f"layer {layers - 1} of a file of {len(names)} tensors")
  return layers


def copy_blocks(place: np.ndarray, value: np.ndarray) -> None:
  """Copies an array; a transposed matrix in strips, four times as fast."""
  if value.ndim != 2 or value.flags.c_contiguous:
    place[...] = value
    return
  for i in range(0, value.shape[1], STRIP):
    place[:, i : i + STRIP] = value[:, i : i + STRIP]


@dataclass(frozen=True)
class Item:
  """One tensor to write.

  Attributes:
    name: in the file.
    shape: of the tensor.
    dtype: in the file.
    read: makes the array.
    sha256: hash of its bytes, if `read` verifies it; "": unknown.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  sha256: str = ""

  @property
  def nbytes(self) -> int:
    """Size in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def item(name: str, array: np.ndarray) -> Item:
  """An array in memory, to be written."""
  return Item(name, array.shape, array.dtype, lambda: array)


def parse_size(text: str) -> int:
  """Bytes of "5GB", "200MB" or "1000".

  Raises:
    ConfigError: for anything else.
  """
  match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
  if not match or not float(match[1]):
    raise ConfigError(f"size {text!r} is not like 5GB, 200MB or 1000.")
  return int(float(match[1]) * UNITS[match[2]])


def content(item: Item) -> UInt8[np.ndarray, " N"]:
  """The bytes of a tensor in the file.

  Raises:
    ValueError: if the array has another shape than the item.
  """
  array = np.asarray(item.read())
  if array.shape != item.shape:
    raise ValueError(f"{item.name}: {array.shape} instead of {item.shape}.")
  if array.flags.c_contiguous and array.dtype == item.dtype:
    return array.reshape(-1).view(np.uint8)
  result = np.empty(item.shape, item.dtype)
  copy_blocks(result, array)
  return result.reshape(-1).view(np.uint8)


def contents(items: Iterable[Item]) -> Iterator[tuple[Item, np.ndarray, str]]:
  """Each item with its bytes and their SHA-256; reads one item ahead."""

  def prepare(one: Item) -> tuple[Item, np.ndarray, str]:
    data = content(one)
    return one, data, one.sha256 or hashlib.sha256(data.data).hexdigest()

  waiting: collections.deque[futures.Future[Any]] = collections.deque()
  with futures.ThreadPoolExecutor(1) as worker:
    for one in items:
      waiting.append(worker.submit(prepare, one))
      if len(waiting) > 1:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def record(one: Item | Tensor, **more: str) -> dict[str, Any]:
  """The report's entry of a tensor, with further fields."""
  return {
    "name": one.name,
    "dtype": one.dtype.name,
    "shape": list(one.shape),
    "bytes": one.nbytes,
    **more,
  }


@dataclass(frozen=True)
class Written:
  """The files and tensors that were written.

  Attributes:
    files: {"name", "bytes", "sha256", "tensors"} of each file of tensors.
    tensors: {"name", "dtype", "shape", "bytes", "sha256"} of each tensor.
  """

  files: tuple[dict[str, Any], ...]
  tensors: tuple[dict[str, Any], ...]
