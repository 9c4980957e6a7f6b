"""One remote file as the cache holds it: a sparse file and a map of blocks.

The map has two bytes per block: its state (bit 0: present; the rest counts how
often it went, modulo 64), which changes only under the cache's lock, and how
often it was read again: of what is there, that is kept the longest.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pathlib

BLOCK = 16384  # bytes
PRESENT = 1
_STATE = 0xFD
_READS = 3  # that are counted


class CachedFile:
  """The open sparse file and map of a remote file.

  As long as it is open it holds a shared lock on its map, and the cache keeps
  both files.

  Attributes:
    key: hexadecimal name.
    size: of the remote file, in bytes.
    blocks: how many blocks it has.
    path: of the sparse file.
    handle: descriptor of the sparse file.
  """

  def __init__(self, folder: pathlib.Path, key: str, size: int):
    """Opens both files; makes those that are missing.

    Raises:
      OSError: for a disk that is full or away.
    """
    self.key, self.size = key, size
    self.blocks = -(-size // BLOCK)
    self.path = folder / f"{key}.data"
    map_path = map_of(folder, key)
    self.handle = self._map_handle = -1
    self._map: mmap.mmap | None = None
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    self.handle = os.open(self.path, flags, 0o600)
    os.ftruncate(self.handle, size)
    self._map_handle = os.open(map_path, flags, 0o600)
    fcntl.flock(self._map_handle, fcntl.LOCK_SH)
    # A full disk shall fail here, not at a store into the map (SIGBUS).
    os.posix_fallocate(self._map_handle, 0, max(2 * self.blocks, 1))
    self._map = mmap.mmap(self._map_handle, max(2 * self.blocks, 1))

  def __del__(self) -> None:
    """Closes both."""
    if self._map is not None:
      self._map.close()
    for handle in (self.handle, self._map_handle):
      if handle >= 0:
        os.close(handle)

  def states(self, first: int, last: int) -> bytes:
    """State of the blocks `first`..`last` - 1."""
    assert self._map is not None
    return self._map[first:last]

  def present(self, first: int, last: int) -> bool:
    """Whether all of these blocks are there."""
    return all(s & PRESENT for s in self.states(first, last))

  def set_present(self, first: int, last: int) -> None:
    """Marks blocks whose bytes are written; under the cache's lock."""
    assert self._map is not None
    self._map[first:last] = bytes(s | PRESENT for s in self._map[first:last])

  def set_absent(self, first: int, last: int) -> None:
    """Marks blocks before their bytes go; under the cache's lock."""
    assert self._map is not None
    self._map[first:last] = bytes(
      (s + 4) & 0xFF & ~PRESENT & _STATE for s in self._map[first:last]
    )

  def touch(self, first: int, last: int) -> None:
    """Notes that blocks were read."""
    assert self._map is not None
    start, end = self.blocks + first, self.blocks + last
    reads = self._map[start:end]
    self._map[start:end] = reads.translate(_READ)

  def untouch(self, first: int, last: int) -> bool:
    """Whether blocks deserve to stay; takes one of their chances away."""
    assert self._map is not None
    start, end = self.blocks + first, self.blocks + last
    reads = max(self._map[start:end])
    if reads:
      less = min(reads, _READS) - 1
      self._map[start:end] = bytes([less]) * (end - start)
    return reads > 0

  def fresh(self, first: int, last: int) -> None:
    """Notes that blocks were not read since they came."""
    assert self._map is not None
    start, end = self.blocks + first, self.blocks + last
    self._map[start:end] = bytes(end - start)


# What becomes of the count of a block when it is read.
_READ = bytes(min(r + 1, _READS) for r in range(256))


def map_of(folder: pathlib.Path, key: str) -> pathlib.Path:
  """The path of a file's map."""
  return folder / f"{key}.map"


def runs(flags: bytes, wanted: int) -> list[tuple[int, int]]:
  """(first, last + 1) of each run of bytes whose bit 0 is `wanted`."""
  found: list[tuple[int, int]] = []
  start = -1
  for i, flag in enumerate(flags):
    if (flag & PRESENT) == wanted:
      start = i if start < 0 else start
    elif start >= 0:
      found.append((start, i))
      start = -1
  if start >= 0:
    found.append((start, len(flags)))
  return found
