"""Samples of a source sorted into classes, by what their records say.

For that every record is read once, without media, unless the index of the
source tells. What comes of it is kept in the user's cache, by the source's
SHA-256 and all else that it depends on, where the processes of a host share it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import multiprocessing
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from mico_jax.data.identity import tell
from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.index.places import SUFFIX, alone, index_folder, note_use
from mico_jax.data.index.progress import Progress

_KEPT = 2_000  # samples from which on classes are kept
_PIECE = 4096  # samples that are looked at at a time
_MANY = 200_000  # samples from which on processes are started
_THREADS = 16  # that wait for a store
_VERSION = "classes.1"
UNKNOWN = 255  # class of a sample whose record must be read


@runtime_checkable
class Samples(Protocol):
  """What is known of a source here.

  Attributes:
    sha256: of its index.
  """

  sha256: str

  def __len__(self) -> int:
    """Number of samples."""
    ...


class Sorted(NamedTuple):
  """Samples, class by class.

  Attributes:
    rows: int32 or int64, in order within each class.
    ends: where each class ends.
    file: that holds the rows, as a column "rows"; "": none does.
  """

  rows: np.ndarray
  ends: tuple[int, ...]
  file: str = ""


def sort(
  source: Samples,
  key: Mapping[str, Any],
  count: int,
  class_of: Callable[[int], int],
  what: str,
  known: Callable[[], Iterator[np.ndarray]] | None = None,
  processes: int = 0,
) -> Sorted:
  """Sorts the samples of a source into classes.

  Args:
    source: open.
    key: what the classes depend on, besides the SHA-256 of the source.
    count: number of classes, at most 255.
    class_of: index -> class.
    what: is looked at, for messages: "captions of source 'a'".
    known: gives the classes that need no record, uint8, piece by piece in the
      order of the samples; `UNKNOWN` ones are asked of `class_of`. None: all.
    processes: that ask it, of a source of many samples whose records are local;
      `class_of` travels to them. 0: this one.
  """
  total = len(source)
  if total < _MANY or getattr(source, "remote", False):
    processes = 0
  pieces = lambda: _pieces(
    source, class_of, f"looking at {what}", known, processes
  )
  if total < _KEPT:
    return _sorted(total, count, pieces()).made()
  whole = {**key, "sha256": source.sha256, "samples": total, "classes": count}
  text = json.dumps([_VERSION, whole], sort_keys=True, default=list)
  name = hashlib.sha256(text.encode()).hexdigest()[:32]
  place = index_folder() / f"{name}{SUFFIX}"
  with alone(place):
    try:
      return _opened(place)
    except (OSError, ValueError, KeyError, TypeError):
      pass  # none yet
    made = _sorted(total, count, pieces())
    try:
      made.writer.save(place, {"ends": made.ends})
    except OSError as error:
      tell(f"{place} is not kept: {error.strerror or error}")
      return made.made()
    made.writer.close()
    return _opened(place)


def _opened(place: pathlib.Path) -> Sorted:
  columns = Columns.open(place)
  note_use(place)
  return Sorted(columns["rows"], tuple(columns.meta["ends"]), str(place))


class _Made(NamedTuple):
  writer: Writer
  ends: list[int]

  def made(self) -> Sorted:
    """In memory."""
    rows = self.writer.columns({})["rows"]
    self.writer.close()
    return Sorted(rows, tuple(self.ends))


def _sorted(total: int, count: int, pieces: Iterator[np.ndarray]) -> _Made:
  classes = Writer(number="u1")
  for piece in pieces:
    classes.add(number=piece)
  numbers = classes.mapped("number")
  writer, ends = Writer(rows="<i4" if total < 2**31 else "<i8"), []
  for number in range(count):
    for start in range(0, total, _PIECE * 256):
      part = numbers[start : start + _PIECE * 256]
      writer.add(rows=start + np.flatnonzero(part == number))
    ends.append(writer.size("rows"))
  del numbers
  classes.close()
  return _Made(writer, ends)


def _pieces(
  source: Samples,
  class_of: Callable[[int], int],
  what: str,
  known: Callable[[], Iterator[np.ndarray]] | None,
  processes: int,
) -> Iterator[np.ndarray]:
  total, remote, start = len(source), getattr(source, "remote", False), 0
  with (
    _asked(class_of, _THREADS if remote else 1, processes) as each,
    Progress(total, what) as progress,
  ):
    for piece in _unknown(total) if known is None else known():
      found = piece.copy()
      open_ones = np.flatnonzero(piece == UNKNOWN)
      for first in range(0, len(open_ones), _PIECE):
        rows = open_ones[first : first + _PIECE]
        found[rows] = each(start + rows)
        progress.update(start + int(rows[-1]) + 1)
      yield found
      start += len(piece)


@contextlib.contextmanager
def _asked(
  class_of: Callable[[int], int], threads: int, processes: int
) -> Iterator[Callable[[np.ndarray], list[int]]]:
  """Asks for the classes of samples, several at a time."""
  if processes:
    with concurrent.futures.ProcessPoolExecutor(
      processes, multiprocessing.get_context("spawn"), _take, (class_of,)
    ) as pool:
      part = _PIECE // processes + 1
      yield lambda rows: list(pool.map(_ask, rows.tolist(), chunksize=part))
    return
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    each = pool.map if threads > 1 else map
    yield lambda rows: list(each(class_of, rows.tolist()))


_asks: list[Callable[[int], int]] = []  # of a process that was started for it


def _take(class_of: Callable[[int], int]) -> None:
  _asks[:] = [class_of]


def _ask(index: int) -> int:
  return _asks[0](index)


def _unknown(total: int) -> Iterator[np.ndarray]:
  for start in range(0, total, _PIECE):
    yield np.full(min(_PIECE, total - start), UNKNOWN, np.uint8)
