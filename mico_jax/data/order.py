"""Order of the samples: what a step reads is a pure function of (seed, step).

There is no state, so a run can resume at any step on any number of processes,
and a past step can be listed without replaying the ones before it.

1. Tasks have integer weights. `choose` splits the weights into two halves
   recursively; of the first n picks, floor((n a + w // 2) / w) go to the half
   of weight a out of w. After each full cycle of the weights the counts are
   exact. A pick also gives how often its item was picked before.
2. The p-th sample of a task picks its source in the same way, which gives the
   position q within that source.
3. The epoch is q // n for a source of n samples, and the sample is element q of
   Grain's `MapDataset.range(n).seed(...).shuffle().repeat()`: a new permutation
   for each epoch, without memory. It depends on Grain's minor version, which is
   therefore pinned.

Names are sorted, so the order of a config's entries does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from mico_jax.config import Config, ConfigError

SUBSTITUTES = 20  # samples tried for a row until reading it is an error


def choose(weights: Sequence[int], n: int) -> tuple[int, int]:
  """The item picked n-th, and how often it was picked before.

  Args:
    weights: non-negative integers, not all zero.
    n: number of the pick, from 0.
  """
  low, high = 0, len(weights)
  total = sum(weights)
  while high - low > 1:
    middle = (low + high) // 2
    half = sum(weights[low:middle])
    before = (n * half + total // 2) // total
    after = ((n + 1) * half + total // 2) // total
    if after > before:
      high, n, total = middle, before, half
    else:
      low, n, total = middle, n - before, total - half
  return low, n


def fold(*parts: object) -> int:
  """A stable 128-bit number from the text of its arguments."""
  text = "\0".join(str(p) for p in parts)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def generator(*parts: object) -> np.random.Generator:
  """A NumPy generator keyed by its arguments, the same on every machine."""
  return np.random.Generator(np.random.PCG64(fold(*parts)))


@dataclass(frozen=True)
class Row:
  """What one row of a step's global batch reads.

  Attributes:
    row: index in the global batch.
    source: name of the data source.
    epoch: how often this task has read the whole source before.
    index: sample number in the source.
  """

  row: int
  source: str
  epoch: int
  index: int


class Order:
  """The order of a config's tasks and samples."""

  def __init__(self, config: Config, sizes: Mapping[str, int]):
    """Prepares the order.

    Args:
      config: of the run.
      sizes: source -> number of samples.

    Raises:
      ConfigError: for tasks or sources without a positive weight, unknown
        source names, or an empty source.
    """
    self._config = config
    self._tasks = sorted(config.tasks)
    self._task_weights = [config.tasks[t].steps for t in self._tasks]
    _check_weights("tasks", self._tasks, self._task_weights)
    self._sizes = dict(sizes)
    self._sources: dict[str, tuple[list[str], list[int]]] = {}
    self._shuffled = {}
    for task in self._tasks:
      weights = config.tasks[task].sources
      names = sorted(weights)
      for name in names:
        if name not in sizes:
          raise ConfigError(
            f"tasks.{task}.sources names {name!r}, which data.sources lacks; "
            f"known: {', '.join(sorted(sizes))}."
          )
        if sizes[name] < 1:
          raise ConfigError(
            f"source {name!r} has no samples; check its path, split and where."
          )
        seed = fold(config.seed, "order", task, name) % 2**31
        shuffled = grain.MapDataset.range(sizes[name]).seed(seed).shuffle()
        self._shuffled[task, name] = _place_in(shuffled, sizes[name])
      counts = [weights[n] for n in names]
      _check_weights(f"tasks.{task}.sources", names, counts)
      self._sources[task] = (names, counts)

  def task(self, step: int) -> tuple[str, int]:
    """The task of a step and the number of its steps before."""
    which, before = choose(self._task_weights, step)
    return self._tasks[which], before

  def rows(
    self, step: int, rows: Sequence[int] | None = None
  ) -> tuple[str, list[Row]]:
    """The task of a step, and what some rows (None: all) of its batch read."""
    task, before = self.task(step)
    size = self._config.tasks[task].batch_size
    names, weights = self._sources[task]
    picked = []
    for row in range(size) if rows is None else rows:
      which, q = choose(weights, before * size + int(row))
      name = names[which]
      index = self._shuffled[task, name](q)
      picked.append(Row(int(row), name, q // self._sizes[name], index))
    return task, picked

  def substitute(self, row: Row, attempt: int) -> Row:
    """The sample that replaces the broken one of a row.

    Args:
      row: what the row should have read.
      attempt: number of the try, from 0.
    """
    seed = self._config.seed
    number = fold(seed, "substitute", row.source, row.epoch, row.index, attempt)
    index = number % self._sizes[row.source]
    return Row(row.row, row.source, row.epoch, index)


def _place_in(shuffled: Any, size: int) -> Callable[[int], int]:
  """Position, over all epochs, -> sample of a shuffled `MapDataset.range`.

  Grain's repeated dataset gives the same (tests/data/order_test.py), but looks
  up its statistics on the way, which takes ten times as long.
  """
  direct = getattr(shuffled, "_shuffled_index", None)
  if direct is None:
    repeated = shuffled.repeat()
    return lambda q: int(repeated[q])
  return lambda q: int(direct(q)) % size


def _check_weights(
  path: str, names: Sequence[str], weights: Sequence[int]
) -> None:
  if not names or any(w < 0 for w in weights) or sum(weights) < 1:
    raise ConfigError(
      f"{path}: integer weights must be >= 0 and not all 0, got "
      f"{dict(zip(names, weights, strict=True))}."
    )
