"""Samples of a task by the length of their texts (`data.text_buckets`).

The text towers compute every position of a batch, padding too. With buckets a
batch holds samples whose texts fit one length, and is padded to that. Which
class a sample belongs to is fixed by the longest text that a task may draw of
it, so no host needs to see the rows of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Int

from mico_jax.data.index.columns import Columns

Rows = Mapping[str, Int[np.ndarray, " N"]]


@dataclass(frozen=True)
class Classes:
  """The samples of a task's sources, in classes by length.

  Attributes:
    limits: most tokens of each class but the last, ascending; the last holds
      all longer texts.
    rows: source -> its samples, class by class.
    ends: source -> where each class ends in its `rows`.
    files: source -> file of columns that holds its `rows`, which worker
      processes map as well; of other sources they get a copy.
  """

  limits: tuple[int, ...]
  rows: Rows
  ends: Mapping[str, tuple[int, ...]]
  files: Mapping[str, str] = field(default_factory=dict)

  def __getstate__(self) -> dict[str, Any]:
    """Rows that a file holds do not travel."""
    rows = {n: r for n, r in self.rows.items() if n not in self.files}
    return {**self.__dict__, "rows": rows}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Maps the rows that a file holds."""
    mapped = {
      name: Columns.open(file)["rows"] for name, file in state["files"].items()
    }
    # In the order of the sources, which is part of the order of data.
    rows = {**state["rows"], **mapped}
    state = {**state, "rows": {name: rows[name] for name in state["ends"]}}
    self.__dict__.update(state)

  def up_to(self, source: str, length: int) -> Int[np.ndarray, " N"] | None:
    """The samples whose texts fit a length; None: all (length 0)."""
    if not length:
      return None
    return self.rows[source][: self.ends[source][self.limits.index(length)]]

  def merged(
    self, weights: Mapping[str, int], batch_size: int
  ) -> list[tuple[int, Rows]]:
    """Length (0: the last) and samples of each class that is used.

    A class that is too small to fill a batch without reading a sample twice is
    joined to the next longer one; if that is the last one, to the one before.

    Args:
      weights: of the sources.
      batch_size: rows of a batch.
    """
    used: list[tuple[int, int]] = []  # first and last class of those joined
    first, last = 0, len(self.limits)
    for number in range(last + 1):
      if self._fills(first, number, weights, batch_size):
        used.append((first, number))
        first = number + 1
    if first <= last:  # too few of the longest are left
      first = used.pop()[0] if used else 0
      used.append((first, last))
    return [
      ((*self.limits, 0)[end], dict(self._slices(begin, end)))
      for begin, end in used
    ]

  def _slices(
    self, begin: int, end: int
  ) -> Iterator[tuple[str, Int[np.ndarray, " N"]]]:
    for name, rows in self.rows.items():
      start = self.ends[name][begin - 1] if begin else 0
      yield name, rows[start : self.ends[name][end]]

  def _fills(
    self, begin: int, end: int, weights: Mapping[str, int], batch_size: int
  ) -> bool:
    """Whether the samples of some classes together fill a batch."""
    there = {name: len(rows) for name, rows in self._slices(begin, end)}
    size = {name: len(rows) for name, rows in self.rows.items()}
    parts = {n: Fraction(weights[n] * there[n], size[n]) for n in there}
    total = sum(parts.values())
    return total > 0 and all(
      there[n] >= min(size[n], batch_size * part / total)
      for n, part in parts.items()
    )
