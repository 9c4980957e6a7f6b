"""Writing safetensors tensor by tensor: one file, or several with an index.

Nothing is collected in memory: a tensor is read, hashed, written and forgotten.
bfloat16 is written by its bits. PyTorch is not needed.

Source: https://huggingface.co/docs/safetensors (format description); the index
file is the one of the transformers library.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mico_jax.config import ConfigError
from mico_jax.interop.files.safetensors_file import DTYPES
from mico_jax.interop.names.weight_map import copy_blocks

NAMES = {dtype: name for name, dtype in DTYPES.items()}
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
REMOTE = re.compile(r"[A-Za-z][\w+.-]+:/")  # a path keeps one of two slashes


@dataclass(frozen=True)
class Item:
  """One tensor to write.

  Attributes:
    name: in the file.
    shape: of the tensor.
    dtype: that it is written in.
    read: gives the array when its turn comes.
    sha256: of its bytes, where `read` has compared them with it; "": unknown.
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


def item(name: str, array: np.ndarray, dtype: Any = None) -> Item:
  """An array in memory, to be written as `dtype` (None: its own)."""
  kind = array.dtype if dtype is None else np.dtype(dtype)
  return Item(name, array.shape, kind, lambda: array)


def parse_size(text: str) -> int:
  """Bytes of "5GB", "200MB" or "1000".

  Raises:
    ConfigError: for anything else.
  """
  match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
  if not match or not float(match[1]):
    raise ConfigError(f"size {text!r} is not like 5GB, 200MB or 1000.")
  return int(float(match[1]) * UNITS[match[2]])


def content(item: Item) -> np.ndarray:
  """The bytes of a tensor, as the file holds them.

  Raises:
    ValueError: if the array has another shape than announced.
  """
  array = np.asarray(item.read())
  if array.shape != item.shape:
    raise ValueError(f"{item.name}: {array.shape} instead of {item.shape}.")
  if array.flags.c_contiguous and array.dtype == item.dtype:
    return array.reshape(-1).view(np.uint8)
  found = np.empty(item.shape, item.dtype)
  copy_blocks(found, array)
  return found.reshape(-1).view(np.uint8)


def contents(items: Iterable[Item]) -> Iterator[tuple[Item, np.ndarray, str]]:
  """Each item with its bytes and their SHA-256, read one ahead of its use."""

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


def record(one: Item, digest: str) -> dict[str, Any]:
  """What a report says of a written tensor."""
  return {
    "name": one.name,
    "dtype": one.dtype.name,
    "shape": list(one.shape),
    "bytes": one.nbytes,
    "sha256": digest,
  }


def _shards(items: Sequence[Item], limit: int) -> list[list[Item]]:
  """Items in order, in groups of at most `limit` bytes (one at least)."""
  groups: list[list[Item]] = [[]]
  size = 0
  for one in items:
    if groups[-1] and size + one.nbytes > limit:
      groups.append([])
      size = 0
    groups[-1].append(one)
    size += one.nbytes
  return groups


def _write_file(
  path: pathlib.Path, items: Sequence[Item], metadata: Mapping[str, str]
) -> tuple[list[dict[str, Any]], str]:
  """Writes one file; returns its tensors' records and its SHA-256."""
  header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
  offset = 0
  for one in items:
    if one.dtype not in NAMES:
      raise ValueError(f"{one.name}: dtype {one.dtype} is not in safetensors.")
    header[one.name] = {
      "dtype": NAMES[one.dtype],
      "shape": list(one.shape),
      "data_offsets": [offset, offset + one.nbytes],
    }
    offset += one.nbytes
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  whole, records = hashlib.sha256(), []
  with open(path, "wb") as file:
    _put(file, whole, len(text).to_bytes(8, "little") + text)
    for one, data, digest in contents(items):
      _put(file, whole, data.data)
      records.append(record(one, digest))
  return records, whole.hexdigest()


def _put(file: BinaryIO, digest: Any, data: Any) -> None:
  file.write(data)
  digest.update(data)


@dataclass(frozen=True)
class Written:
  """What was written.

  Attributes:
    files: {"name", "bytes", "sha256", "tensors"} of each file of tensors.
    tensors: {"name", "dtype", "shape", "bytes", "sha256"} of each tensor.
  """

  files: tuple[dict[str, Any], ...]
  tensors: tuple[dict[str, Any], ...]


def write(
  folder: pathlib.Path,
  items: Iterable[Item],
  *,
  max_shard_size: int = 5 * 10**9,
  metadata: Mapping[str, str] | None = None,
  name: str = WEIGHTS,
) -> Written:
  """Writes one file, or shards and their index.

  Args:
    folder: an existing folder.
    items: in the order of the file.
    max_shard_size: bytes of tensors per file.
    metadata: strings of the header; such as {"format": "pt"}.
    name: of the file, if it is one.

  Raises:
    ValueError: for two tensors of one name, or a dtype that the format lacks.
  """
  items = list(items)
  names = [one.name for one in items]
  double = (
    sorted({n for n in names if names.count(n) > 1})
    if (len(set(names)) < len(names))
    else []
  )
  if double:
    raise ValueError(f"tensors of one name: {', '.join(double)}.")
  groups = _shards(items, max_shard_size)
  files, tensors, places = [], [], {}
  for i, group in enumerate(groups, 1):
    place = name
    if len(groups) > 1:
      place = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
    path = folder / place
    records, digest = _write_file(path, group, metadata or {})
    tensors += records
    places |= dict.fromkeys((one.name for one in group), place)
    files.append(
      {
        "name": place,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "tensors": len(group),
      }
    )
  if len(groups) > 1:
    index = {
      "metadata": {"total_size": sum(one.nbytes for one in items)},
      "weight_map": places,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1))
  return Written(tuple(files), tuple(tensors))


def check_new(path: pathlib.Path) -> pathlib.Path:
  """The absolute path of a folder that may be written.

  Raises:
    ConfigError: if it is remote, or exists and is not an empty folder.
  """
  if REMOTE.match(str(path)):
    raise ConfigError(
      f"--out {str(path)!r} is not on this machine; give a local folder, and "
      "copy that afterwards."
    )
  path = pathlib.Path(os.path.abspath(path))
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ConfigError(
      f"{str(path)!r} exists and is not an empty folder; give a new --out."
    )
  return path


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that takes its name when complete, and vanishes on an error.

  An empty folder that is there already stays in place and gets the content: a
  shell may be in it, or a disk be mounted there.

  Raises:
    ConfigError: see `check_new`.
  """
  path = check_new(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  there = path.is_dir()
  place = path if there else path.parent
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=place))
  try:
    yield partial
    if there:
      for one in sorted(partial.iterdir()):
        one.rename(path / one.name)
      partial.rmdir()
    else:
      partial.chmod(0o755)
      partial.rename(path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
