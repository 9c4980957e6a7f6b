"""Files that are mapped into memory, and letting their pages go.

Pages of a mapped file count as memory of each process that touched them,
though they are the system's cache of the disk. Samples are read at random, so
that in time a process would hold the whole index of a large set. Where the maps
of a process are large together, their pages are therefore let go every so many
looks, which costs a few microseconds a sample, and after each piece of a scan.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from typing import Any

_LARGE = 256 << 20  # bytes of all maps, from which on pages are let go
_LOOKS = 512  # each maps some hundred kilobytes, where pages lie together

_lock = threading.Lock()
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_looks = 0


def map_file(file: Any) -> mmap.mmap | bytes:
  """An open file as it is now, for reading; an empty one is no map."""
  try:
    found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except ValueError:  # nothing to map
    return b""
  with _lock:
    _maps.add(found)
  return found


def look() -> None:
  """Counts a look at a mapped file."""
  global _looks
  _looks += 1  # one that another thread's overwrites makes no difference
  if _looks >= _LOOKS:
    _looks = 0
    release()


def release() -> None:
  """Lets the pages of all maps go, if there are many; they come when needed."""
  with _lock:
    maps = list(_maps)
  if sum(map(len, maps)) < _LARGE:
    return
  for found in maps:
    found.madvise(mmap.MADV_DONTNEED)
