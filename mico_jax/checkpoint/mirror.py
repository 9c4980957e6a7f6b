"""Step folders in stores that Orbax does not write: s3://, memory://.

Orbax writes local folders and gs://. For other stores a step is written to a
local folder and copied from there, the manifest's hash last: a step without it
is unfinished. For reading, its items are copied to a temporary local folder.
Copies are made behind training, one file in memory at a time.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from mico_jax import files
from mico_jax.checkpoint import manifest as manifest_lib

# On gs://, which cannot rename folders, Orbax writes this file last.
COMMIT = "commit_success.txt"
_LAST = ("manifest", manifest_lib.MANIFEST_HASH)


def is_native(path: epath.PathLike) -> bool:
  """Whether Orbax writes to a path: a local folder or gs://."""
  text = os.fspath(path)
  return "://" not in text or text.startswith("gs://")


def last_file(folder: Any) -> tuple[str, ...]:
  """Parts of the path of the file that is written last to a step folder.

  () for a local folder, which is renamed when it is complete.
  """
  if files.is_local(folder):
    return ()
  return (COMMIT,) if is_native(folder) else _LAST


def is_finished(folder: Any) -> bool:
  """Whether a step folder has all its files.

  Raises:
    TransientError: if the store does not answer for long.
  """
  last = last_file(folder)
  return not last or files.exists(folder.joinpath(*last))


def drop(folder: Any) -> None:
  """Removes a step folder; a partly removed one counts as unfinished."""
  last = last_file(folder)
  if last:
    files.remove(folder.joinpath(*last))
  files.remove_folder(folder)


def upload(source: pathlib.Path, target: Any) -> None:
  """Copies a local step folder to a store.

  Args:
    source: the folder.
    target: an `epath.Path`; an existing step is replaced.
  """
  files.remove(target.joinpath(*_LAST))
  for part in sorted(files.walk(source), key=lambda p: (p == _LAST, p)):
    _copy(source.joinpath(*part), target.joinpath(*part))


def _copy(source: Any, target: Any) -> None:
  files.make_folder(target.parent)
  files.write_bytes(target, files.read_bytes(source))


@contextlib.contextmanager
def local_copy(folder: Any, items: Iterable[str]) -> Iterator[Any]:
  """A step folder that Orbax can read: the given one, or a temporary copy.

  Args:
    folder: `epath.Path` of the step.
    items: subfolders to copy; absent ones are skipped.
  """
  if is_native(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix="mico_jax_") as local:
    for item in items:
      for part in files.walk(folder / item):
        _copy(
          folder.joinpath(item, *part),
          pathlib.Path(local).joinpath(item, *part),
        )
    yield epath.Path(local)
