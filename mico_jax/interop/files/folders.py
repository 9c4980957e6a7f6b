"""Folders that appear when they are complete."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from mico_jax.config import ConfigError

REMOTE = re.compile(r"[A-Za-z][\w+.-]+:/")  # a path keeps one of two slashes


def check_new(path: pathlib.Path) -> pathlib.Path:
  """The absolute path of a folder that may be written.

  Raises:
    ConfigError: if it is remote, or exists and is not an empty folder.
  """
  if REMOTE.match(str(path)):
    raise ConfigError(
      f"--out {str(path)!r} is not on this machine; give a local folder, and "
      "copy that afterwards."
    )
  path = pathlib.Path(os.path.abspath(path))
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise ConfigError(
      f"{str(path)!r} exists and is not an empty folder; give a new --out."
    )
  return path


@contextlib.contextmanager
def new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder that takes its name when complete, and vanishes on an error.

  An empty folder that is there already stays in place and gets the content: a
  shell may be in it, or a disk be mounted there.

  Raises:
    ConfigError: see `check_new`.
  """
  path = check_new(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  there = path.is_dir()
  place = path if there else path.parent
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=place))
  try:
    yield partial
    if there:
      for one in sorted(partial.iterdir()):
        one.rename(path / one.name)
      partial.rmdir()
    else:
      partial.chmod(0o755)
      partial.rename(path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
