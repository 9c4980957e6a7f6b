"""Ids that occur more than once, counted in bounded memory and one pass.

Many values are dealt to buckets by their lowest bits, in a temporary file, and
each bucket is sorted by itself: 8 bytes a sample are written and read once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from mico_jax.data.index import maps

NO_ID = -1
_MOST = 4_000_000  # values that are sorted at once


@runtime_checkable
class Hashes(Protocol):
  """int64 values that are read by ranges or by rows in order."""

  def __len__(self) -> int:
    """How many there are."""
    ...

  def __getitem__(self, rows: Any, /) -> Any:
    """Some of them."""
    ...


class Repeats(NamedTuple):
  """Ids that repeat.

  Attributes:
    count: how many ids occur more than once.
    most: how often the most frequent one does.
    first: rows of the first of them, in order.
  """

  count: int
  most: int
  first: tuple[int, ...]


def hash_of(text: str) -> int:
  """64 bits of an id, the same everywhere; never `NO_ID`."""
  data = text.encode("utf-8", "surrogatepass")
  digest = hashlib.blake2b(data, digest_size=8).digest()
  value = int.from_bytes(digest, "little", signed=True)
  return value if value != NO_ID else -2


def find_repeats(
  hashes: Hashes,
  rows: np.ndarray | None = None,
  named: int = 3,
  progress: Callable[[int], None] | None = None,
) -> Repeats:
  """Ids that occur more than once.

  Args:
    hashes: int64, `hash_of` the id of each row, or `NO_ID`.
    rows: which of them, in order; None: all.
    named: how many are named.
    progress: is told how many values were looked at.
  """
  total = len(hashes) if rows is None else len(rows)
  pieces = _Pieces(hashes, rows, total)
  count = most = 0
  first: list[tuple[int, int]] = []  # piece and value
  with _buckets(pieces, progress) as buckets:
    for number, segments in enumerate(buckets, 1):
      values, counts = _repeated(segments())
      if progress is not None:  # dealing them was the other half
        progress((total + total * number // pieces.buckets) // 2)
      if len(values):
        count += len(values)
        most = max(most, int(counts.max()))
        first += _first(segments(), values, named)
  return Repeats(count, most, tuple(_places(pieces, first, named)))


class _Pieces:
  """Values by pieces of `_MOST` rows."""

  def __init__(self, hashes: Hashes, rows: np.ndarray | None, total: int):
    self._hashes, self._rows, self.total = hashes, rows, total
    self.count = -(-total // _MOST)
    # A power of two: which bucket a value is in, its lowest bits tell.
    self.buckets = 1 << max(self.count - 1, 0).bit_length()

  def __getitem__(self, number: int) -> np.ndarray:
    start = number * _MOST
    end = min(start + _MOST, self.total)
    rows = slice(start, end) if self._rows is None else self._rows[start:end]
    part = np.array(self._hashes[rows])
    maps.release()
    return part


# Gives the values of a bucket, a segment for each piece, in order.
_Segments = Callable[[], Iterator[np.ndarray]]


@contextlib.contextmanager
def _buckets(
  pieces: _Pieces, progress: Callable[[int], None] | None
) -> Iterator[Iterator[_Segments]]:
  """The values, but `NO_ID`, in buckets of about `_MOST`."""
  count = pieces.buckets

  def again(bucket: int) -> Iterator[np.ndarray]:
    for number in range(pieces.count):
      part = pieces[number]
      yield part[(part & (count - 1) == bucket) & (part != NO_ID)]

  if count == 1:
    yield iter((lambda: again(0),))
    return
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(_temporary())
      ends = _dealt(pieces, file.fileno(), progress)
    except OSError:  # no room on the disk: the values are read for each bucket
      yield ((lambda b=b: again(b)) for b in range(count))
      return

    def kept(bucket: int) -> Iterator[np.ndarray]:
      for number in range(pieces.count):
        start, end = ends[number, bucket : bucket + 2].tolist()
        data = os.pread(file.fileno(), (end - start) * 8, start * 8)
        yield np.frombuffer(data, np.int64)

    yield ((lambda b=b: kept(b)) for b in range(count))


def _temporary() -> Any:
  """A file on a disk: the system's folder for such files may be memory."""
  from mico_jax.data.storage import user_cache

  folder = user_cache("index")
  folder.mkdir(parents=True, exist_ok=True)
  return tempfile.TemporaryFile(dir=folder)


def _dealt(
  pieces: _Pieces, file: int, progress: Callable[[int], None] | None
) -> np.ndarray:
  """Writes the values of each piece by bucket; where each bucket begins.

  Returns:
    Row n: the places of the buckets of piece n, and its end.
  """
  count, place = pieces.buckets, 0
  ends = np.zeros((pieces.count, count + 1), np.int64)
  kind = np.uint8 if count <= 256 else np.uint16
  for number in range(pieces.count):
    part = pieces[number]
    part = part[part != NO_ID]
    bucket = (part & (count - 1)).astype(kind)
    # Stable, so that a bucket stays in the order of the rows.
    data = part[np.argsort(bucket, kind="stable")]
    ends[number, 0] = place
    ends[number, 1:] = place + np.cumsum(np.bincount(bucket, minlength=count))
    _write(file, data, place * 8)
    place += len(part)
    if progress is not None:
      progress(pieces.total * (number + 1) // pieces.count // 2)
  return ends


def _write(file: int, data: np.ndarray, offset: int) -> None:
  view = data.view(np.uint8).data
  while len(view):
    done = os.pwrite(file, view, offset)
    view, offset = view[done:], offset + done


def _repeated(segments: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Values that occur more than once, sorted, and how often they do."""
  values, counts = np.empty(0, np.int64), np.empty(0, np.int64)
  held: list[np.ndarray] = []
  for segment in segments:
    held.append(segment)
    if sum(map(len, held)) > 2 * _MOST:  # many equal ones
      values, counts = _counted(values, counts, held)
      held = []
  values, counts = _counted(values, counts, held)
  return values[counts > 1], counts[counts > 1]


def _counted(
  values: np.ndarray, counts: np.ndarray, more: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Distinct values and their counts, with more values."""
  found = np.concatenate([np.empty(0, np.int64), *more])
  found.sort()
  if not len(found):
    return values, counts
  starts = np.flatnonzero(np.append(True, found[1:] != found[:-1]))
  times = np.diff(starts, append=len(found))
  if not len(values):
    return found[starts], times
  both = np.concatenate([values, found[starts]])
  weights = np.concatenate([counts, times])
  merged, inverse = np.unique(both, return_inverse=True)
  return merged, np.bincount(inverse, weights, len(merged)).astype(np.int64)


def _first(
  segments: Iterator[np.ndarray], values: np.ndarray, named: int
) -> list[tuple[int, int]]:
  """The first of some values in a bucket: piece, value."""
  seen: dict[int, int] = {}
  for number, segment in enumerate(segments):
    for value in segment[np.isin(segment, values)].tolist():
      seen.setdefault(value, number)
      if len(seen) == named:
        break
    if len(seen) == named:
      break
  return [(number, value) for value, number in seen.items()]


def _places(
  pieces: _Pieces, first: list[tuple[int, int]], named: int
) -> list[int]:
  """The lowest rows of values, of which the piece is known."""
  found: list[int] = []
  for number in sorted({n for n, _ in first}):
    if len(found) >= named:
      break
    part = pieces[number]
    mine = [value for n, value in first if n == number]
    rows = np.flatnonzero(np.isin(part, mine))
    _, places = np.unique(part[rows], return_index=True)
    found += sorted((rows[places] + number * _MOST).tolist())
  return found[:named]
