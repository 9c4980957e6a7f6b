"""Files of a workdir, local or in a store, with passing faults waited out.

`exists` and `is_dir` of the usual libraries answer False when a store could
not be asked (EIO, ESTALE, 503): a run that trusts them starts anew beside its
own checkpoints. What is here knows, or waits (`failures.wait_out`), or raises.
Every call is safe to repeat; local files are replaced in one step, so a reader
sees the former content or the new one.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from etils import epath

from mico_jax.failures import wait_out

PART = ".part"  # ends the name of a local file while it is written


def is_local(path: epath.PathLike) -> bool:
  """Whether a path has no scheme such as s3://."""
  return "://" not in os.fspath(path)


def names(folder: epath.PathLike) -> list[str]:
  """Names in a folder, sorted; [] if there is no such folder.

  Raises:
    TransientError: if the store does not answer for long.
  """
  root = epath.Path(folder)

  def call() -> list[str]:
    try:
      return sorted(path.name for path in root.iterdir())
    except (FileNotFoundError, NotADirectoryError):
      return []

  return wait_out(call, f"listing {root}")


def exists(path: epath.PathLike) -> bool:
  """Whether a file or folder is there; raises as `names` does."""
  path = epath.Path(path)
  return path.name in names(path.parent)


def read_bytes(path: epath.PathLike) -> bytes:
  """The content of a file.

  Raises:
    FileNotFoundError: if there is none.
    TransientError: if the store does not answer for long.
  """
  return wait_out(epath.Path(path).read_bytes, f"reading {os.fspath(path)}")


def read_text(path: epath.PathLike) -> str:
  """The content of a UTF-8 file; raises as `read_bytes` does."""
  return read_bytes(path).decode()


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file; its folder must be there.

  Raises:
    TransientError: if the store does not take it for long.
  """
  target: Any = epath.Path(path)

  def call() -> None:
    if not is_local(target):
      target.write_bytes(data)
      return
    part = target.with_name(target.name + PART)
    part.write_bytes(data)
    part.replace(target)

  wait_out(call, f"writing {target}")


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a UTF-8 file; raises as `write_bytes` does."""
  write_bytes(path, text.encode())


def make_folder(path: epath.PathLike) -> None:
  """Makes a folder and those above it, as far as they are missing."""
  folder = epath.Path(path)
  wait_out(
    lambda: folder.mkdir(parents=True, exist_ok=True), f"making {folder}"
  )


def remove(path: epath.PathLike) -> None:
  """Removes a file, if it is there."""
  target = epath.Path(path)

  def call() -> None:
    with contextlib.suppress(FileNotFoundError):
      target.unlink()

  wait_out(call, f"removing {target}")


def remove_folder(path: epath.PathLike) -> None:
  """Removes a folder with all in it, if it is there."""
  folder = epath.Path(path)

  def call() -> None:
    with contextlib.suppress(FileNotFoundError):
      folder.rmtree()

  wait_out(call, f"removing {folder}")
