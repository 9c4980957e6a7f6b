"""Reading files, local or remote, with timeout, retry and a bounded cache.

A path with a scheme ("s3://", "gs://", "memory://") is remote: read through
`etils.epath` where it knows the scheme and fsspec otherwise. Single files are
read whole; shards are copied into a local cache first, so that members can be
read at random. The cache is shared by all runs of a user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from mico_jax.modalities import DecodeError

T = TypeVar("T")
_EPATH_SCHEMES = ("gs", "s3")


class RemoteError(OSError):
  """A remote file could not be read in time."""


def is_remote(path: str) -> bool:
  """Whether a path carries a scheme."""
  return "://" in path


def call_with_timeout(
  function: Callable[[], T], seconds: float, what: str
) -> T:
  """Runs a function in a thread of its own; gives up after `seconds`.

  Raises:
    RemoteError: after the timeout; the stuck thread is left behind.
  """
  result: list[Any] = []

  def run() -> None:
    try:
      result.extend((True, function()))
    except BaseException as error:
      result.extend((False, error))

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  thread.join(seconds)
  if not result:
    raise RemoteError(
      f"{what}: no answer within {seconds:g} s."
    ) from TimeoutError(what)
  if not result[0]:
    raise result[1]
  return result[1]


class Storage:
  """Reads whole files and hands out local copies of remote shards."""

  def __init__(
    self,
    *,
    timeout: float = 60.0,
    retries: int = 3,
    cache_gb: float = 4.0,
    cache_dir: str = "",
  ):
    """Sets the limits.

    Args:
      timeout: seconds per attempt.
      retries: attempts before a read fails.
      cache_gb: local copies are deleted, oldest use first, beyond this.
      cache_dir: "": `mico_jax` in the user's cache folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    default = pathlib.Path(home).expanduser() / "mico_jax" / "shards"
    self._cache = pathlib.Path(cache_dir) if cache_dir else default
    self._timeout, self._retries = timeout, max(1, retries)
    self._limit = int(cache_gb * 2**30)
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    """Locks do not travel to worker processes."""
    return {k: v for k, v in self.__dict__.items() if k != "_lock"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Restores with a lock of its own."""
    self.__dict__.update(state, _lock=threading.Lock())

  def read(self, path: str) -> bytes:
    """The content of a file.

    Raises:
      DecodeError: if it does not exist or cannot be read.
      RemoteError: if a remote store does not answer.
    """
    try:
      if not is_remote(path):
        return pathlib.Path(path).read_bytes()
      return self._attempt(lambda: _read_remote(path), path)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
      text = error.strerror or "does not exist"
      raise DecodeError(f"{path}: {text}.") from error

  def local(self, path: str) -> str:
    """The path of a local copy; `path` itself if it is local.

    Raises:
      DecodeError, RemoteError: as `read`.
    """
    if not is_remote(path):
      if not os.path.exists(path):
        raise DecodeError(f"{path}: no such file.")
      return path
    stamp = self._attempt(lambda: _remote_stamp(path), path)
    name = hashlib.sha256(f"{path}\0{stamp}".encode()).hexdigest()[:24]
    target = self._cache / f"{name}{pathlib.PurePosixPath(path).suffix}"
    with self._lock:
      if not target.exists():
        data = self.read(path)
        self._cache.mkdir(parents=True, exist_ok=True)
        self._make_room(len(data))
        with tempfile.NamedTemporaryFile(dir=self._cache, delete=False) as file:
          file.write(data)
        os.replace(file.name, target)
      os.utime(target)
    return str(target)

  def _attempt(self, function: Callable[[], T], path: str) -> T:
    for attempt in range(self._retries):
      try:
        return call_with_timeout(function, self._timeout, path)
      except FileNotFoundError:
        raise
      except Exception as error:
        if attempt + 1 == self._retries:
          raise RemoteError(
            f"{path}: failed {self._retries} times, last: {error}"
          ) from error
        time.sleep(min(2.0**attempt * 0.1, 5.0))
    raise AssertionError("unreachable")

  def _make_room(self, size: int) -> None:
    files = sorted(
      (f.stat().st_mtime, f.stat().st_size, f) for f in self._cache.iterdir()
    )
    total = sum(s for _, s, _ in files) + size
    for _, old, file in files:
      if total <= self._limit:
        return
      with contextlib.suppress(FileNotFoundError):
        file.unlink()
      total -= old


def _read_remote(path: str) -> bytes:
  if path.split("://")[0] in _EPATH_SCHEMES:
    from etils import epath

    return epath.Path(path).read_bytes()
  import fsspec

  filesystem, name = fsspec.core.url_to_fs(path)
  return filesystem.cat_file(name)


def _remote_stamp(path: str) -> str:
  """What changes when a remote file changes: its size and time or tag."""
  if path.split("://")[0] in _EPATH_SCHEMES:
    from etils import epath

    stat = epath.Path(path).stat()
    return f"{stat.length} {stat.mtime}"
  import fsspec

  fs, name = fsspec.core.url_to_fs(path)
  info = fs.info(name)
  tags = [info.get(k) for k in ("size", "etag", "mtime", "created")]
  return " ".join(map(str, tags))
