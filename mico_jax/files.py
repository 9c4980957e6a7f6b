"""Files of a workdir, local or in a store, with passing faults waited out.

`exists` and `is_dir` of the usual libraries answer False when a store could
not be asked (EIO, ESTALE, 503): a run that trusts them starts anew beside its
own checkpoints. The functions here wait (`failures.wait_out`) until the store
answers, or raise `failures.TransientError`. Every call is safe to repeat. A
file is replaced in one step, so a reader sees the former content or the new
one, and lines are added whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

from etils import epath

from mico_jax.config import ConfigError
from mico_jax.failures import wait_out

PART = ".part"  # ends the name of a local file while it is written


def is_local(path: epath.PathLike) -> bool:
  """Whether a path has no scheme such as s3://."""
  return "://" not in os.fspath(path)


def user_cache(name: str) -> pathlib.Path:
  """A folder of this user for what can be made again."""
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(home).expanduser() / "mico_jax" / name


def place(path: epath.PathLike) -> Any:
  """A local or remote path.

  Raises:
    ConfigError: for a store that nothing here reads.
  """
  if not os.fspath(path):
    raise ConfigError("the name of a file or folder is empty.")
  try:
    return epath.Path(path)
  except KeyError as error:
    raise ConfigError(
      f"{os.fspath(path)!r}: no store {error.args[0]}; known: gs://, s3:// "
      "(extras gcs and s3), and local paths."
    ) from None


# ------------------------------------------------------------------ looking
def names(folder: epath.PathLike) -> list[str]:
  """Names in a folder, sorted; [] if there is no such folder.

  Raises:
    TransientError: if the store does not answer for long.
  """
  root = epath.Path(folder)

  def call() -> list[str]:
    try:
      return sorted({path.name for path in root.iterdir()} - {""})
    except (FileNotFoundError, NotADirectoryError):
      return []

  return wait_out(call, f"listing {root}")


def exists(path: epath.PathLike) -> bool:
  """Whether a file or folder is there; raises as `names` does."""
  path = epath.Path(path)
  if is_local(path):
    return _stat(path) is not None
  return path.name in names(path.parent)


def _stat(path: epath.PathLike) -> os.stat_result | None:
  """The state of a local file or folder; None if there is none."""

  def call() -> os.stat_result | None:
    try:
      return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
      return None

  return wait_out(call, f"looking at {os.fspath(path)}")


def is_folder(path: epath.PathLike) -> bool:
  """Whether a folder is there; raises as `names` does."""
  if is_local(path):
    state = _stat(path)
    return state is not None and stat.S_ISDIR(state.st_mode)
  return wait_out(epath.Path(path).is_dir, f"looking at {os.fspath(path)}")


def walk(folder: epath.PathLike) -> Iterator[tuple[str, ...]]:
  """The files below a folder, as the parts of their relative names, sorted.

  Raises:
    TransientError: if the store does not answer for long.
  """
  root = epath.Path(folder)
  for name in names(root):
    if is_folder(root / name):
      yield from ((name, *rest) for rest in walk(root / name))
    else:
      yield (name,)


def _opens(state: os.stat_result) -> bool:
  """Whether a file or folder opens at once, as a pipe or device need not."""
  return stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)


def pipes(folder: epath.PathLike) -> Iterator[str]:
  """Pipes, sockets and devices below a folder, by their relative names.

  Opening one would block until another process opens the other end.
  """
  for parts in walk(folder) if is_local(folder) else ():
    state = _stat(epath.Path(folder).joinpath(*parts))
    if state and not _opens(state):
      yield "/".join(parts)


def stamp(folder: epath.PathLike) -> tuple[Any, ...]:
  """A value that changes when a file below a folder changes.

  Made of the names, and of sizes and times of local files.
  """
  stamps: list[Any] = []
  for parts in walk(folder):
    state = None
    if is_local(folder):
      state = _stat(epath.Path(folder).joinpath(*parts))
    stamps.append((parts, state and (state.st_size, state.st_mtime_ns)))
  return tuple(stamps)


# ------------------------------------------------------------------ reading
def read_bytes(path: epath.PathLike) -> bytes:
  """The content of a file.

  Raises:
    FileNotFoundError: if there is none, or a pipe or device in its place, whose
      reading could block for ever.
    TransientError: if the store does not answer for long.
  """
  state = _stat(path) if is_local(path) else None
  if state and not _opens(state):
    raise FileNotFoundError(errno.ENOENT, "Not a regular file", os.fspath(path))
  return wait_out(epath.Path(path).read_bytes, f"reading {os.fspath(path)}")


def read_text(path: epath.PathLike) -> str:
  """The content of a UTF-8 file; raises as `read_bytes` does."""
  return read_bytes(path).decode()


# ------------------------------------------------------------------ writing
def make_folder(path: epath.PathLike) -> None:
  """Makes a folder and those above it, as far as they are missing.

  Raises:
    FileExistsError: if it is a file.
    TransientError: if the store does not take it for long.
  """
  folder = epath.Path(path)

  def call() -> None:
    if is_local(folder):
      _make_local(os.path.abspath(folder))
    else:
      folder.mkdir(parents=True, exist_ok=True)

  wait_out(call, f"making {folder}")


def _make_local(folder: str) -> None:
  """As `os.makedirs`, which takes a folder it cannot look at for a file."""
  try:
    os.mkdir(folder)
  except FileNotFoundError:
    above = os.path.dirname(folder)
    if os.path.isdir(above):
      raise  # such as /proc, which takes no folders and says it so
    _make_local(above)
    _make_local(folder)
  except FileExistsError:
    if not stat.S_ISDIR(os.stat(folder).st_mode):
      raise


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
    part = pathlib.Path(f"{os.fspath(target)}{PART}")
    try:
      part.write_bytes(data)
      part.replace(target)
    except OSError:
      with contextlib.suppress(OSError):  # on a full disk, it takes space
        part.unlink(missing_ok=True)
      raise

  wait_out(call, f"writing {target}")


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes a UTF-8 file; raises as `write_bytes` does."""
  write_bytes(path, text.encode())


def append(
  path: epath.PathLike, data: bytes, at: int, *, sync: bool = False
) -> int:
  """Writes behind the first `at` bytes of a local file; cuts what follows.

  What a failed or repeated call left behind is thus never there twice.

  Args:
    path: local; made if it is absent and `at` is 0.
    data: what to add; b"" for none.
    at: bytes that the file is known to hold.
    sync: return when it is on the disk.

  Returns:
    The bytes that the file now holds.

  Raises:
    FileNotFoundError: if the file, or its folder, has been removed.
    TransientError: if the disk does not take it for long.
  """

  def call() -> None:
    flags = os.O_WRONLY | (0 if at else os.O_CREAT)
    handle = os.open(path, flags, 0o644)
    try:
      left, place = data, at
      while left:
        written = os.pwrite(handle, left, place)
        left, place = left[written:], place + written
      if os.fstat(handle).st_size != place:
        os.ftruncate(handle, place)
      if sync:
        os.fsync(handle)
    except OSError:
      with contextlib.suppress(OSError):  # readers see whole lines meanwhile
        os.ftruncate(handle, at)
      raise
    finally:
      os.close(handle)

  wait_out(call, f"writing {os.fspath(path)}")
  return at + len(data)


# ----------------------------------------------------------------- removing
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
