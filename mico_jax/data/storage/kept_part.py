"""Which part of the sets that are read is kept in the block cache.

Least recently used would keep what comes back last: of a part f of a set the
next epoch, in another order, finds f^2 / 2. Of a set that has no room a part is
kept that is fixed by a hash, and every epoch finds f of the set.
"""

from __future__ import annotations

import threading
import zlib

# Parts of the limit: of sets that are kept whole (maps and log take a little),
# and of what is kept of larger ones (whole blocks at both ends of each range).
_WHOLE, _PART = 0.95, 0.75


class KeptPart:
  """Part of all known files that has room; safe from threads."""

  def __init__(self, limit: int):
    """Knows no file yet.

    Args:
      limit: of the cache, in bytes.
    """
    self._limit, self._lock = limit, threading.Lock()
    self._sizes: dict[str, int] = {}
    self._total = 0
    self._share = 1.0

  def add(self, path: str, size: int) -> None:
    """Notes that a file of so many bytes is one of those that are read."""
    with self._lock:
      self._total += size - self._sizes.get(path, 0)
      self._sizes[path] = size
      fits = self._total <= _WHOLE * self._limit
      self._share = 1.0 if fits else _PART * self._limit / self._total

  def holds(self, key: str, offset: int) -> bool:
    """Whether what begins at a place of a file is in the part.

    A larger part holds all of a smaller one.

    Args:
      key: of the file.
      offset: of the first byte of what is read at a time.
    """
    place = zlib.crc32(f"{key} {offset}".encode())
    return self._share >= 1.0 or place < self._share * 2**32
