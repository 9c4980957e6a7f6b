"""Reading files, local or remote, with timeout, patience and a bounded cache.

A path with a scheme ("s3://", "gs://", "memory://") is remote (`stores`). Files
are read whole or in ranges; ranges of remote files pass through the block cache
of the host (`blocks`), so that a shard is never copied whole and what is near
is read once. What will be needed can be asked for ahead (`ahead`). Remote reads
are made by threads of their own (`io_threads`).

Faults that may pass are waited out (`mico_jax.failures`); what stays as it is
becomes a DecodeError. Of local files only regular ones are opened: a pipe or a
device would block, or never end.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from mico_jax.config import DataConfig
from mico_jax.data.guard import waiting
from mico_jax.data.storage.ahead import Ahead, Span
from mico_jax.data.storage.handles import Handles
from mico_jax.data.storage.io_threads import io_threads
from mico_jax.data.storage.paths import (
  MAX_FILE_BYTES,
  check_regular,
  check_size,
  is_remote,
  short,
)
from mico_jax.data.storage.range_file import RangeFile
from mico_jax.data.storage.remote_reads import RemoteReads, store
from mico_jax.data.storage.stores import Stamp
from mico_jax.files import user_cache
from mico_jax.modalities import DecodeError

_SCAN = 1 << 20  # bytes of one read of a file that is read as a whole
_handles = Handles()


class Storage(RemoteReads):
  """Reads whole files and ranges.

  Attributes:
    max_file_bytes: larger files are refused. Shards are not bound by it; their
      members are.
    requests: remote reads of this object so far.
    received: bytes that they gave.
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
      timeout: seconds per attempt at a remote store.
      patience: seconds of waiting, in all, for faults that may pass; None:
        `mico_jax.failures.patience_seconds`.
      max_file_bytes: see the class. The size of a remote file that is read
        whole is known only after it was read.
      cache_gb: limit of the block cache, GB of 2^30 bytes; 0: none.
      cache_dir: "": `mico_jax` in the user's cache folder.
    """
    folder = pathlib.Path(cache_dir or user_cache("blocks"))
    super().__init__(timeout, patience, folder, int(cache_gb * 2**30))
    self.max_file_bytes = max_file_bytes
    self._prepare()

  def _prepare(self) -> None:
    self._reset()
    self._ahead = Ahead(io_threads())

  @classmethod
  def of(cls, config: DataConfig) -> Storage:
    """The storage of a config, with its limits."""
    return cls(
      timeout=config.timeout,
      cache_gb=config.cache_gb,
      max_file_bytes=config.max_file_bytes,
    )

  def __getstate__(self) -> dict[str, Any]:
    """Locks and threads do not travel to worker processes."""
    hidden = ("_lock", "_stamps", "_keys", "_ahead")
    return {k: v for k, v in self.__dict__.items() if k not in hidden}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Restores with a lock of its own."""
    self.__dict__.update(state)
    self._prepare()

  # -------------------------------------------------------------------- files
  def read(self, path: str, *, limited: bool = True) -> bytes:
    """The content of a file.

    Args:
      path: local or remote.
      limited: to `max_file_bytes`.

    Raises:
      DecodeError: if it does not exist, is no regular file, is too large or
        cannot be read.
      TransientError: if the store does not answer in the end.
    """
    limit = self.max_file_bytes if limited else 0
    if not is_remote(path):
      return self.patiently(lambda: _read_local(path, limit), path)
    data = self._from_ahead(Span(path))
    if data is None:
      data = self.remotely(lambda: self.whole(path), path)
    check_size(path, len(data), limit)
    return data

  def stat(self, path: str) -> Stamp:
    """Size of a file, and what changes when it does.

    A remote file is asked once; the answer then stands for it.

    Raises:
      DecodeError, TransientError: as `read`.
    """
    if not is_remote(path):
      state = self.patiently(lambda: check_regular(path), path)
      return Stamp(state.st_size, str(state.st_mtime_ns))
    return self.remote_stat(path)

  def read_range(
    self, path: str, offset: int, size: int, *, cached: bool = True
  ) -> bytes:
    """Bytes of a file from `offset` on; fewer where it ends before.

    Args:
      path: local or remote.
      offset: of the first byte.
      size: number of bytes.
      cached: through the block cache, if the file is remote.

    Raises:
      DecodeError, TransientError: as `read`.
    """
    if not is_remote(path):
      return self.patiently(lambda: _handles.read(path, offset, size), path)
    end = min(offset + size, self.stat(path).size)
    if end <= offset:
      return b""
    data = self._from_ahead(Span(path, offset, end - offset))
    if data is not None:
      return data
    read = self.range if cached else self.fetch
    return self.remotely(lambda: read(path, offset, end), path)

  def open(self, path: str) -> io.BufferedIOBase:
    """A file for reading at any place, which libraries take.

    Raises:
      DecodeError, TransientError: as `read`.
    """
    return io.BufferedReader(RangeFile(self, path), 1 << 18)

  def scan(self, path: str) -> io.BufferedIOBase:
    """A remote file that is read once from start to end, past the cache."""
    return io.BufferedReader(RangeFile(self, path, cached=False), _SCAN)

  def write(self, path: str, data: bytes) -> None:
    """Replaces a remote file.

    Raises:
      DecodeError, TransientError: as `read`.
    """
    self.remotely(lambda: store(path).write(path, data), path)

  # ------------------------------------------------------------ what will come
  def plan(
    self,
    owner: Hashable,
    spans: Callable[[], Iterable[Span]],
  ) -> None:
    """Starts to read what somebody will need, and comes back at once.

    Args:
      owner: of the bytes, until `forget`.
      spans: says which; called in another thread.
    """
    self._ahead.plan(owner, lambda: self._useful(spans()), self._read_span)

  def forget(self, owner: Hashable) -> None:
    """Lets go of what was planned for somebody."""
    self._ahead.done(owner)

  def _useful(self, spans: Iterable[Span]) -> Iterator[Span]:
    """Remote spans, cut at the end of their file; local ones are announced."""
    for span in spans:
      if not is_remote(span.path):
        if span.size > 0:
          _handles.will_read(span.path, span.offset, span.size)
        continue
      if span.size >= 0:
        size = min(span.size, self.stat(span.path).size - span.offset)
        span = span._replace(size=size)
      if span.size:
        yield span

  def _read_span(self, span: Span) -> bytes:
    if span.size < 0:
      return self.whole(span.path)
    end = span.offset + span.size
    return self.range_once(span.path, span.offset, end)

  def _from_ahead(self, span: Span) -> bytes | None:
    """Bytes that were asked for; None if they were not, or did not come."""
    taken = self._ahead.take(span)
    if taken is None:
      return None
    task, start = taken
    try:
      if task.future.done():
        data = task.future.result()
      else:
        with waiting():
          data = io_threads().wait(task, self._timeout, short(span.path))
    except BaseException as error:
      if not isinstance(error, Exception):
        raise
      return None  # read again, with patience
    if span.size < 0:
      return data
    first = span.offset - start
    piece = data[first : first + span.size]
    return piece if len(piece) == span.size else None


def _read_local(path: str, limit: int) -> bytes:
  size = check_regular(path, limit).st_size
  with open(path, "rb") as file:
    data = file.read(size + 1)
  if len(data) > size:  # files of the kernel say 0 bytes and hold more
    raise DecodeError(f"{short(path)}: holds more than its {size} bytes.")
  return data
