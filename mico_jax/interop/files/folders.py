"""Output folders that get their final name when they are complete."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from mico_jax.config import ConfigError

REMOTE = re.compile(r"[A-Za-z][\w+.-]+:/")  # pathlib merges two slashes


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
  """A new folder, renamed to `path` on success and removed on an error.

  An empty folder that exists already is kept and receives the content, since it
  may be a shell's current directory or a mount point.

  Raises:
    ConfigError: see `check_new`.
  """
  path = check_new(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  exists = path.is_dir()
  place = path if exists else path.parent
  partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=place))
  try:
    yield partial
    if exists:
      for one in sorted(partial.iterdir()):
        one.rename(path / one.name)
      partial.rmdir()
    else:
      partial.chmod(0o755)
      partial.rename(path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
