"""A store of local files that answers late, for several processes.

Paths are "late://" and an absolute path without its first slash. A process
finds the scheme once it has imported this module; the environment variable
`LATENCY` says how late (seconds), `COUNTS` names a folder in which each process
counts what it was asked for. An answer costs what a copy of the bytes out of
the page cache does, so that what is measured is the reader and not the store.
"""

from __future__ import annotations

import os
import pathlib
import struct
import threading
import time
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

LATENCY, COUNTS = "MICO_JAX_LATE_SECONDS", "MICO_JAX_LATE_COUNTS"
_NUMBERS = struct.Struct("<3q")  # reads, bytes, most reads at a time


class LateFileSystem(LocalFileSystem):
  """See the module."""

  protocol = "late"
  _guard: ClassVar = threading.Lock()
  _numbers: ClassVar[list[int]] = [0, 0, 0]
  _busy: ClassVar[int] = 0

  @classmethod
  def _strip_protocol(cls, path: Any) -> Any:
    """The local path."""
    if isinstance(path, str) and path.startswith("late://"):
      path = "/" + path.removeprefix("late://").lstrip("/")
    return super()._strip_protocol(path)

  def info(self, path: Any, **options: Any) -> Any:
    """Answers after a while."""
    time.sleep(latency())
    return super().info(path, **options)

  def cat_file(
    self, path: Any, start: Any = None, end: Any = None, **options: Any
  ) -> bytes:
    """Answers after a while."""
    kind = type(self)
    with self._guard:
      kind._busy += 1
      self._numbers[2] = max(self._numbers[2], kind._busy)
    time.sleep(latency())
    handle = os.open(self._strip_protocol(path), os.O_RDONLY)
    try:
      begin = start or 0
      size = os.fstat(handle).st_size if end is None else end
      data = os.pread(handle, size - begin, begin)
    finally:
      os.close(handle)
    with self._guard:
      kind._busy -= 1
      self._numbers[0] += 1
      self._numbers[1] += len(data)
      _note(self._numbers)
    return data


def latency() -> float:
  """Seconds before an answer."""
  return float(os.environ.get(LATENCY, "0"))


def _note(numbers: list[int]) -> None:
  folder = os.environ.get(COUNTS)
  if folder:
    path = f"{folder}/{os.getpid()}"
    if path not in _open:
      _open[path] = os.open(path, os.O_RDWR | os.O_CREAT)
    os.pwrite(_open[path], _NUMBERS.pack(*numbers), 0)


_open: dict[str, int] = {}


def counts() -> tuple[int, int, int]:
  """Reads, bytes, and reads in flight at most, of all processes together."""
  reads = received = most = 0
  for file in pathlib.Path(os.environ[COUNTS]).iterdir():
    numbers = _NUMBERS.unpack(file.read_bytes())
    reads, received = reads + numbers[0], received + numbers[1]
    most += numbers[2]
  return reads, received, most


fsspec.register_implementation("late", LateFileSystem, clobber=True)
