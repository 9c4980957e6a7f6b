"""Columns of numbers in one file, mapped into memory and never all read.

A file is the line `mico_jax.index.1`, the length of a JSON header (uint64,
little endian), the header ("meta", and of each column its type, shape and
place), then the columns, each at a multiple of 64 bytes. A file is written
beside its place and moved there, so it is whole or absent.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import struct
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax.data.index import maps

_MAGIC = b"mico_jax.index.1\n"
_ALIGN = 64
_LENGTH = struct.Struct("<Q")
_SPOOL = 4 << 20  # bytes of a column that are held in memory while it grows


class Columns(Mapping[str, np.ndarray]):
  """Named arrays with what is said of them.

  Attributes:
    meta: what JSON can hold.
  """

  def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]):
    """Takes arrays as they are."""
    self.meta = dict(meta)
    self._arrays = dict(arrays)

  def __getitem__(self, name: str) -> np.ndarray:
    """A column."""
    maps.look()
    return self._arrays[name]

  def __iter__(self) -> Any:
    """The names of the columns."""
    return iter(self._arrays)

  def __len__(self) -> int:
    """How many columns there are."""
    return len(self._arrays)

  @classmethod
  def open(cls, path: str | os.PathLike[str]) -> Columns:
    """The columns of a file, mapped into memory.

    Raises:
      ValueError: for a file that is none, or cut short.
      OSError: as the system says.
    """
    header, start = _header(path)
    size = os.path.getsize(path)
    for dtype, shape, offset in header["columns"].values():
      count = math.prod(shape)
      if start + offset + count * np.dtype(dtype).itemsize > size:
        raise ValueError(f"{path}: cut short")
    with open(path, "rb") as file:
      data = maps.map_file(file) if size > start else b""
    arrays = {}
    for name, (dtype, shape, offset) in header["columns"].items():
      count = math.prod(shape)
      array = np.frombuffer(data, dtype, count, start + offset if count else 0)
      arrays[name] = array.reshape(shape)
    return cls(header["meta"], arrays)


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
  """What is said of the columns of a file; raises as `Columns.open`."""
  return _header(path)[0]["meta"]


def _header(path: str | os.PathLike[str]) -> tuple[dict[str, Any], int]:
  with open(path, "rb") as file:
    if file.read(len(_MAGIC)) != _MAGIC:
      raise ValueError(f"{path}: no index of this format")
    data = file.read(_LENGTH.size)
    if len(data) < _LENGTH.size:
      raise ValueError(f"{path}: cut short")
    (length,) = _LENGTH.unpack(data)
    data = file.read(length)
  if len(data) < length:
    raise ValueError(f"{path}: cut short")
  start = len(_MAGIC) + _LENGTH.size + length
  return json.loads(data), -(-start // _ALIGN) * _ALIGN


def lay_out(
  dtypes: Mapping[str, np.dtype],
  counts: Mapping[str, int],
  meta: Mapping[str, Any],
) -> tuple[bytes, dict[str, int], int]:
  """How a file of columns begins and goes on.

  Args:
    dtypes: of the columns.
    counts: values of each.
    meta: what is said of them.

  Returns:
    The first bytes, the place of each column and the size of the file.
  """
  table, place = {}, 0
  for name, dtype in dtypes.items():
    table[name] = [dtype.str, [counts[name]], place]
    place += -(-counts[name] * dtype.itemsize // _ALIGN) * _ALIGN
  header = json.dumps({"meta": dict(meta), "columns": table}).encode()
  head = _MAGIC + _LENGTH.pack(len(header)) + header
  start = -(-len(head) // _ALIGN) * _ALIGN
  places = {name: start + row[2] for name, row in table.items()}
  return head, places, start + place


class Writer:
  """Columns that grow, in temporary files once they are large."""

  def __init__(self, **dtypes: Any):
    """Takes the type of each column."""
    self._dtypes = {name: np.dtype(d) for name, d in dtypes.items()}
    self._files = {
      name: tempfile.SpooledTemporaryFile(_SPOOL)  # noqa: SIM115
      for name in dtypes
    }

  def add(self, **values: Any) -> None:
    """Adds values to the columns that are named."""
    for name, value in values.items():
      array = np.asarray(value, self._dtypes[name])
      self._files[name].write(array.tobytes())

  def size(self, name: str) -> int:
    """Number of values of a column so far."""
    return self._files[name].tell() // self._dtypes[name].itemsize

  def mapped(self, name: str) -> np.ndarray:
    """A column so far, mapped from its temporary file."""
    file = self._files[name]
    file.flush()
    if not file.tell():
      return np.empty(0, self._dtypes[name])
    return np.frombuffer(maps.map_file(file), self._dtypes[name])

  def columns(self, meta: Mapping[str, Any]) -> Columns:
    """The columns in memory."""
    arrays = {}
    for name, file in self._files.items():
      file.seek(0)
      arrays[name] = np.frombuffer(file.read(), self._dtypes[name])
    return Columns(meta, arrays)

  def save(self, path: pathlib.Path, meta: Mapping[str, Any]) -> None:
    """Writes the columns to a file, in one step.

    Raises:
      OSError: as the system says.
    """
    counts = {name: self.size(name) for name in self._files}
    head, _, _ = lay_out(self._dtypes, counts, meta)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
      dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as out:
      try:
        out.write(head)
        for file in self._files.values():
          out.write(bytes(-out.tell() % _ALIGN))
          file.seek(0)
          shutil.copyfileobj(file, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
        os.chmod(out.name, 0o644)
        os.replace(out.name, path)
      except BaseException:
        os.unlink(out.name)
        raise

  def __del__(self) -> None:
    """Closes what an error left open."""
    for file in getattr(self, "_files", {}).values():
      file.close()

  def close(self) -> None:
    """Lets the temporary files go."""
    for file in self._files.values():
      file.close()
