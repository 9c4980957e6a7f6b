"""ArrayRecord files of packed samples."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
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
from mico_jax.data.storage.sparse_memory import SparseMemory, in_memory
from mico_jax.failures import TransientError
from mico_jax.modalities import MODALITIES, DecodeError

_OPEN = 128  # files that are open at a time
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
      ConfigError: if there are none, if `where` is set, which is for building,
        or `fields` names no medium of a record.
      TransientError: for storage that stays away.
    """
    if config.where:
      raise ConfigError(
        f"data.sources.{name}.where: ArrayRecord files are not filtered when "
        "read; build them from a filtered manifest."
      )
    for key, medium in config.fields.items():
      if medium not in MODALITIES:
        raise ConfigError(
          f"data.sources.{name}.fields.{key}={medium!r}: a record holds its "
          "media by modality, as the fields of the build said; name one of "
          f"{', '.join(MODALITIES)}, or remove it."
        )
    self._config, self._storage = config, storage
    self._lock = threading.Lock()
    self._readers: OrderedDict[str, Any] = OrderedDict()
    self._chunks: OrderedDict[str, _ChunkReader] = OrderedDict()
    self._asked: set[str] = set()  # files whose ends are asked for ahead
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
    path, _, start, end, footer = self._place(index)
    with self._lock:
      known = path in self._chunks or path in self._asked
      self._asked.add(path)
    places = [(start, end)]
    if not known:  # the first row of a file asks for what opens it
      places += self._ends(path, footer)
    return [Span(path, begin, end - begin) for begin, end in places]

  def _ends(
    self, path: str, footer: tuple[int, int]
  ) -> tuple[tuple[int, int], ...]:
    """What the library reads when it opens a file: (begin, end)."""
    last = self._storage.stat(path).size - riegeli.BLOCK
    return footer, (last, last + _POSTSCRIPT)

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
      return self._read(path, at)
    except Exception as error:
      self._storage.patiently(lambda: _touch(path), path)
      first = error
    try:
      return self._read(path, at)
    except Exception as error:
      raise DecodeError(describe(error)) from first

  def _remote_blob(
    self, path: str, at: int, start: int, end: int, footer: tuple[int, int]
  ) -> bytes:
    """A record whose chunk is read, and given to the library in memory."""
    data = self._storage.read_range(path, start, end - start)
    try:
      return self._remote_reader(path, footer).read(at, start, data)
    except (DecodeError, TransientError):
      raise
    except Exception as error:  # the library says RuntimeError to all
      with self._lock:
        self._chunks.pop(path, None)
      raise DecodeError(describe(error)) from error

  def _remote_reader(self, path: str, footer: tuple[int, int]) -> _ChunkReader:
    with self._lock:
      reader = self._chunks.get(path)
      if reader is not None:
        self._chunks.move_to_end(path)
        return reader
    pieces = [
      (start, self._storage.read_range(path, start, end - start))
      for start, end in self._ends(path, footer)
    ]
    reader = _ChunkReader(self._storage.stat(path).size, pieces)
    if not in_memory():
      return reader  # for one read
    with self._lock:
      self._chunks[path] = reader
      while len(self._chunks) > _OPEN:
        self._asked.discard(self._chunks.popitem(last=False)[0])
    return reader

  def _read(self, path: str, at: int) -> bytes:
    """Record `at` of a local file."""
    from array_record.python import array_record_module

    with self._lock:
      reader = self._readers.get(path)
      if reader is not None:
        self._readers.move_to_end(path)
    if reader is None:
      reader = array_record_module.ArrayRecordReader(
        path, options=_OPTIONS, file_reader_buffer_size=_BUFFER
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


class _ChunkReader:
  """Reads records of a file of which only what says where they are is there.

  The library checks the hash of each chunk.
  """

  def __init__(self, size: int, pieces: Sequence[tuple[int, bytes]]):
    """Opens it.

    Args:
      size: of the file.
      pieces: (offset, bytes) of its end.
    """
    from array_record.python import array_record_module

    self._lock = threading.Lock()
    self._file = SparseMemory(size)
    for offset, data in pieces:
      self._file.write(offset, data)
    self._reader = array_record_module.ArrayRecordReader(
      self._file.path, options=_OPTIONS, file_reader_buffer_size=_BUFFER
    )

  def read(self, at: int, start: int, chunk: bytes) -> bytes:
    """Record `at` of the file, in a chunk that begins at `start`."""
    with self._lock:
      self._file.write(start, chunk)
      try:
        return self._reader.read([at])[0]
      finally:
        self._file.clear(start, len(chunk))


def _touch(path: str) -> None:
  """Reads a byte of a file to see whether its store is there."""
  with open(path, "rb", buffering=0) as file:
    file.read(1)
