"""Ids that occur more than once, counted in bounded memory."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

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
  hashes: Hashes, rows: np.ndarray | None = None, named: int = 3
) -> Repeats:
  """Ids that occur more than once.

  Args:
    hashes: int64, `hash_of` the id of each row, or `NO_ID`.
    rows: which of them; None: all.
    named: how many are named.
  """
  total = len(hashes) if rows is None else len(rows)
  # A power of two: which pass a value is of, its lowest bits tell.
  passes = 1 << max(-(-total // _MOST) - 1, 0).bit_length()
  count = most = 0
  first: list[int] = []
  for number in range(passes):
    values, starts, counts = _distinct(hashes, rows, total, passes, number)
    again = (counts > 1) & (values != NO_ID)
    if again.any():
      count += int(again.sum())
      most = max(most, int(counts[again].max()))
      first = sorted([*first, *np.sort(starts[again])[:named].tolist()])[:named]
  return Repeats(count, most, tuple(first))


def _distinct(
  hashes: Hashes,
  rows: np.ndarray | None,
  total: int,
  passes: int,
  number: int,
) -> tuple[Any, Any, Any]:
  """Distinct values of one pass, their first place and how often they occur."""
  kept: list[tuple[Any, Any, Any]] = []
  held = 0
  for start in range(0, total, _MOST):
    end = min(start + _MOST, total)
    part = hashes[start:end] if rows is None else hashes[rows[start:end]]
    place = np.arange(start, end)
    if passes > 1:
      mine = np.flatnonzero(part & (passes - 1) == number)
      part, place = part[mine], place[mine]
    kept.append((part, place, None))
    held += len(part)
    if held > 2 * _MOST:  # many equal ones: only how often is kept
      kept = [_merged(kept)]
      held = len(kept[0][0])
  return _merged(kept)


def _merged(parts: list[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
  """Distinct values, first places and counts (None: each counts once)."""
  empty = np.empty(0, np.int64)
  values = np.concatenate([empty, *(p[0] for p in parts)])
  places = np.concatenate([empty, *(p[1] for p in parts)])
  if all(p[2] is None for p in parts):
    values, first, counts = np.unique(
      values, return_index=True, return_counts=True
    )
    return values, places[first], counts
  weights = [np.ones(len(p[0])) if p[2] is None else p[2] for p in parts]
  values, first, inverse = np.unique(
    values, return_index=True, return_inverse=True
  )
  sums = np.bincount(inverse, np.concatenate(weights), len(values))
  return values, places[first], sums.astype(np.int64)
