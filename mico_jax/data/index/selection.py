"""Which samples of an index a source reads: its split and `where`.

Small selections are made when a source is opened; those of large ones are kept
in the user's cache, by the source's SHA-256 and what selects.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mico_jax.data.identity import tell
from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.index.places import SUFFIX, alone, index_folder, note_use
from mico_jax.data.index.progress import Progress
from mico_jax.data.index.repeats import Hashes, Repeats, find_repeats

_KEPT = 20_000  # samples from which on a selection is kept
_VERSION = "selection.1"


class Selection(NamedTuple):
  """Rows of an index.

  Attributes:
    rows: int32 or int64, in order; None: all.
    count: how many.
    repeats: the ids among them that occur more than once; `first` counts
      within the selection.
  """

  rows: np.ndarray | None
  count: int
  repeats: Repeats

  def row(self, index: int) -> int:
    """The row of a sample."""
    if not -self.count <= index < self.count:
      raise IndexError(index)
    if self.rows is not None:
      return int(self.rows[index])
    return index + self.count if index < 0 else index


def select(
  total: int,
  key: Mapping[str, Any],
  pick: Callable[[], Iterator[np.ndarray]] | None,
  hashes: Callable[[], Hashes],
) -> Selection:
  """The selection of a source.

  Args:
    total: rows of its index.
    key: what it depends on: SHA-256 of the index, split, where.
    pick: gives the chosen rows, in order and piece by piece; None: all.
    hashes: int64, `hash_of` the ids of all rows.
  """
  if total < _KEPT:
    rows = None
    if pick is not None:
      rows = np.concatenate([np.empty(0, np.int64), *pick()])
      rows = None if len(rows) == total else rows
    count = total if rows is None else len(rows)
    return Selection(rows, count, find_repeats(hashes(), rows))
  text = json.dumps([_VERSION, dict(key)], sort_keys=True, default=list)
  name = hashlib.sha256(text.encode()).hexdigest()[:32]
  place = index_folder() / f"{name}{SUFFIX}"
  with alone(place):
    try:
      return _opened(place)
    except (OSError, ValueError, KeyError, TypeError):
      pass  # none yet
    return _made(total, place, pick, hashes)


def _made(
  total: int,
  place: pathlib.Path,
  pick: Callable[[], Iterator[np.ndarray]] | None,
  hashes: Callable[[], Hashes],
) -> Selection:
  writer = Writer(rows="<i4" if total < 2**31 else "<i8")
  try:
    for piece in pick() if pick is not None else ():
      writer.add(rows=piece)
    count = writer.size("rows") if pick is not None else total
    if count == total:
      writer.close()
      writer, pick = Writer(rows="<i4"), None
    rows = None if pick is None else writer.mapped("rows")
    with Progress(count, "looking for ids that repeat") as progress:
      repeats = find_repeats(hashes(), rows, progress=progress.update)
    meta = {"count": count, "all": rows is None, "repeats": list(repeats)}
    try:
      writer.save(place, meta)
    except OSError as error:
      tell(f"the selection {place} is not kept: {error.strerror or error}")
      return Selection(rows, count, repeats)
    del rows
    return _opened(place)
  finally:
    writer.close()


def _opened(place: pathlib.Path) -> Selection:
  columns = Columns.open(place)
  note_use(place)
  meta = columns.meta
  count, most, first = meta["repeats"]
  rows = None if meta["all"] else columns["rows"]
  return Selection(rows, meta["count"], Repeats(count, most, tuple(first)))
