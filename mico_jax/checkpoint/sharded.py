"""Saving and restoring a sharded state.

When saving, each process hashes its shards of the first replica; no process
holds a whole array. When restoring, each process reads the saved shards that
intersect those of its devices, verifies their hashes and places them, so a run
may continue with any number of processes and any mesh. Host memory is limited
to `BATCH_BYTES` or a sixteenth of the memory of the devices, whichever is less,
and at least one saved shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import jax
import numpy as np
from etils import epath

from mico_jax import failures, memory
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import ranges, storage
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.checkpoint.placement import PlacedArray
from mico_jax.checkpoint.ranges import Range
from mico_jax.config import ConfigError
from mico_jax.parallel import distributed

BATCH_BYTES = 256 * 2**20  # largest number of bytes read together
_LEAST_BATCH = 4 * 2**20  # lower limit of that for a small state

# Path -> (start of a shard as text, its content on the host).
Shards = dict[str, list[tuple[str, np.ndarray]]]


T = TypeVar("T")


def together(call: Callable[[], T]) -> T:
  """The result of a call; if it fails in one process, all raise.

  Raises:
    CheckpointError: the problem of a checkpoint in any process.
    TransientError: if a store was unreachable in any process.
  """
  failure, value = None, None
  try:
    value = call()
  except Exception as e:
    failure = e
  _agree(failure)
  return cast(T, value)


def _agree(failure: Exception | None) -> None:
  """Raises the failure of any process in all of them, as the same kind."""
  kinds = (CheckpointError, OSError, failures.TransientError)
  if (
    failure is not None
    and not isinstance(failure, kinds[::2])
    and failures.is_transient(failure)
  ):
    passing = failures.TransientError(failures.describe(failure))
    passing.__cause__ = failure
    failure = passing
  distributed.agree(failure, kinds=kinds)


def check_same(value: Any, what: str) -> None:
  """Checks that a value is the same in all processes.

  Raises:
    ConfigError: if it is not.
  """
  seen = distributed.gather_texts(json.dumps(value))
  if len(set(seen)) > 1:
    raise ConfigError(
      f"the processes see different workdirs: {what} are "
      f"{' and '.join(sorted(set(seen)))}; use one that all hosts share."
    )


# ---------------------------------------------------------------------- saving
def layout(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Shape, dtype and shape of a shard ("grid") of every array."""
  placement = {}
  for path, value in flat.items():
    grid = value.shape
    if isinstance(value, jax.Array):
      grid = value.sharding.shard_shape(value.shape)
    placement[path] = {
      "shape": list(value.shape),
      "dtype": np.dtype(value.dtype).name,
      "grid": list(grid),
    }
  return placement


def host_shards(flat: Mapping[str, Any]) -> Shards:
  """Copies the shards that this process saves to the host, asynchronously.

  Orbax uses the same copies. On CPUs they are the arrays themselves, which JAX
  does not overwrite while there is a reference to them.
  """
  pieces: list[tuple[str, str, Any]] = []
  for path, value in flat.items():
    if isinstance(value, jax.Array):
      for shard in value.addressable_shards:
        if shard.replica_id == 0:
          shard.data.copy_to_host_async()
          where = ranges.of_index(shard.index, value.shape)
          pieces.append((path, ranges.key(where), shard.data))
    elif jax.process_index() == 0:
      start = ranges.key(ranges.whole(value.shape))
      pieces.append((path, start, value))
  shards: Shards = {}
  for path, start, data in pieces:
    shards.setdefault(path, []).append((start, np.asarray(data)))
  return shards


def hash_shards(shards: Shards) -> dict[str, dict[str, str]]:
  """Path -> start of a shard -> hash; empties `shards`."""
  jobs = [
    (path, start, data) for path in shards for start, data in shards[path]
  ]
  shards.clear()
  digests: dict[str, dict[str, str]] = {}
  with ThreadPoolExecutor(max_workers=storage.READERS) as pool:
    hashes = pool.map(lambda job: manifest_lib.array_hash(job[2]), jobs)
    for (path, start, _), sha256 in zip(jobs, hashes, strict=True):
      digests.setdefault(path, {})[start] = sha256
  return digests


# --------------------------------------------------------------------- reading
def read_placed(
  folder: epath.PathLike,
  items: Mapping[str, Mapping[str, Any]],
  likes: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
  """Reads, verifies and places the arrays of a step; all processes must call.

  Arrays that `likes` does not name are only verified, each by one process. The
  largest arrays come first, while most of the memory is free.

  Args:
    folder: step folder.
    items: the manifest's entries of each item.
    likes: item -> path -> array or ShapeDtypeStruct of the array to restore;
      without a sharding: on the default device.

  Returns:
    Item -> path -> array.

  Raises:
    CheckpointError: naming the first arrays that do not verify, in every
      process, whichever read them.
    TransientError: in every process, if the store stays unreachable.
  """
  arrays = [
    PlacedArray(item, path, entry, likes.get(item, {}).get(path))
    for item, entries in items.items()
    for path, entry in entries.items()
  ]
  arrays.sort(key=lambda a: (-manifest_lib.nbytes(a.entry), a.item, a.path))
  reading = _Reading(folder, items, arrays)
  _agree(reading.run())
  return reading.placed(likes)


class _Reading:
  """Reads the arrays of a step shard by shard and places them in order."""

  def __init__(
    self,
    folder: epath.PathLike,
    items: Mapping[str, Mapping[str, Any]],
    arrays: Sequence[PlacedArray],
  ):
    self._folder, self._items, self._arrays = folder, items, arrays
    self._files: dict[str, storage.ArrayFiles] = {}
    self._next = 0  # the array that is placed next
    self._failure: Exception | None = None

  def placed(
    self, likes: Mapping[str, Mapping[str, Any]]
  ) -> dict[str, dict[str, Any]]:
    """The restored arrays: item -> path -> array."""
    placed: dict[str, dict[str, Any]] = {item: {} for item in likes}
    for array in self._arrays:
      if array.like is not None:
        placed[array.item][array.path] = array.value
    return placed

  def run(self) -> Exception | None:
    """Reads and places all arrays; returns the first error, if any."""
    self._try(self._open)
    for number, array in enumerate(self._arrays):
      array.find_places(number)
      self._try(array.find_saved)
    with ThreadPoolExecutor(max_workers=storage.READERS) as pool:
      self._place_those_read()
      for window in self._windows():
        self._try(lambda window=window: list(pool.map(self._read, window)))
        for array, *_ in window:
          array.remaining -= 1
        self._place_those_read()
        memory.trim()  # returns the freed memory of the threads
    return self._failure

  def _try(self, call: Any) -> None:
    """Calls unless something has failed, and keeps the error for `_agree`."""
    if self._failure is None:
      try:
        call()
      except Exception as e:
        self._failure = e

  def _open(self) -> None:
    self._files = {
      item: storage.ArrayFiles(self._folder, item, entries)
      for item, entries in self._items.items()
    }

  def _place_those_read(self) -> None:
    """Places arrays in order, as processes place shared arrays together."""
    while self._next < len(self._arrays):
      array = self._arrays[self._next]
      if array.remaining:
        return
      array.place(failed=self._failure is not None)
      self._next += 1

  def _windows(self) -> Iterator[list[tuple[PlacedArray, Range, str]]]:
    """Groups of saved shards that are on the host at the same time."""
    jobs = [
      (a, where, sha256) for a in self._arrays for where, sha256 in a.saved
    ]
    total = sum(manifest_lib.nbytes(a.entry, where) for a, where, _ in jobs)
    limit = min(BATCH_BYTES, max(total // 16, _LEAST_BATCH))
    window: list[tuple[PlacedArray, Range, str]] = []
    held = 0
    for job in jobs:
      size = manifest_lib.nbytes(job[0].entry, job[1])
      if window and held + size > limit:
        yield window
        window, held = [], 0
      window.append(job)
      held += size
    if window:
      yield window

  def _read(self, job: tuple[PlacedArray, Range, str]) -> None:
    array, where, sha256 = job
    files, entry = self._files[array.item], array.entry
    store = files.open(array.path)
    wrong = manifest_lib.differs(
      array.item, array.path, entry, store.shape, store.dtype.name
    )
    if wrong:
      raise CheckpointError(wrong)
    data = files.read(store, ranges.slices(where))
    if manifest_lib.array_hash(data) != sha256:
      raise CheckpointError(
        manifest_lib.content_differs(array.item, array.path)
      )
    array.put(where, data)
