"""A file in memory of which some ranges are there: for libraries that open one.

What a library wants to read by path is written into it for as long as the read
takes, so that remote bytes reach it without a disk. Where a system has no files
in memory, a temporary file on disk takes its place, to be made for each read.
"""

from __future__ import annotations

import os
import tempfile

from mico_jax.data.storage.punch import punch


class SparseMemory:
  """A file of zeros, and of what was written; not safe from threads.

  Attributes:
    path: by which this process opens it.
  """

  def __init__(self, size: int):
    """Makes it.

    Args:
      size: of the file, in bytes.
    """
    self._handle, self.path = -1, ""
    if in_memory():
      self._handle = os.memfd_create("mico-jax", os.MFD_CLOEXEC)
      self.path = f"/proc/self/fd/{self._handle}"
    else:
      self._handle, self.path = tempfile.mkstemp(prefix="mico-jax")
    os.ftruncate(self._handle, size)

  def __del__(self) -> None:
    """Lets it go."""
    if self._handle >= 0:
      os.close(self._handle)
      if not self.path.startswith("/proc/"):
        os.unlink(self.path)

  def write(self, offset: int, data: bytes) -> None:
    """Writes bytes at a place."""
    view = memoryview(data)
    while len(view):
      done = os.pwrite(self._handle, view, offset)
      view, offset = view[done:], offset + done

  def clear(self, offset: int, size: int) -> None:
    """Gives the memory of a range back, where it is in memory."""
    if self.path.startswith("/proc/"):
      punch(self._handle, offset, size)


def in_memory() -> bool:
  """Whether this system has such files, which may be kept and used again."""
  return hasattr(os, "memfd_create")
