"""ArrayRecord files of packed samples."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import describe, guarded
from mico_jax.data.index import chunks, places
from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.index.shards import Shards
from mico_jax.data.packed import unpack
from mico_jax.data.records import Record
from mico_jax.data.sources.base import SourceKind
from mico_jax.data.sources.shards import expand
from mico_jax.data.storage import Span, Storage, is_remote, short
from mico_jax.modalities import DecodeError

_OPEN = 128  # files that are open at a time
_TRIES = 4  # reads of a chunk that goes from the cache while it is read
_OPTIONS = "readahead_buffer_size:0"
_BUFFER = 32768  # bytes


class ArrayRecordSource(SourceKind):
  """ArrayRecord files written by `mico-jax data build`.

  `path` is a file, a glob pattern, or several joined by commas. Of remote files
  only the chunks of the records that are read are copied, and their footers.
  """

  kind: ClassVar = "array_record"

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Opens the files.

    Raises:
      ConfigError: if there are none, or `where` is set (filter when building).
      TransientError: for storage that stays away.
    """
    if config.where:
      raise ConfigError(
        f"data.sources.{name}.where: ArrayRecord files are not filtered when "
        "read; build them from a filtered manifest."
      )
    self._config, self._storage = config, storage
    self._lock = threading.Lock()
    self._readers: OrderedDict[str, Any] = OrderedDict()
    try:
      paths = expand(config.path, name)
      for path in paths:
        storage.stat(path)
    except DecodeError as error:
      raise ConfigError(f"data.sources.{name}: {error}") from error
    self.remote = any(map(is_remote, paths))
    try:
      self._shards = Shards(paths, self._load)
    except DecodeError as error:  # a header or the index at the end is damaged
      raise ConfigError(
        f"data.sources.{name}.path: not readable as ArrayRecord: {error}"
      ) from error
    self.sha256 = self._shards.sha256

  def _load(self, path: str, *, beside: bool = False) -> Columns:
    try:
      return places.load(
        path,
        chunks.KIND,
        self._storage,
        lambda: self._build(path),
        beside=beside,
      )
    except DecodeError as error:
      raise DecodeError(f"{short(path)}: {error}") from error

  def _build(self, path: str) -> tuple[Writer, dict[str, Any]]:
    writer, meta = chunks.build(path, self._storage)
    if not is_remote(path):
      from array_record.python import array_record_module

      try:  # the library checks the hash of the footer
        reader = array_record_module.ArrayRecordReader(path, options=_OPTIONS)
        count = reader.num_records()
        reader.close()
      except Exception as error:
        self._storage.patiently(lambda: _touch(path), path)
        raise DecodeError(describe(error)) from error
      if count != meta["samples"]:
        raise DecodeError(f"{count} records, but {meta['samples']} in chunks.")
    return writer, meta

  def write_index(self) -> list[str]:
    """Writes the index of each file beside it, where that may be."""
    for shard in self._shards.shards:
      self._load(shard.path, beside=True)
    return [shard.path for shard in self._shards.shards]

  def former_sha256(self) -> str:
    """Over sizes, count, and the first and the last record."""
    digest, count = hashlib.sha256(), len(self)
    for shard in self._shards.shards:
      digest.update(f"{self._storage.stat(shard.path).size} ".encode())
    digest.update(str(count).encode())
    for index in (0, count - 1) if count else ():
      try:
        digest.update(self._blob(index))
      except DecodeError as error:  # one bad sample
        digest.update(type(error).__name__.encode())
    return digest.hexdigest()

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._shards)

  def record(self, index: int) -> Record:
    """Sample number `index`.

    Raises:
      DecodeError: if its bytes are damaged, or no packed sample.
    """
    data = self._blob(int(index))
    return guarded(lambda: unpack(data, self._config))

  def spans(self, index: int, keys: Sequence[str]) -> list[Span]:
    """See `SourceKind.spans`."""
    del keys  # a record is read whole
    path, _, start, end, _ = self._place(index)
    return [Span(path, start, end - start)]

  def _place(self, index: int) -> tuple[str, int, int, int, int]:
    """File, number there, where its chunk begins and ends, and the footer."""
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    number, at = self._shards.place(index % len(self))
    columns = self._shards.columns(number)
    chunk = at // columns.meta["group"]
    start, end = columns["chunk"][chunk : chunk + 2].tolist()
    footer = int(columns["chunk"][-1])
    return self._shards.shards[number].path, at, start, end, footer

  def _blob(self, index: int) -> bytes:
    path, at, start, end, footer = self._place(index)
    if is_remote(path):
      return self._remote_blob(path, at, start, end, footer)
    # The library says RuntimeError to a damaged chunk and to a store that is
    # away; the file itself tells which.
    try:
      return self._read(path, path, at)
    except Exception as error:
      self._storage.patiently(lambda: _touch(path), path)
      first = error
    try:
      return self._read(path, path, at)
    except Exception as error:
      raise DecodeError(describe(error)) from first

  def _remote_blob(
    self, path: str, at: int, start: int, end: int, footer: int
  ) -> bytes:
    """A record through the sparse file of the cache, which the library opens.

    What is no longer there reads as zeros, of which the library says that they
    are damaged: it checks the hash of every chunk.
    """
    size = self._storage.stat(path).size
    for _ in range(_TRIES):
      self._present(path, start, end)
      cache = self._storage.cache()
      if cache is None:
        break
      key, _ = self._storage.key(path)
      before = cache.states(key, size, start, end)
      try:
        if path not in self._readers:
          self._present(path, footer, size)
        data = self._read(path, str(cache.file(key, size).path), at)
      except (ConfigError, DecodeError):
        raise
      except Exception as error:
        if cache.states(key, size, start, end) == before:
          raise DecodeError(describe(error)) from error
        continue
      cache.used(key, size, start, end)
      return data
    raise self._no_room(path, end - start)

  def _present(self, path: str, start: int, end: int) -> None:
    if not self._storage.make_present(path, start, end):
      raise self._no_room(path, end - start)

  def _no_room(self, path: str, size: int) -> ConfigError:
    return ConfigError(
      f"{short(path)}: data.cache_gb has no room for {size} bytes; ArrayRecord "
      "files of a store are read through the cache."
    )

  def _read(self, path: str, local: str, at: int) -> bytes:
    """Record `at` of a file; `local` is what the library opens."""
    from array_record.python import array_record_module

    with self._lock:
      reader = self._readers.get(path)
      if reader is not None:
        self._readers.move_to_end(path)
    if reader is None:
      reader = array_record_module.ArrayRecordReader(
        local, options=_OPTIONS, file_reader_buffer_size=_BUFFER
      )
      with self._lock:
        self._readers[path] = reader
        while len(self._readers) > _OPEN:
          self._readers.popitem(last=False)
    try:
      return reader.read([at])[0]
    except Exception:
      with self._lock:
        self._readers.pop(path, None)
      raise


def _touch(path: str) -> None:
  """Reads a byte of a file to see whether its store is there."""
  with open(path, "rb", buffering=0) as file:
    file.read(1)
