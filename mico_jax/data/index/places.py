"""Where the index of a file is kept, and making it once.

An index is looked for beside the file (`<file>.mico_index`, written by
`mico-jax data index`), then in the user's cache. It counts for the size and
time (or tag) of the file that it was made of; when the file is another, that is
said and it is made anew, by one process of the host while others wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from mico_jax.data.identity import tell
from mico_jax.data.index.columns import Columns, Writer, read_meta
from mico_jax.data.storage import Stamp, Storage, is_remote, short, user_cache
from mico_jax.modalities import DecodeError

SUFFIX = ".mico_index"
# A file that was written this short a time before its index was made may have
# been written again since, with the same time.
_SETTLED = 2_000_000_000  # ns
_DAY = 86400.0  # seconds


def index_folder() -> pathlib.Path:
  """Of the indexes in the user's cache."""
  return user_cache("index")


def cached_place(path: str, kind: str) -> pathlib.Path:
  """The place of a file's index in the user's cache."""
  name = f"{kind}\0{_full(path)}".encode(errors="surrogateescape")
  return index_folder() / f"{hashlib.sha256(name).hexdigest()[:32]}{SUFFIX}"


def _full(path: str) -> str:
  return path if is_remote(path) else os.path.abspath(path)


def note_use(place: pathlib.Path) -> None:
  """Notes by the time of an index in the cache that it is in use (`prune`)."""
  with contextlib.suppress(OSError):
    if place.parent == index_folder() and time.time() - _DAY > (
      place.stat().st_mtime
    ):
      os.utime(place)


def load(
  path: str,
  kind: str,
  storage: Storage,
  build: Callable[[], tuple[Writer, dict[str, Any]]],
  *,
  beside: bool = False,
) -> Columns:
  """The index of a file, made now if there is none that counts.

  Args:
    path: of the file, local or remote.
    kind: of the index, with the version of what it holds: "tar.1".
    storage: reads the file.
    build: makes the columns, and what is to be said of them.
    beside: write it beside the file where it may be.

  Raises:
    DecodeError: for a file that cannot be read.
    TransientError: for storage that stays away.
  """
  stamp = storage.stat(path)
  place = cached_place(path, kind)
  local = None if is_remote(path) else pathlib.Path(f"{path}{SUFFIX}")
  places = [p for p in (local, place) if p is not None]
  found = _first(places, kind, stamp, path)
  if found is None and is_remote(path):
    found = _fetched(path, place, kind, stamp, storage)
  if found is None:
    with alone(place):
      found = _first(places, kind, stamp, path)
      if found is None:
        _tell_changed(places, kind, stamp, path)
        found = _make(path, place, kind, stamp, build)
  if beside:
    _put_beside(path, place, kind, stamp, storage)
  return found


def _make(
  path: str,
  place: pathlib.Path,
  kind: str,
  stamp: Stamp,
  build: Callable[[], tuple[Writer, dict[str, Any]]],
) -> Columns:
  made = time.time_ns()
  writer, meta = build()
  meta = {**meta, "kind": kind, "stamp": list(stamp), "made": made}
  meta["path"] = _full(path)
  try:
    try:
      writer.save(place, meta)
    except OSError as error:  # a folder that cannot be written, a full disk
      tell(f"the index {place} is not kept: {error.strerror or error}")
      return writer.columns(meta)
    return Columns.open(place)
  finally:
    writer.close()


def _first(
  places: list[pathlib.Path], kind: str, stamp: Stamp, path: str
) -> Columns | None:
  """The index that counts, if there is one."""
  for place in places:
    try:
      columns = Columns.open(place)
      if _counts(columns.meta, kind, stamp, path):
        note_use(place)
        return columns
    except (OSError, ValueError, KeyError, TypeError):
      continue  # none, or no index: made anew
  return None


def _counts(meta: dict[str, Any], kind: str, stamp: Stamp, path: str) -> bool:
  if meta["kind"] != kind or meta["stamp"] != list(stamp):
    return False
  return is_remote(path) or int(stamp.tag) < meta["made"] - _SETTLED


def _tell_changed(
  places: list[pathlib.Path], kind: str, stamp: Stamp, path: str
) -> None:
  for place in places:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      meta = read_meta(place)
      if meta["kind"] == kind and meta["stamp"] != list(stamp):
        size = meta["stamp"][0]
        how = "" if size == stamp.size else f", {size} bytes then"
        tell(
          f"{short(path)} changed since it was indexed ({stamp.size} bytes"
          f"{how}); indexing it again."
        )
        return


def _fetched(
  path: str, place: pathlib.Path, kind: str, stamp: Stamp, storage: Storage
) -> Columns | None:
  """The index that lies beside a remote file, copied here."""
  try:
    data = storage.read(f"{path}{SUFFIX}", limited=False)
  except DecodeError:  # there is none
    return None
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, place)
  except OSError:
    return None
  return _first([place], kind, stamp, path)


def _put_beside(
  path: str, place: pathlib.Path, kind: str, stamp: Stamp, storage: Storage
) -> None:
  """Copies an index beside its file; says so where that is not possible."""
  try:
    if not _counts(read_meta(place), kind, stamp, path):
      return
    data = place.read_bytes()
    if is_remote(path):
      storage.write(f"{path}{SUFFIX}", data)
    else:
      part = pathlib.Path(f"{path}{SUFFIX}.part")
      part.write_bytes(data)
      os.replace(part, f"{path}{SUFFIX}")
  except (OSError, ValueError, DecodeError) as error:
    tell(f"no index beside {short(path)}: {error}")


@contextlib.contextmanager
def alone(place: pathlib.Path) -> Iterator[None]:
  """Within, no other process of this host makes the same index."""
  import fcntl

  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
  except OSError:  # a folder that cannot be written: each makes its own
    yield
    return
  try:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
  finally:
    os.close(lock)
