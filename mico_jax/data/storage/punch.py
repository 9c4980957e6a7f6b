"""Holes in local files: space given back while a file keeps its size."""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib
import tempfile

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of Linux's fallocate


@functools.cache
def _fallocate() -> ctypes._CFuncPtr | None:
  try:
    function = ctypes.CDLL(None, use_errno=True).fallocate
  except (OSError, AttributeError):  # no Linux
    return None
  function.argtypes = (ctypes.c_int, ctypes.c_int, *[ctypes.c_int64] * 2)
  return function


def punch(handle: int, offset: int, size: int) -> None:
  """Makes a range of an open file a hole, which reads as zeros.

  Raises:
    OSError: where the file system or the platform cannot.
  """
  function = _fallocate()
  if function is None:
    raise OSError("no fallocate on this platform")
  if function(handle, _PUNCH_HOLE | _KEEP_SIZE, offset, size):
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def can_punch(folder: pathlib.Path) -> bool:
  """Whether files of a folder may have holes made in them."""
  with tempfile.TemporaryFile(dir=folder) as file:
    file.write(bytes(1 << 16))
    file.flush()
    try:
      punch(file.fileno(), 0, 1 << 15)
    except OSError:
      return False
    return os.fstat(file.fileno()).st_blocks * 512 < 1 << 16
