"""Removing indexes from the user's cache that nobody needs any more.

Nothing is removed unless asked for (`mico-jax data index --prune`). What goes:

- the index of a local file that is gone, or is no longer the one indexed;
- an index, a selection or a sorting into classes that no run opened for so many
  days (when it is opened is noted once a day by the time of its file);
- locks and unfinished files of a day ago whose index is not there.

Whether a remote file is still there is not asked. What goes is made again when
it is needed; indexes beside the data stay.
"""

from __future__ import annotations

import contextlib
import math
import os
import pathlib
import time
from typing import NamedTuple

from mico_jax.config import ConfigError
from mico_jax.data.index.columns import read_meta
from mico_jax.data.index.places import SUFFIX, index_folder
from mico_jax.data.storage import is_remote

_DAY = 86400.0  # seconds


class Pruned(NamedTuple):
  """What was removed, and what is left.

  Attributes:
    gone: indexes of files that are gone or changed.
    unused: indexes and selections that were not opened for long.
    leftovers: locks and unfinished files.
    freed_mb: of the disk, MB of 10^6 bytes.
    kept: indexes and selections that are left.
    kept_mb: of the disk that they take.
    folder: where they lie.
  """

  gone: int
  unused: int
  leftovers: int
  freed_mb: float
  kept: int
  kept_mb: float
  folder: str


def prune(days: float) -> Pruned:
  """Removes indexes as the module says.

  Args:
    days: without use, after which an index goes; more than 0.

  Raises:
    ConfigError: for another number of days.
  """
  if not days > 0 or math.isinf(days):
    raise ConfigError(f"--days={days:g}: expected more than 0 days.")
  now, folder = time.time(), index_folder()
  counts = dict.fromkeys(("gone", "unused", "leftovers", "kept"), 0)
  freed = kept = 0
  for path in sorted(folder.glob("*")) if folder.is_dir() else ():
    with contextlib.suppress(FileNotFoundError):  # of another process
      state = path.lstat()
      what = _why(path, now - state.st_mtime, days)
      size = state.st_blocks * 512
      if what:
        path.unlink()
        counts[what] += 1
        freed += size
      elif path.name.endswith(SUFFIX):
        counts["kept"] += 1
        kept += size
  return Pruned(
    **counts, freed_mb=freed / 1e6, kept_mb=kept / 1e6, folder=str(folder)
  )


def _why(path: pathlib.Path, age: float, days: float) -> str:
  """Why a file goes; "": it stays."""
  if path.name.startswith(".") or path.suffix != SUFFIX:
    there = path.suffix == ".lock" and path.with_suffix(SUFFIX).exists()
    return "leftovers" if age > _DAY and not there else ""
  if age > days * _DAY:
    return "unused"
  try:
    meta = read_meta(path)
    file, stamp = meta.get("path"), meta.get("stamp")
  except (OSError, ValueError, KeyError, AttributeError):
    return "gone"  # no index, or a damaged one
  if not isinstance(file, str) or is_remote(file):
    return ""
  try:
    state = os.stat(file)
  except FileNotFoundError:
    return "gone"
  except OSError:  # a disk that is away may come back
    return ""
  return "" if stamp == [state.st_size, str(state.st_mtime_ns)] else "gone"
