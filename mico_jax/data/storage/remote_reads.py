"""Reads of remote files, through the block cache where that helps."""

from __future__ import annotations

import hashlib
import pathlib
import threading

from mico_jax.data.storage.blocks import BlockCache
from mico_jax.data.storage.paths import short
from mico_jax.data.storage.patience import Patience
from mico_jax.data.storage.stores import CutShortError, Stamp, Store, store_of
from mico_jax.failures import say

_TRIES = 4  # until a range that goes again and again is read past the cache
_caches: dict[tuple[pathlib.Path, int], BlockCache | None] = {}
_opening = threading.Lock()


class RemoteReads(Patience):
  """What the threads of `io_threads` do: it repeats nothing by itself.

  Attributes:
    requests: remote reads of this object so far.
    received: bytes that they gave.
  """

  def __init__(
    self,
    timeout: float,
    patience: float | None,
    folder: pathlib.Path,
    limit: int,
  ):
    """Opens nothing yet.

    Args:
      timeout: see `Patience`.
      patience: see `Patience`.
      folder: of the block cache.
      limit: of the block cache, in bytes; 0: none.
    """
    super().__init__(timeout, patience)
    self._folder, self._limit = folder, limit
    self.requests = self.received = 0

  def _reset(self) -> None:
    """What does not travel to other processes."""
    self._lock = threading.Lock()
    self._stamps: dict[str, Stamp] = {}
    self._keys: dict[str, tuple[str, int]] = {}

  def remote_stat(self, path: str) -> Stamp:
    """Size and tag of a remote file, asked for once."""
    if path not in self._stamps:
      stamp = self.remotely(lambda: store(path).stat(path), path)
      self._stamps[path] = stamp
      cache = self.cache()
      if cache is not None:
        cache.part.add(path, stamp.size)
    return self._stamps[path]

  def cache(self) -> BlockCache | None:
    """The block cache; None if there is none, which is said once."""
    key = (self._folder, self._limit)
    with _opening:
      if key not in _caches:
        _caches[key] = None
        if self._limit:
          try:
            _caches[key] = BlockCache(self._folder, self._limit)
          except OSError as error:
            say(f"mico-jax: remote data are not cached: {error}")
      return _caches[key]

  def key(self, path: str) -> tuple[str, int]:
    """Name of a remote file in the cache, and its size."""
    if path not in self._keys:
      stamp = self.remote_stat(path)
      name = f"{path}\0{stamp.size} {stamp.tag}"
      digest = hashlib.sha256(name.encode()).hexdigest()
      self._keys[path] = (digest[:32], stamp.size)
    return self._keys[path]

  def range_once(self, path: str, offset: int, end: int) -> bytes:
    """Bytes of a remote file that are needed once an epoch.

    They pass the cache by if it has no place for all that is read so.
    """
    cache, key = self.cache(), self.key(path)[0]
    if cache is not None and cache.part.holds(key, offset):
      return self.range(path, offset, end)
    return self.fetch(path, offset, end)

  def range(self, path: str, offset: int, end: int) -> bytes:
    """Bytes of a remote file, from the cache as far as they are there."""
    cache = self.cache()
    key, size = self.key(path)
    for _ in range(_TRIES if cache is not None else 0):
      assert cache is not None
      try:
        data = cache.read(key, size, offset, end)
        if data is not None:
          return data
        span = cache.missing(key, size, offset, end)
      except OSError:  # a disk that is full: without the cache
        break
      if span is None:
        continue
      start, stop = span
      if end - offset > self._limit // 2:
        break
      data = self.fetch(path, start, stop)
      try:
        fits = cache.put(key, size, start, data)
      except OSError:
        fits = False
      if start <= offset and end <= stop:
        return data[offset - start : end - start]
      if not fits:
        break
    return self.fetch(path, offset, end)

  def fetch(self, path: str, start: int, end: int) -> bytes:
    """Bytes of a remote file, past the cache."""
    data = store(path).read_range(path, start, end - start)
    self._count(len(data))
    if len(data) != end - start:
      raise CutShortError(
        f"{short(path)}: {len(data)} bytes came, {end - start} were expected"
      )
    return data

  def whole(self, path: str) -> bytes:
    """A whole remote file, past the cache."""
    data = store(path).read(path)
    self._count(len(data))
    return data

  def _count(self, size: int) -> None:
    with self._lock:
      self.requests += 1
      self.received += size


def store(path: str) -> Store:
  """The client for a path."""
  return store_of(path.split("://")[0])
