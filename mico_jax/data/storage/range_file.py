"""A file of a storage as Python's files are: for libraries that take one."""

from __future__ import annotations

import io
from typing import Any, Protocol, runtime_checkable

from mico_jax.data.storage.stores import Stamp


@runtime_checkable
class Ranges(Protocol):
  """What reads ranges (`Storage`)."""

  def stat(self, path: str) -> Stamp:
    """Size of a file."""
    ...

  def read_range(
    self, path: str, offset: int, size: int, *, cached: bool = True
  ) -> bytes:
    """Bytes of a file."""
    ...


class RangeFile(io.RawIOBase):
  """A file of a storage, read in ranges."""

  def __init__(self, storage: Ranges, path: str, *, cached: bool = True):
    """Asks for its size."""
    self._storage, self._path, self._cached = storage, path, cached
    self._size = storage.stat(path).size
    self._place = 0

  def readable(self) -> bool:
    """It is."""
    return True

  def seekable(self) -> bool:
    """It is."""
    return True

  def tell(self) -> int:
    """The place of the next byte."""
    return self._place

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    """Sets the place of the next byte."""
    base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}
    self._place = max(base[whence] + offset, 0)
    return self._place

  def readinto(self, buffer: Any) -> int:
    """Fills a buffer; how many bytes were left."""
    view = memoryview(buffer).cast("B")
    data = self._storage.read_range(
      self._path, self._place, len(view), cached=self._cached
    )
    view[: len(data)] = data
    self._place += len(data)
    return len(data)
