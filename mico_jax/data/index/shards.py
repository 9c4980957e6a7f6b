"""The shards of a source in a row: global number <-> (shard, number there)."""

from __future__ import annotations

import bisect
import concurrent.futures
import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mico_jax.config import ConfigError
from mico_jax.data.index.columns import Columns
from mico_jax.data.index.progress import Progress
from mico_jax.data.storage import is_remote, short

_OPEN = 512  # indexes that are mapped at a time
_AT_ONCE = 16  # remote shards that are indexed at a time


class Shard(NamedTuple):
  """One file of a source.

  Attributes:
    path: of the file.
    count: its samples.
    sha256: of its index.
  """

  path: str
  count: int
  sha256: str


class Shards:
  """Indexes of the shards of a source, of which some are mapped at a time.

  Attributes:
    shards: in their order.
    sha256: of the source: of its only shard, or over those of its shards.
  """

  def __init__(
    self,
    paths: Sequence[str],
    load: Callable[[str], Columns],
    look: Callable[[str, Columns], None] | None = None,
  ):
    """Loads the index of every shard once.

    Args:
      paths: of the shards.
      load: gives the index of one, whose meta says `samples` and `sha256`.
      look: is shown each index, in order.

    Raises:
      DecodeError, TransientError: as `load`.
    """
    self._load, self._lock = load, threading.Lock()
    self._open: OrderedDict[int, Columns] = OrderedDict()
    self.shards: list[Shard] = []
    with Progress(len(paths), "indexing shards") as progress:
      for number, columns in enumerate(_loaded(paths, load)):
        path = paths[number]
        if look is not None:
          look(path, columns)
        meta = columns.meta
        self.shards.append(Shard(path, meta["samples"], meta["sha256"]))
        self._keep(number, columns)
        progress.update(number + 1)
    self._ends = list(itertools.accumulate(s.count for s in self.shards))
    if len(self.shards) == 1:
      self.sha256 = self.shards[0].sha256
    else:
      text = "".join(f"{s.sha256}\n" for s in self.shards)
      self.sha256 = hashlib.sha256(text.encode()).hexdigest()

  def __len__(self) -> int:
    """Number of samples of all shards."""
    return self._ends[-1] if self._ends else 0

  def place(self, index: int) -> tuple[int, int]:
    """Number of the shard that holds a sample, and its number there."""
    number = bisect.bisect_right(self._ends, index)
    return number, index - (self._ends[number - 1] if number else 0)

  def columns(self, number: int) -> Columns:
    """The index of a shard."""
    with self._lock:
      columns = self._open.get(number)
      if columns is not None:
        self._open.move_to_end(number)
        return columns
    columns = self._load(self.shards[number].path)
    if columns.meta["sha256"] != self.shards[number].sha256:
      raise ConfigError(
        f"{short(self.shards[number].path)} changed while it was read; restore "
        "it, or start a new run."
      )
    self._keep(number, columns)
    return columns

  def joined(self, name: str) -> Joined:
    """A column of all shards in a row."""
    return Joined(self, self._ends, name)

  def _keep(self, number: int, columns: Columns) -> None:
    with self._lock:
      self._open[number] = columns
      while len(self._open) > _OPEN:
        self._open.popitem(last=False)


class Joined:
  """A column of several shards, of which only what is asked for is read."""

  def __init__(self, shards: Shards, ends: Sequence[int], name: str):
    """Reads nothing yet."""
    self._shards, self._name = shards, name
    self._ends = np.asarray(ends, np.int64)

  def __len__(self) -> int:
    """Samples of all shards."""
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
    """The values of a range of samples, or of samples in order."""
    if isinstance(rows, slice):
      parts = list(self._range(*rows.indices(len(self))))
    else:
      parts = list(self._picked(np.asarray(rows, np.int64)))
    return np.concatenate(parts) if parts else np.empty(0, np.int64)

  def _range(self, start: int, stop: int, step: int) -> Iterator[np.ndarray]:
    if step != 1:
      yield from self._picked(np.arange(start, stop, step))
      return
    while start < stop:
      number = int(np.searchsorted(self._ends, start, side="right"))
      end = int(self._ends[number])
      before = int(self._ends[number - 1]) if number else 0
      column = self._shards.columns(number)[self._name]
      yield column[start - before : min(stop, end) - before]
      start = end

  def _picked(self, rows: np.ndarray) -> Iterator[np.ndarray]:
    numbers = np.searchsorted(self._ends, rows, side="right")
    for part in np.split(rows, np.flatnonzero(np.diff(numbers)) + 1):
      if len(part):
        number = int(np.searchsorted(self._ends, part[0], side="right"))
        before = int(self._ends[number - 1]) if number else 0
        yield self._shards.columns(number)[self._name][part - before]


def _loaded(
  paths: Sequence[str], load: Callable[[str], Columns]
) -> Iterator[Columns]:
  """The indexes in order; of remote shards several are made at a time."""
  if len(paths) == 1 or not any(map(is_remote, paths)):
    yield from map(load, paths)
    return
  with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    yield from pool.map(load, paths)
