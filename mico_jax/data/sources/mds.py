"""Data source of MosaicML Streaming's shards (MDS)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax import json_text
from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data import mds_cells
from mico_jax.data.faults import describe
from mico_jax.data.index import mds, places
from mico_jax.data.index.columns import Columns
from mico_jax.data.index.shards import Shards
from mico_jax.data.references import FileReader, join
from mico_jax.data.sources.arrow import ArrowSource
from mico_jax.data.sources.rows import some
from mico_jax.data.storage import Span, Storage, is_remote, short
from mico_jax.modalities import DecodeError

_INDEX = "index.json"
_VERSION = 2
_UNPACK = {"zstd": "zstd -d", "gz": "gunzip -k", "br": "brotli -d",
           "bz2": "bunzip2 -k"}  # fmt: skip


class MdsSource(ArrowSource):
  """A folder of MDS shards with `index.json`, as MosaicML Streaming writes.

  It is the folder of the split, or one with a folder for each. Columns are
  found as for kind "parquet"; a medium of no bytes is missing. Pickled columns
  are left out, and compressed shards have to be unpacked.
  """

  kind: ClassVar = "mds"
  reads: ClassVar = ("root",)

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads `index.json` and the heads of the shards.

    Raises:
      ConfigError: for a folder without them, and for shards that are
        compressed, damaged or of different columns.
      TransientError: for storage that stays away.
    """
    self._name, self._config, self._storage = name, config, storage
    folder, entries = self._index(config)
    self.remote = is_remote(folder)
    self._take_layout(entries)
    files = self._paths(folder, entries)
    self._entries = dict(zip(files, entries, strict=True))
    try:
      self._shards = Shards(files, self._load)
    except DecodeError as error:
      raise self._error(str(error)) from error
    self.sha256 = self._shards.sha256
    place = folder if self.remote else os.path.abspath(folder)
    self._files = FileReader(place, config.root, storage, name)
    self._choose(len(self._shards), splits="split" in self._names)
    if self._id_column:
      self._tell_repeated(
        lambda: map(self._id_or_none, range(len(self._shards)))
      )

  def _error(self, text: str) -> ConfigError:
    return ConfigError(f"data.sources.{self._name}.path: {text}")

  # ----------------------------------------------------------------- index.json
  def _index(self, config: SourceConfig) -> tuple[str, list[Mapping[str, Any]]]:
    """The folder of the shards, and what is said of each."""
    tried: list[str] = []
    for folder in (posixpath.join(config.path, config.split), config.path):
      path = posixpath.join(folder, _INDEX)
      try:
        content = json_text.loads_unique(
          self._storage.read(path, limited=False)
        )
      except DecodeError as error:
        tried.append(describe(error))
        continue
      except (ValueError, RecursionError) as error:
        raise self._error(f"{short(path)}: {describe(error)}") from error
      return folder, self._checked(content, path)
    raise self._error(
      f"expected {_INDEX} in the folder, or in one of the split "
      f"{config.split!r}: {' '.join(dict.fromkeys(tried))}"
    )

  def _checked(self, content: Any, path: str) -> list[Mapping[str, Any]]:
    """The entries of `index.json`, of which all that is used is there."""
    entries = content.get("shards") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
      raise self._error(f"{short(path)} names no shards.")
    for entry in entries:
      if not isinstance(entry, dict) or (
        entry.get("format"), entry.get("version")
      ) != ("mds", _VERSION):  # fmt: skip
        raise self._error(
          f"{short(path)}: expected shards of format 'mds', version {_VERSION}."
        )
      raw, count = entry.get("raw_data"), entry.get("samples")
      if (
        not isinstance(raw, dict)
        or not isinstance(raw.get("basename"), str)
        or type(count) is not int
        or count < 0
      ):
        raise self._error(f"{short(path)}: a shard has no name or count.")
      if any(entry.get(n) != entries[0].get(n) for n in mds.LAYOUT):
        raise self._error(
          f"{short(path)}: {short(raw['basename'])} has other columns than the "
          "first shard; make them sources of their own."
        )
    return entries

  def _paths(
    self, folder: str, entries: Sequence[Mapping[str, Any]]
  ) -> list[str]:
    """The shards, all unpacked and in the folder."""
    paths: list[str] = []
    for entry in entries:
      name = entry["raw_data"]["basename"]
      if posixpath.isabs(name) or ".." in name.split("/") or "\0" in name:
        raise self._error(f"the shard {name!r:.80} leaves the folder.")
      path = join(folder, name)
      packed = entry.get("zip_data")
      if packed:
        try:
          self._storage.stat(path)
        except DecodeError as error:
          kind = str(entry.get("compression")).partition(":")[0]
          tool = _UNPACK.get(kind, f"the tool of {kind!r:.20}")
          raise self._error(
            f"{short(name)} is compressed, so that its samples cannot be read "
            f"at random; unpack all shards beside {_INDEX}: {tool} "
            f"{short(str(dict(packed).get('basename', name)))}"
          ) from error
      paths.append(path)
    return paths

  def _take_layout(self, entries: Sequence[Mapping[str, Any]]) -> None:
    """Takes names, encodings and sizes of the columns, and finds media."""
    names, encodings, sizes = (entries[0].get(n) for n in mds.LAYOUT)
    if (
      not isinstance(names, list)
      or not isinstance(encodings, list)
      or not isinstance(sizes, list)
      or not len(names) == len(encodings) == len(sizes)
      or not all(isinstance(x, str) for x in (*names, *encodings))
      or len(set(names)) < len(names)
    ):
      raise self._error(f"{_INDEX} does not say what columns there are.")
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
      try:
        wanted = mds_cells.fixed_size(encoding)
      except ValueError as error:
        raise self._error(f"column {name!r:.60}: {error}.") from error
      if size != wanted:
        raise self._error(
          f"column {name!r:.60} of {encoding!r} has {wanted or 'varying'} "
          f"bytes; {_INDEX} says {size!r:.40}."
        )
    self._names, self._sizes = names, sizes
    self._encodings = dict(zip(names, encodings, strict=True))
    kinds = {n: mds_cells.base(e) for n, e in self._encodings.items()}
    self._variable = sum(size is None for size in sizes)
    pickled = [n for n, kind in kinds.items() if kind in mds_cells.REFUSED]
    if pickled:
      self._note(f"pickled columns are left out: {some(pickled)}.")
    holds = {n: _holds(kind) for n, kind in kinds.items() if n not in pickled}
    pictures = (*mds_cells.FILES, "pil")
    features = {n: {"_type": "Image"} for n in holds if kinds[n] in pictures}
    self._take_columns(holds, features, self._encodings)

  # -------------------------------------------------------------------- samples
  def write_index(self) -> list[str]:
    """Writes the index of each shard beside it, where that may be."""
    for shard in self._shards.shards:
      self._load(shard.path, beside=True)
    return [shard.path for shard in self._shards.shards]

  def _load(self, path: str, *, beside: bool = False) -> Columns:
    try:
      return places.load(
        path,
        mds.KIND,
        self._storage,
        lambda: mds.build(path, self._storage, self._entries[path]),
        beside=beside,
      )
    except DecodeError as error:
      raise DecodeError(f"{short(path)}: {error}") from error

  def _place(self, row: int) -> tuple[str, int, int]:
    """The shard of a row, and where its sample begins and ends."""
    number, at = self._shards.place(row)
    begin, end = self._shards.columns(number)["begin"][at : at + 2].tolist()
    return self._shards.shards[number].path, begin, end

  def _layout(self, row: int) -> tuple[str, dict[str, tuple[int, int]]]:
    """The shard of a row, and the first byte and size of each cell."""
    path, begin, end = self._place(row)
    head = self._bytes(path, begin, 4 * self._variable)
    varying = iter(np.frombuffer(head, "<u4").tolist())
    at, cells = begin + 4 * self._variable, {}
    for name, size in zip(self._names, self._sizes, strict=True):
      cells[name] = (at, next(varying) if size is None else size)
      at += cells[name][1]
    if at != end:
      raise DecodeError(f"{short(path)}: the sizes of row {row} are damaged.")
    return path, cells

  def _bytes(self, path: str, offset: int, size: int) -> bytes:
    data = self._storage.read_range(path, offset, size)
    if len(data) < size:
      raise DecodeError(f"{short(path)}: cut short.")
    return data

  def _cells(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
    path, cells = self._layout(row)
    limit = self._storage.max_file_bytes
    values: dict[str, Any] = {}
    for name in columns:
      offset, size = cells[name]
      if limit and size > limit:
        raise DecodeError(
          f"column {name!r:.60} of {size} bytes exceeds "
          f"data.max_file_bytes={limit}."
        )
      data = self._bytes(path, offset, size)
      try:
        values[name] = mds_cells.decode(self._encodings[name], data)
      except DecodeError as error:
        raise DecodeError(f"column {name!r:.60}: {error}") from error
    return values

  def _content(self, value: Any) -> Any:
    """The bytes, array, or list of bytes, of a cell."""
    return value if isinstance(value, np.ndarray) else super()._content(value)

  def _empty(self, row: int) -> set[str]:
    _, cells = self._layout(row)
    return {n for n in self._columns.values() if not cells[n][1]}

  def _id_or_none(self, row: int) -> Any:
    """The id of a row; None for one that cannot be read, which is told then."""
    try:
      return self._cells(row, [self._id_column])[self._id_column]
    except DecodeError:
      return None

  def spans(self, index: int, keys: Sequence[str]) -> list[Span]:
    """See `SourceKind.spans`."""
    del keys  # a sample is read whole
    path, begin, end = self._place(int(self._rows[index]))
    return [Span(path, begin, end - begin)]


def _holds(kind: str) -> str:
  """What a column can hold of media; see `ArrowSource`."""
  if kind in mds_cells.MEDIA:
    return "bytes"
  return "paths" if kind == "str" else ""
