"""Data source of Parquet files with media in their columns."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import describe
from mico_jax.data.references import FileReader, parent
from mico_jax.data.sources.arrow import (
  STATUS,
  SUCCESS,
  ArrowSource,
  is_empty,
)
from mico_jax.data.sources.shards import expand
from mico_jax.data.storage import Storage, is_remote, short
from mico_jax.modalities import DecodeError

_KEPT = 256 << 20  # bytes of row groups that are kept in memory
_LARGE = 64 << 20  # bytes of a row group from which shuffled reads are slow


class ParquetSource(ArrowSource):
  """Parquet files with columns of bytes, as Hugging Face and img2dataset write.

  `path` names files or patterns. Columns are found as Hugging Face and
  img2dataset name them, or by `fields` and `captions`. Rows of img2dataset
  whose `status` is not "success" are left out. A read takes the row group that
  holds the sample; for shuffled reads of large groups `mico-jax data convert`
  makes shards.
  """

  kind: ClassVar = "parquet"
  reads: ClassVar = ("root",)

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the footers of the files.

    Raises:
      ConfigError: if one is no Parquet file, or their columns differ.
    """
    import pyarrow.parquet as pq

    self._name, self._config, self._lock = name, config, threading.RLock()
    self._kept: OrderedDict[tuple[int, int, tuple[str, ...]], Any] = (
      OrderedDict()
    )
    self._tables: list[Any] = []
    digest = hashlib.sha256()
    paths = _files(config.path, name)
    groups: list[tuple[int, int, int]] = []  # file, row group, first row
    count, largest = 0, 0
    for number, path in enumerate(paths):
      try:
        storage.stat(path)  # refuses what is no regular file
        with storage.open(path) as file:
          digest.update(_footer(file))
        source = storage.open(path) if is_remote(path) else path
        table = pq.ParquetFile(source)
      except Exception as error:  # pyarrow raises many kinds
        raise ConfigError(
          f"data.sources.{name}.path: {short(path)}: not readable as Parquet: "
          f"{describe(error)}"
        ) from error
      if not number:
        self._take_schema(table.schema_arrow)
      elif table.schema_arrow.names != self._schema_names:
        raise ConfigError(
          f"data.sources.{name}.path: {short(path)} has other columns than "
          f"{short(paths[0])}; make them sources of their own."
        )
      self._tables.append(table)
      for group in range(table.metadata.num_row_groups):
        groups.append((number, group, count))
        count += table.metadata.row_group(group).num_rows
        largest = max(largest, table.metadata.row_group(group).total_byte_size)
    self._paths = paths
    self._groups = np.asarray(groups, np.int64).reshape(-1, 3)
    self._files = FileReader(parent(paths[0]), config.root, storage, name)
    self.sha256 = digest.hexdigest()
    if largest > _LARGE:
      self._note(
        f"a read of a sample takes a row group of up to {largest >> 20} MiB; "
        f"for shuffled reads: mico-jax data convert --from parquet --path "
        f"{config.path!r} --out DIR."
      )
    self._choose(
      count,
      splits="split" in self._schema_names,
      rows=self._successes(count) if self._has_status else None,
    )
    if self._id_column:
      self._tell_repeated(lambda: self._values(self._id_column))

  def _successes(self, count: int) -> np.ndarray:
    """The rows of img2dataset's downloads that succeeded."""
    states = (state == SUCCESS for state in self._values(STATUS))
    rows = np.flatnonzero(np.fromiter(states, bool))
    if len(rows) < count:
      self._note(
        f"{count - len(rows)} of {count} rows are left out, as their status is "
        f"not {SUCCESS!r} (downloads that failed)."
      )
    return rows

  def _values(self, name: str) -> Iterator[Any]:
    """A column of all files, piece by piece."""
    for number, table in enumerate(self._tables):
      try:
        for batch in table.iter_batches(columns=[name]):
          yield from batch.column(0).to_pylist()
      except Exception as error:
        raise ConfigError(
          f"data.sources.{self._name}.path: {short(self._paths[number])}: "
          f"{describe(error)}"
        ) from error

  def _place(self, row: int) -> tuple[int, int, int]:
    """File, row group, and row within it."""
    at = int(np.searchsorted(self._groups[:, 2], row, side="right")) - 1
    while at and self._groups[at, 2] > row:
      at -= 1
    number, group, first = self._groups[at].tolist()
    return number, group, row - first

  def _group(self, number: int, group: int, columns: Sequence[str]) -> Any:
    """Columns of a row group; the last ones read are kept."""
    place = (number, group, tuple(columns))
    with self._lock:
      if place not in self._kept:
        try:
          table = self._tables[number].read_row_group(
            group, columns=list(columns), use_threads=False
          )
          table.validate(full=True)
        except Exception as error:
          raise DecodeError(
            f"{short(self._paths[number])}, row group {group}: "
            f"{describe(error)}"
          ) from error
        self._kept[place] = table
        while (
          len(self._kept) > 1
          and sum(t.nbytes for t in self._kept.values()) > _KEPT
        ):
          self._kept.popitem(last=False)
      self._kept.move_to_end(place)
      return self._kept[place]

  def _cells(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
    number, group, at = self._place(row)
    table = self._group(number, group, columns)
    return {name: table.column(i)[at].as_py() for i, name in enumerate(columns)}

  def _empty(self, row: int) -> set[str]:
    if not self._columns:
      return set()
    number, group, at = self._place(row)
    empty = set()
    for column in dict.fromkeys(self._columns.values()):
      if self._may_be_null(number, group, column):
        table = self._group(number, group, [column])
        if is_empty(table.column(0)[at]):
          empty.add(column)
    return empty

  def _may_be_null(self, number: int, group: int, column: str) -> bool:
    """Whether the statistics of a row group allow nulls in a column."""
    metadata = self._tables[number].metadata.row_group(group)
    for i in range(metadata.num_columns):
      part = metadata.column(i)
      if part.path_in_schema.split(".")[0] == column:
        facts = part.statistics
        if facts is None or not facts.has_null_count or facts.null_count:
          return True
    return False


def _files(path: str, name: str) -> list[str]:
  """The files of a source's path."""
  import os

  if not is_remote(path) and os.path.isdir(path):
    raise ConfigError(
      f"data.sources.{name}.path: {path} is a folder; name its files, such as "
      f"{os.path.join(path, 'train-*.parquet')!r}. (A folder written by "
      "save_to_disk is of kind 'hf_disk'.)"
    )
  return expand(path, name)


def _footer(file: io.BufferedIOBase) -> bytes:
  """The footer of a Parquet file, which holds its schema and offsets."""
  end = file.seek(0, 2)
  file.seek(max(0, end - 8))
  size = int.from_bytes(file.read(4), "little")
  file.seek(max(0, end - 8 - size))
  return file.read(size + 8)
