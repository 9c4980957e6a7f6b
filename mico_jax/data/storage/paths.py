"""What a path is: local or remote, and whether a local one is a plain file."""

from __future__ import annotations

import os
import stat

from mico_jax.modalities import DecodeError
from mico_jax.printing import escaped

MAX_FILE_BYTES = 4 << 30  # default of data.max_file_bytes
_KINDS = (
  (stat.S_ISDIR, "a folder"),
  (stat.S_ISFIFO, "a pipe (FIFO)"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
)


def is_remote(path: str) -> bool:
  """Whether a path carries a scheme."""
  return "://" in path


def short(path: str) -> str:
  """A path for messages: one line of at most about 120 characters."""
  text = escaped(path)
  return text if len(text) <= 120 else f"{text[:60]}...{text[-50:]}"


def check_regular(path: str, limit: int = 0) -> os.stat_result:
  """The state of a local file, which must be regular.

  Args:
    path: local.
    limit: in bytes; 0: none.

  Raises:
    DecodeError: naming what it is instead, or its size.
  """
  state = os.stat(path)
  if not stat.S_ISREG(state.st_mode):
    kind = next((k for test, k in _KINDS if test(state.st_mode)), "no file")
    raise DecodeError(f"{short(path)}: is {kind}, expected a regular file.")
  check_size(path, state.st_size, limit)
  return state


def check_size(path: str, size: int, limit: int) -> None:
  """Refuses more than `limit` bytes (0: no limit) with a DecodeError."""
  if limit and size > limit:
    raise DecodeError(
      f"{short(path)}: {size} bytes exceed data.max_file_bytes={limit}."
    )
