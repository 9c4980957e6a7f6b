"""ArrayRecord files of packed samples."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import describe, guarded
from mico_jax.data.identity import tell_split
from mico_jax.data.index import chunks, riegeli
from mico_jax.data.index import places as index_places
from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.index.shards import Shards
from mico_jax.data.packed import unpack
from mico_jax.data.records import Record
from mico_jax.data.sources.base import SourceKind
from mico_jax.data.sources.shards import expand
from mico_jax.data.storage import Span, Storage, is_remote, short
from mico_jax.modalities import DecodeError

_OPEN = 128  # files that are open at a time
_TRIES = 3  # reads of a chunk that goes from the cache while it is read
_POSTSCRIPT = 4096  # bytes of the last block that say something
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
      ConfigError: if there are none, or `where` or `fields` is set, which are
        for building.
      TransientError: for storage that stays away.
    """
    if config.where:
      raise ConfigError(
        f"data.sources.{name}.where: ArrayRecord files are not filtered when "
        "read; build them from a filtered manifest."
      )
    if config.fields:
      raise ConfigError(
        f"data.sources.{name}.fields={dict(config.fields)}: a record holds its "
        "media by modality, as the fields of the build said; remove it."
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
      return index_places.load(
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
    data, config = self._blob(int(index)), self._config
    record = guarded(lambda: unpack(data, config))
    tell_split(config.path, config.split, record.fields.get("split"))
    return record

  def spans(self, index: int, keys: Sequence[str]) -> list[Span]:
    """See `SourceKind.spans`."""
    del keys  # a record is read whole
    path, _, start, end = self._place(index)[:4]
    return [Span(path, start, end - start)]

  def plan(self, owner: Hashable, index: int, keys: Sequence[str]) -> None:
    """See `SourceKind.plan`."""
    if self.remote:
      spans = lambda: self.spans(index, keys)
      self._storage.plan(owner, spans, into_file=True)

  def _place(self, index: int) -> tuple[str, int, int, int, tuple[int, int]]:
    """File, number there, where its chunk begins and ends, and the footer."""
    if not -len(self) <= index < len(self):
      raise IndexError(index)
    number, at = self._shards.place(index % len(self))
    columns = self._shards.columns(number)
    chunk = at // columns.meta["group"]
    start, end = columns["chunk"][chunk : chunk + 2].tolist()
    footer = int(columns["chunk"][-1]), columns.meta["footer_end"]
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
    self, path: str, at: int, start: int, end: int, footer: tuple[int, int]
  ) -> bytes:
    """A record through the sparse file of the cache, which the library opens.

    Blocks that went from the cache meanwhile read as zeros, of which the
    library says that they are damaged, since it checks the hash of every chunk;
    then the bytes are read apart, which tells whether they are.
    """
    storage, size = self._storage, self._storage.stat(path).size
    last = size - riegeli.BLOCK
    needed = [(start, end), footer, (last, last + _POSTSCRIPT)]
    for _ in range(_TRIES):
      ranges = needed if path not in self._readers else needed[:1]
      cache = storage.cache()
      if cache is None:
        break
      if not all(storage.make_present(path, *places) for places in ranges):
        break
      key, _ = storage.key(path)
      try:
        data = self._read(path, str(cache.file(key, size).path), at)
      except OSError:
        break
      except Exception:  # the library says RuntimeError to all
        continue
      cache.used(key, size, start, end)
      return data
    pieces = [
      (a, storage.read_range(path, a, b - a, cached=False)) for a, b in needed
    ]
    try:
      return _read_apart(size, pieces, at)
    except Exception as error:
      raise DecodeError(describe(error)) from error

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


def _read_apart(
  size: int, pieces: Sequence[tuple[int, bytes]], at: int
) -> bytes:
  """A record of a file of which some pieces are known: (offset, bytes)."""
  from array_record.python import array_record_module

  with tempfile.NamedTemporaryFile() as file:
    os.ftruncate(file.fileno(), size)
    for offset, data in pieces:
      file.seek(offset)
      file.write(data)
    file.flush()
    reader = array_record_module.ArrayRecordReader(
      file.name, options=_OPTIONS, file_reader_buffer_size=_BUFFER
    )
    try:
      return reader.read([at])[0]
    finally:
      reader.close()


def _touch(path: str) -> None:
  """Reads a byte of a file to see whether its store is there."""
  with open(path, "rb", buffering=0) as file:
    file.read(1)
