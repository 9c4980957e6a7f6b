"""Giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def trim() -> None:
  """Returns the unused memory of the allocator's arenas (glibc only)."""
  with contextlib.suppress(AttributeError, OSError, TypeError):
    ctypes.CDLL(None).malloc_trim(0)


def release_memory() -> None:
  """Collects garbage and gives freed memory back to the system.

  Compiling a step leaves several hundred MB in the allocator's arenas, which
  glibc keeps; elsewhere this only collects garbage.
  """
  gc.collect()
  trim()
