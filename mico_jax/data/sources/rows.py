"""Base class of sources whose samples are rows: of a table, a list, a folder.

A row has fields, and modalities whose media are read when asked for. Empty
cells, nulls and NaN (which pandas writes for them) are missing fields.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.identity import tell, tell_repeated
from mico_jax.data.records import (
  Record,
  id_of,
  make_record,
  matches,
  media_fields,
)
from mico_jax.data.references import FileReader
from mico_jax.data.sources.base import SourceKind
from mico_jax.modalities import MODALITIES, DecodeError

Media = Mapping[str, Callable[[], Any]]
_NAMED = 3  # most items listed in a message
_LARGE = 256 << 20  # bytes of rows in memory, of which something is said


def is_missing(value: Any) -> bool:
  """Whether a cell holds nothing: None, empty text or NaN."""
  if isinstance(value, float):
    return math.isnan(value)
  return value is None or (isinstance(value, str) and not value.strip())


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that hold something; of lists, the items that do."""
  kept = {}
  for name, value in fields.items():
    if isinstance(value, (list, tuple)):
      value = [item for item in value if not is_missing(item)] or None
    if not is_missing(value):
      kept[str(name)] = value
  return kept


def some(names: Sequence[Any]) -> str:
  """The first names of a list, for a message."""
  shown = ", ".join(repr(str(n)[:60]) for n in names[:_NAMED])
  return shown + (", ..." if len(names) > _NAMED else "")


def joined(
  rows: Iterable[dict[str, Any]], key: str
) -> tuple[list[dict[str, Any]], int]:
  """Makes one row of the rows that name the same file.

  Values that differ, such as several captions, become a list in the order of
  the rows; rows without the field stay apart.

  Args:
    rows: fields of each.
    key: field that names the file.

  Returns:
    The rows, in the order of their first parts, and how many were joined.
  """
  kept: list[dict[str, Any]] = []
  places: dict[str, int] = {}
  parts: dict[int, list[dict[str, Any]]] = {}
  count = 0
  for row in rows:
    count += 1
    name = row.get(key)
    if name is not None and str(name) in places:
      parts.setdefault(places[str(name)], []).append(row)
      continue
    if name is not None:
      places[str(name)] = len(kept)
    kept.append(row)
  for place, others in parts.items():
    all_rows = [kept[place], *others]
    merged: dict[str, Any] = {}
    for name in dict.fromkeys(n for row in all_rows for n in row):
      values = [row[name] for row in all_rows if row.get(name) is not None]
      flat = [v for x in values for v in (x if isinstance(x, list) else [x])]
      same = all(v == values[0] for v in values)
      merged[name] = values[0] if same else flat
    kept[place] = merged
  return kept, count - len(kept)


class RowSource(SourceKind):
  """Samples that are rows; a subclass says what a row holds.

  A subclass sets `sha256` and calls `_choose` at the end of its constructor.

  Attributes:
    held: bytes of memory that a row takes in each process, about; 0: few.
  """

  held: ClassVar[int] = 0

  _name: str
  _config: SourceConfig
  _files: FileReader

  @abc.abstractmethod
  def _fields(self, row: int) -> dict[str, Any]:
    """The fields of a row; read without its media."""

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    """Modality -> reader; here: references in the fields of `config.fields`."""
    del row
    return {
      key: _reader(self._files, fields[name], key)
      for key, name in media_fields(self._config).items()
      if fields.get(name) is not None
    }

  def _id(self, row: int, fields: Mapping[str, Any]) -> str:
    """The id of a row: its field `id`, else its number."""
    return id_of(fields, f"row{row}")

  def _rows_where(self, count: int) -> Iterable[int]:
    """The rows that pass `split` and `where`; broken ones do."""
    for row in range(count):
      try:
        fields = guarded(lambda row=row: self._fields(row))
      except DecodeError:
        fields = None
      if fields is None or matches(fields, self._config):
        yield row

  def _choose(
    self, count: int, *, splits: bool = True, rows: np.ndarray | None = None
  ) -> None:
    """Selects the rows of the source.

    Args:
      count: of all rows.
      splits: whether rows may have a field `split`.
      rows: those of the split; None: all.

    Raises:
      ConfigError: if no row is left.
    """
    config = self._config
    if count * self.held > _LARGE:
      self._note(
        f"its {count} rows take about {count * self.held >> 20} MiB of memory "
        "in each process; to read them from a disk: mico-jax data convert "
        f"--from {self.kind} --path {config.path!r} --out DIR."
      )
    everything: Any = range(count) if rows is None else rows
    if config.where or (splits and config.split):
      wanted = np.ones(count, bool)
      if rows is not None:
        wanted[:] = False
        wanted[rows] = True
      everything = (row for row in self._rows_where(count) if wanted[row])
    self._rows = (
      everything
      if isinstance(everything, range)
      else np.fromiter(everything, np.int64)
    )
    if not len(self._rows):
      raise ConfigError(
        f"data.sources.{self._name}: no sample of {config.path} has "
        f"split={config.split!r} and where={dict(config.where)!r}."
      )

  def _tell_repeated(self, ids: Callable[[], Iterable[Any]]) -> None:
    """Reports the ids that occur more than once.

    Args:
      ids: gives those of all rows, chosen or not, each time that it is called.
    """
    chosen = lambda: _of_rows(ids(), self._rows)
    hashes = (-1 if i is None else hash(str(i)) for i in chosen())
    tell_repeated(
      self._name,
      np.fromiter(hashes, np.int64),
      lambda at: str(next(itertools.islice(chosen(), at, None))),
    )

  def _note(self, text: str) -> None:
    tell(f"source {self._name!r}: {text}")

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._rows)

  def record(self, index: int) -> Record:
    """Record of sample `index`.

    Raises:
      DecodeError: for fields that are broken or of a wrong type.
    """
    return guarded(lambda: self._record(int(self._rows[index])), reads=True)

  def _record(self, row: int) -> Record:
    fields = self._fields(row)
    media = self._media(row, fields)
    return make_record(self._id(row, fields), fields, media, self._config)


def _of_rows(values: Iterable[Any], rows: range | np.ndarray) -> Iterator[Any]:
  """The values of some rows, in order."""
  if isinstance(rows, range):
    yield from values
    return
  left, before = iter(values), 0
  for row in rows:
    yield next(itertools.islice(left, int(row) - before, None))
    before = int(row) + 1


def _reader(files: FileReader, reference: Any, key: str) -> Callable[[], Any]:
  return lambda: files.read(reference, objects=MODALITIES[key].objects)
