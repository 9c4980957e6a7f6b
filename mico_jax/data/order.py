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

With `data.text_buckets` the steps of a task are dealt to the lengths of its
texts first, in the same way and with exact weights, so that in the long run
each sample is read as often as without; 2. and 3. then hold among the samples
of that length (`text_lengths`).

Names are sorted, so the order of a config's entries does not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from mico_jax.config import Config, ConfigError
from mico_jax.data.mixture import source_weights
from mico_jax.data.text_lengths import Classes
from mico_jax.printing import known_names

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
    among: the samples that may replace it, whose texts are no longer than the
      batch has place for; None: all of the source.
  """

  row: int
  source: str
  epoch: int
  index: int
  among: Int[np.ndarray, " N"] | None = field(
    default=None, repr=False, compare=False
  )


@dataclass(frozen=True)
class _Class:
  """The samples of a task whose texts are of one length.

  Attributes:
    length: tokens that the texts of a batch have place for; 0: the most.
    names: of the sources.
    weights: of the sources.
    counts: source -> number of such samples.
    places: source -> position over all epochs -> sample.
    among: source -> see `Row`.
  """

  length: int
  names: list[str]
  weights: list[int]
  counts: dict[str, int]
  places: dict[str, Callable[[int], int]]
  among: dict[str, Int[np.ndarray, " N"] | None]

  @property
  def weight(self) -> int:
    """Of all its sources."""
    return sum(self.weights)


class Order:
  """The order of a config's tasks and samples."""

  def __init__(
    self,
    config: Config,
    sizes: Mapping[str, int],
    lengths: Mapping[str, Classes] | None = None,
  ):
    """Prepares the order.

    Args:
      config: of the run.
      sizes: source -> number of samples.
      lengths: task -> its samples by the length of their texts; None: they are
        not told apart.

    Raises:
      ConfigError: for tasks or sources without a positive weight, unknown
        source names, an empty source, or another mixture than the pinned one.
    """
    self._config = config
    self._tasks = sorted(config.tasks)
    self._task_weights = [config.tasks[t].steps for t in self._tasks]
    _check_weights("tasks", self._tasks, self._task_weights)
    self._sizes = dict(sizes)
    self._classes: dict[str, list[_Class]] = {}
    for task in self._tasks:
      self._check_sources(task)
      weights = source_weights(config.tasks[task], sizes)
      if lengths is None or task not in lengths:
        self._classes[task] = [self._whole(task, weights)]
      else:
        self._classes[task] = self._parts(task, weights, lengths[task])
      self._check_mixture(task)

  def _check_sources(self, task: str) -> None:
    weights = self._config.tasks[task].sources
    for name in sorted(weights):
      if name not in self._sizes:
        raise ConfigError(
          f"tasks.{task}.sources names {name!r}, which data.sources lacks; "
          f"{known_names(name, sorted(self._sizes))}"
        )
      if self._sizes[name] < 1:
        raise ConfigError(
          f"source {name!r} has no samples; check its path, split, where and "
          "require."
        )
    names = sorted(weights)
    _check_weights(
      f"tasks.{task}.sources", names, [weights[name] for name in names]
    )

  def _whole(self, task: str, weights: Mapping[str, int]) -> _Class:
    """All samples of a task."""
    names = sorted(weights)
    return _Class(
      length=0,
      names=names,
      weights=[weights[name] for name in names],
      counts={name: self._sizes[name] for name in names},
      places={
        name: self._shuffled(self._sizes[name], task, name) for name in names
      },
      among=dict.fromkeys(names),
    )

  def _parts(
    self, task: str, weights: Mapping[str, int], lengths: Classes
  ) -> list[_Class]:
    """The samples of a task by the length of their texts.

    A source of weight w with k of its n samples in a class has the weight
    w k / n there, made whole: every sample of the source is read as often.
    """
    names = sorted(weights)
    parts, size = [], self._config.tasks[task].batch_size
    for length, rows in lengths.merged(weights, size):
      among = {name: lengths.up_to(name, length) for name in names}
      counts = {name: len(rows[name]) for name in names}
      places = {
        name: _within(
          rows[name], self._shuffled(counts[name], task, name, length)
        )
        for name in names
        if counts[name]
      }
      shares = [
        weights[name]
        * counts[name]
        * math.prod(self._sizes[n] for n in names if n != name)
        for name in names
      ]
      parts.append(_Class(length, names, shares, counts, places, among))
    common = math.gcd(*(w for part in parts for w in part.weights))
    for part in parts:
      part.weights[:] = [w // common for w in part.weights]
    return parts

  def _shuffled(self, size: int, *parts: object) -> Callable[[int], int]:
    seed = fold(self._config.seed, "order", *parts) % 2**31
    shuffled = grain.MapDataset.range(size).seed(seed).shuffle()
    return _place_in(shuffled, size)

  def mixture(self, task: str) -> dict[str, int]:
    """What temperature and text lengths of a task came to; see `TaskConfig`."""
    spec, found = self._config.tasks[task], {}
    if spec.temperature:
      found.update(source_weights(spec, self._sizes))
    if len(self._classes[task]) > 1:
      for part in self._classes[task]:
        length = part.length or "longest"
        found.update({f"{n}/{length}": c for n, c in part.counts.items()})
    return found

  def _check_mixture(self, task: str) -> None:
    pinned = dict(self._config.tasks[task].mixture)
    if pinned and pinned != self.mixture(task):
      raise ConfigError(
        f"tasks.{task}: the run was started with the mixture {pinned}, and the "
        f"data now give {self.mixture(task)}; restore them, or start a new run."
      )

  def lengths(self, task: str) -> tuple[int, ...]:
    """The text lengths of a task's batches, see `text_length`."""
    return tuple(part.length for part in self._classes[task])

  def text_length(self, step: int) -> int:
    """Tokens that the texts of a step's batch have place for; 0: the most."""
    return self._part(step)[1].length

  def _part(self, step: int) -> tuple[str, _Class, int]:
    """Task and class of a step, and the number of its steps before."""
    task, before = self.task(step)
    parts = self._classes[task]
    which, done = choose([part.weight for part in parts], before)
    return task, parts[which], done

  def task(self, step: int) -> tuple[str, int]:
    """The task of a step and the number of its steps before."""
    which, before = choose(self._task_weights, step)
    return self._tasks[which], before

  def rows(
    self, step: int, rows: Sequence[int] | None = None
  ) -> tuple[str, list[Row]]:
    """The task of a step, and what some rows (None: all) of its batch read."""
    task, part, before = self._part(step)
    size = self._config.tasks[task].batch_size
    picked = []
    for row in range(size) if rows is None else rows:
      which, q = choose(part.weights, before * size + int(row))
      name = part.names[which]
      index, epoch = part.places[name](q), q // part.counts[name]
      picked.append(Row(int(row), name, epoch, index, part.among[name]))
    return task, picked

  def substitute(self, row: Row, attempt: int) -> Row:
    """The sample that replaces the broken one of a row.

    Args:
      row: what the row should have read.
      attempt: number of the try, from 0.
    """
    seed = self._config.seed
    number = fold(seed, "substitute", row.source, row.epoch, row.index, attempt)
    if row.among is None:
      index = number % self._sizes[row.source]
    else:
      index = int(row.among[number % len(row.among)])
    return Row(row.row, row.source, row.epoch, index, row.among)


def _within(
  rows: Int[np.ndarray, " N"], place: Callable[[int], int]
) -> Callable[[int], int]:
  """Position, over all epochs, -> sample among some of a source."""
  return lambda q: int(rows[place(q)])


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
