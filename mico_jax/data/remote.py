"""Local and remote files, read with timeouts, retries and a bounded cache.

A path with a scheme ("s3://", "gs://", "memory://") is remote and read through
`etils.epath` if that knows the scheme, otherwise through fsspec. Single files
are read whole; shards are copied to a local cache, shared by all runs of a
user, so that their members can be read at random.

Transient errors are retried (`mico_jax.failures`); permanent ones become a
DecodeError. Only regular local files are opened: pipes and devices could block.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from mico_jax.config import ConfigError, DataConfig
from mico_jax.data.guard import waiting
from mico_jax.failures import TransientError, is_transient, say, wait_out
from mico_jax.modalities import DecodeError
from mico_jax.printing import escaped

T = TypeVar("T")
_EPATH_SCHEMES = ("gs", "s3")
MAX_FILE_BYTES = 4 << 30  # default of data.max_file_bytes
_KINDS = (
  (stat.S_ISDIR, "a folder"),
  (stat.S_ISFIFO, "a pipe (FIFO)"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
)


class RemoteError(TransientError):
  """A remote file could not be read in time."""


def is_remote(path: str) -> bool:
  """Whether a path has a scheme."""
  return "://" in path


def user_cache(name: str) -> pathlib.Path:
  """Folder of this user for files that can be made again."""
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(home).expanduser() / "mico_jax" / name


def short(path: str) -> str:
  """A path for messages: one line of at most about 120 characters."""
  text = escaped(path)
  return text if len(text) <= 120 else f"{text[:60]}...{text[-50:]}"


def call_with_timeout(
  function: Callable[[], T], seconds: float, what: str
) -> T:
  """Runs a function in its own thread and gives up after `seconds`.

  Args:
    function: what to run.
    seconds: timeout.
    what: begins the error message.

  Raises:
    RemoteError: after the timeout; the thread keeps running.
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


def check_regular(path: str, limit: int = 0) -> int:
  """The size in bytes of a local file, which must be regular.

  Args:
    path: local.
    limit: largest size in bytes; 0: none.

  Raises:
    DecodeError: for a folder, pipe, socket or device, and for a larger file.
  """
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):
    kind = next((k for test, k in _KINDS if test(status.st_mode)), "no file")
    raise DecodeError(f"{short(path)}: is {kind}, expected a regular file.")
  check_size(path, status.st_size, limit)
  return status.st_size


def check_size(path: str, size: int, limit: int) -> None:
  """Refuses more than `limit` bytes (0: no limit) with a DecodeError."""
  if limit and size > limit:
    raise DecodeError(
      f"{short(path)}: {size} bytes exceed data.max_file_bytes={limit}."
    )


class Storage:
  """Reads whole files and hands out local copies of remote shards.

  Attributes:
    max_file_bytes: size from which files are refused; of shards it limits the
      members, not the file.
  """

  def __init__(
    self,
    *,
    timeout: float = 60.0,
    patience: float | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    cache_gb: float = 4.0,
    cache_dir: str = "",
  ):
    """Sets the limits.

    Args:
      timeout: seconds for one attempt to read a remote file.
      patience: seconds of retries in all after transient errors; None:
        `mico_jax.failures.patience_seconds`.
      max_file_bytes: largest file. A remote file is checked after reading.
      cache_gb: GiB of the cache; the least recently used copies are deleted.
      cache_dir: folder of the cache; "": `mico_jax/shards` in the user's cache.
    """
    self._cache = pathlib.Path(cache_dir or user_cache("shards"))
    self._timeout, self._patience = timeout, patience
    self.max_file_bytes = max_file_bytes
    self._limit = int(cache_gb * 2**30)
    self._lock = threading.Lock()

  @classmethod
  def of(cls, config: DataConfig) -> Storage:
    """The storage with the limits of a config."""
    return cls(
      timeout=config.timeout,
      cache_gb=config.cache_gb,
      max_file_bytes=config.max_file_bytes,
    )

  def __getstate__(self) -> dict[str, Any]:
    """State for worker processes, without the lock."""
    return {k: v for k, v in self.__dict__.items() if k != "_lock"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Restores the state with a new lock."""
    self.__dict__.update(state, _lock=threading.Lock())

  def read(self, path: str, *, limited: bool = True) -> bytes:
    """The content of a file.

    Args:
      path: local or remote.
      limited: whether `max_file_bytes` limits its size.

    Raises:
      DecodeError: if it does not exist, is no regular file, is too large or
        cannot be read.
      TransientError: if the store stays unreachable.
    """
    limit = self.max_file_bytes if limited else 0
    if not is_remote(path):
      return self.patiently(lambda: _read_local(path, limit), path)
    data = self._remotely(lambda: _read_remote(path), path)
    check_size(path, len(data), limit)
    return data

  def local(self, path: str) -> str:
    """The path of a local copy of a file; a local path as it is.

    Raises:
      DecodeError, TransientError: as `read`.
    """
    if not is_remote(path):
      self.patiently(lambda: check_regular(path), path)
      return path
    stamp = self._remotely(lambda: _remote_stamp(path), path)
    name = hashlib.sha256(f"{path}\0{stamp}".encode()).hexdigest()[:24]
    target = self._cache / f"{name}{pathlib.PurePosixPath(path).suffix}"
    with self._lock:
      if not target.exists():
        data = self.read(path, limited=False)
        self.patiently(lambda: self._keep(target, data), str(target))
      os.utime(target)
    return str(target)

  def _keep(self, target: pathlib.Path, data: bytes) -> None:
    self._cache.mkdir(parents=True, exist_ok=True)
    self._make_room(len(data))
    with tempfile.NamedTemporaryFile(dir=self._cache, delete=False) as file:
      try:
        file.write(data)
        file.close()
        os.replace(file.name, target)
      except BaseException:
        os.unlink(file.name)
        raise

  def patiently(
    self,
    call: Callable[[], T],
    path: str,
    passing: Callable[[BaseException], bool] = is_transient,
  ) -> T:
    """The result of a read, which is retried after transient errors.

    Args:
      call: reads; must be safe to repeat.
      path: of the file, for messages.
      passing: whether an error is transient.

    Raises:
      DecodeError: for permanent errors (no such file, no permission, ...).
      TransientError: when the time for retries is over.
    """

    def attempt() -> T:
      with waiting():
        return call()

    def sleep(seconds: float) -> None:
      with waiting():
        time.sleep(seconds)

    try:
      return wait_out(
        attempt,
        f"reading {short(path)}",
        patience=self._patience,
        passing=passing,
        note=lambda text: say(f"mico-jax: {text}"),
        sleep=sleep,
      )
    except (DecodeError, TransientError):
      raise
    except OSError as error:
      text = error.strerror or " ".join(str(error).split())[:200]
      if isinstance(error, FileNotFoundError) and not error.strerror:
        text = "does not exist"
      raise DecodeError(
        f"{short(path)}: {text or type(error).__name__}."
      ) from error
    except ValueError as error:  # a NUL or a lone surrogate in the name
      raise DecodeError(f"{short(path)}: {error}.") from error

  def _remotely(self, function: Callable[[], T], path: str) -> T:
    try:
      return self.patiently(
        lambda: call_with_timeout(function, self._timeout, short(path)),
        path,
        passing=_may_pass,
      )
    except ImportError as error:  # no client for this scheme
      raise ConfigError(f"{short(path)}: {error}") from error

  def _make_room(self, size: int) -> None:
    files = []
    for file in self._cache.iterdir():
      with contextlib.suppress(FileNotFoundError):  # by another process
        status = file.stat()
        files.append((status.st_mtime, status.st_size, file))
    total = sum(s for _, s, _ in files) + size
    for _, old, file in sorted(files):
      if total <= self._limit:
        return
      with contextlib.suppress(FileNotFoundError):
        file.unlink()
      total -= old


def _may_pass(error: BaseException) -> bool:
  """Whether a remote store's error is transient: all but the permanent ones."""
  permanent = (
    DecodeError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ValueError,
  )
  return is_transient(error) or not isinstance(error, permanent)


def _read_local(path: str, limit: int) -> bytes:
  size = check_regular(path, limit)
  with open(path, "rb") as file:
    data = file.read(size + 1)
  if len(data) > size:  # files in /proc report 0 bytes and hold more
    raise DecodeError(f"{short(path)}: holds more than its {size} bytes.")
  return data


def _read_remote(path: str) -> bytes:
  if path.split("://")[0] in _EPATH_SCHEMES:
    from etils import epath

    return epath.Path(path).read_bytes()
  import fsspec

  filesystem, name = fsspec.core.url_to_fs(path)
  return filesystem.cat_file(name)


def _remote_stamp(path: str) -> str:
  """Text that changes with a remote file: its size and its time or tag."""
  if path.split("://")[0] in _EPATH_SCHEMES:
    from etils import epath

    stat = epath.Path(path).stat()
    return f"{stat.length} {stat.mtime}"
  import fsspec

  fs, name = fsspec.core.url_to_fs(path)
  info = fs.info(name)
  tags = [info.get(k) for k in ("size", "etag", "mtime", "created")]
  return " ".join(map(str, tags))
