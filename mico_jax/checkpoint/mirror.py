"""Step folders in stores that Orbax does not write: s3://, memory://.

Orbax writes local folders and gs://. For other stores a step is written to a
local folder and copied from there, the manifest's hash last: a step without it
is not finished. To be read, its items are copied to a local folder for a while.
Copies go behind training, one file at a time, so that one file is in memory.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from mico_jax.checkpoint import manifest as manifest_lib

_LAST = ("manifest", manifest_lib.MANIFEST_HASH)


def is_native(path: epath.PathLike) -> bool:
  """Whether Orbax writes there: a local folder or gs://."""
  text = os.fspath(path)
  return "://" not in text or text.startswith("gs://")


def is_finished(folder: Any) -> bool:
  """Whether a step folder has all its files; true where Orbax takes care."""
  return is_native(folder) or folder.joinpath(*_LAST).exists()


def upload(source: pathlib.Path, target: Any) -> None:
  """Copies a local step folder to a store.

  Args:
    source: the folder.
    target: an `epath.Path`; a former step there is replaced.
  """
  target.joinpath(*_LAST).unlink(missing_ok=True)
  files = [path for path in sorted(source.rglob("*")) if path.is_file()]
  parts = [path.relative_to(source).parts for path in files]
  for part in sorted(parts, key=lambda p: (p == _LAST, p)):
    copy = target.joinpath(*part)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(source.joinpath(*part).read_bytes())


def _download(source: Any, target: pathlib.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    if path.is_dir():
      _download(path, target / path.name)
    else:
      (target / path.name).write_bytes(path.read_bytes())


@contextlib.contextmanager
def local_copy(folder: Any, items: Iterable[str]) -> Iterator[Any]:
  """A step folder that Orbax can read; the given one if it can be.

  Args:
    folder: `epath.Path` of the step.
    items: subfolders that are needed; absent ones are left out.
  """
  if is_native(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="mico_jax_") as local:
    for item in items:
      if (folder / item).is_dir():
        _download(folder / item, pathlib.Path(local) / item)
    yield epath.Path(local)
