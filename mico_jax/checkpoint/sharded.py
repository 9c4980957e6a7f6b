"""A state in shards: hashed where they lie, read by those who need them.

Saving, each process hashes the shards of the first replica that it holds; no
process ever sees a whole array. Restoring, each process reads the saved shards
that intersect what its devices need, compares their hashes, and puts them
there; so a run may go on with any number of processes and any mesh. Its host
memory is that of the arrays being read: `BATCH_BYTES` or a sixteenth of what
its devices will hold, whichever is less, and at least one saved shard.

What several processes hold alike is read by one of them, in turn, and comes to
the others through the devices, if its shards are of `SHARE_BYTES` or more;
smaller ones are read by each.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mico_jax import failures, memory
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import storage
from mico_jax.checkpoint.manifest import CheckpointError, Range
from mico_jax.config import ConfigError
from mico_jax.parallel import distributed

BATCH_BYTES = 256 * 2**20  # read together, at most
_LEAST_BATCH = 4 * 2**20  # and where the state is small
SHARE_BYTES = 2**20

# Path -> (start of a shard as text, its content on the host).
Shards = dict[str, list[tuple[str, np.ndarray]]]


def to_range(index: Sequence[slice], shape: Sequence[int]) -> Range:
  """The index of a shard as a range."""
  return tuple(
    (s.start or 0, size if s.stop is None else s.stop)
    for s, size in zip(index, shape, strict=True)
  )


# What one process raises all raise, the worst of them.
_KINDS = (CheckpointError, failures.TransientError)
T = TypeVar("T")


def together(call: Callable[[], T]) -> T:
  """What a call returns here; if it fails in one process, it fails in all.

  Raises:
    CheckpointError: what was wrong with a checkpoint, anywhere.
    TransientError: if a store was away, anywhere.
  """
  failure, value = None, None
  try:
    value = call()
  except Exception as e:
    failure = e
  distributed.agree(failure, kinds=_KINDS)
  return cast(T, value)


def check_same(value: Any, what: str) -> None:
  """All processes see the same.

  Raises:
    ConfigError: if they do not.
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
  found = {}
  for path, value in flat.items():
    grid = value.shape
    if isinstance(value, jax.Array):
      grid = value.sharding.shard_shape(value.shape)
    found[path] = {
      "shape": list(value.shape),
      "dtype": np.dtype(value.dtype).name,
      "grid": list(grid),
    }
  return found


def host_shards(flat: Mapping[str, Any]) -> Shards:
  """Copies what this process saves to the host, all together.

  Orbax takes the same copies. On CPUs they are the arrays themselves, which
  JAX does not overwrite while somebody looks at them.
  """
  own: list[tuple[str, str, Any]] = []
  for path, value in flat.items():
    if isinstance(value, jax.Array):
      for shard in value.addressable_shards:
        if shard.replica_id == 0:
          shard.data.copy_to_host_async()
          where = to_range(shard.index, value.shape)
          own.append((path, manifest_lib.range_key(where), shard.data))
    elif jax.process_index() == 0:
      start = manifest_lib.range_key(tuple((0, n) for n in value.shape))
      own.append((path, start, value))
  found: Shards = {}
  for path, start, data in own:
    found.setdefault(path, []).append((start, np.asarray(data)))
  return found


def hash_shards(shards: Shards) -> dict[str, dict[str, str]]:
  """Path -> start of a shard -> hash; empties `shards`."""
  jobs = [
    (path, start, data) for path in shards for start, data in shards[path]
  ]
  shards.clear()
  found: dict[str, dict[str, str]] = {}
  with ThreadPoolExecutor(max_workers=storage.READERS) as pool:
    hashes = pool.map(lambda job: manifest_lib.array_hash(job[2]), jobs)
    for (path, start, _), sha256 in zip(jobs, hashes, strict=True):
      found.setdefault(path, {})[start] = sha256
  return found


# --------------------------------------------------------------------- reading
def read_placed(
  folder: epath.PathLike,
  items: Mapping[str, Mapping[str, Any]],
  likes: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
  """Reads, verifies and places the arrays of a step; all processes must call.

  Arrays that `likes` does not name are verified, each by one process, and
  dropped. The largest come first, while little else is there.

  Args:
    folder: step folder.
    items: the manifest's entries of each item.
    likes: item -> path -> array or ShapeDtypeStruct of what is to be there;
      without a sharding: the default device.

  Returns:
    Item -> path -> array.

  Raises:
    CheckpointError: naming the first arrays that do not verify, in every
      process, whichever read them.
    TransientError: in every process, if the store stays away.
  """
  arrays = [
    _Array(item, path, entry, likes.get(item, {}).get(path))
    for item, entries in items.items()
    for path, entry in entries.items()
  ]
  arrays.sort(key=lambda a: (-manifest_lib.nbytes(a.entry), a.item, a.path))
  reading = _Reading(folder, items, arrays)
  distributed.agree(reading.run(), kinds=_KINDS)
  return reading.placed(likes)


class _Array:
  """An array that is being restored."""

  def __init__(self, item: str, path: str, entry: Mapping[str, Any], like: Any):
    self.item, self.path, self.entry, self.like = item, path, entry, like
    self.shape = tuple(entry["shape"])
    sharding = getattr(like, "sharding", None)
    self.sharding = sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
    )
    self.replicas: jax.NamedSharding | None = None
    self.count = 1  # of the replicas
    self.reader = 0  # number of the replica that is read
    # Device of this process -> its range, and the number of its replica.
    self.places: dict[Any, tuple[Range, int]] = {}
    self.needed: tuple[Range, ...] = ()  # ranges that this process reads
    self.saved: list[tuple[Range, str]] = []  # shards of them, and hashes
    self.remaining = 0  # of `saved`
    self.value: Any = None
    self._buffers: dict[Range, np.ndarray] = {}
    self._lock = threading.Lock()

  def plan(self, number: int) -> None:
    """Chooses what this process reads.

    Args:
      number: of the array, the same in all processes.
    """
    if self.like is None:
      mine = number % jax.process_count() == jax.process_index()
      self.needed = (tuple((0, n) for n in self.shape),) if mine else ()
    else:
      self._find_places(number)
      wanted = [r for r, n in self.places.values() if n == self.reader]
      self.needed = tuple(dict.fromkeys(wanted))
    self.saved = [
      (where, sha256)
      for where, sha256 in manifest_lib.shards(self.entry)
      if any(_common(where, need) is not None for need in self.needed)
    ]
    self.remaining = len(self.saved)

  def _find_places(self, number: int) -> None:
    self.replicas, self.count = _replicas(
      self.sharding, self.shape, self.itemsize
    )
    if self.replicas is None:
      places = self.sharding.addressable_devices_indices_map(self.shape)
      self.places = {
        d: (to_range(index, self.shape), 0) for d, index in places.items()
      }
      return
    self.reader = number % self.count
    stacked = (self.count, *self.shape)
    places = self.replicas.addressable_devices_indices_map(stacked)
    self.places = {
      d: (to_range(index[1:], self.shape), index[0].start or 0)
      for d, index in places.items()
    }

  @property
  def itemsize(self) -> int:
    """Bytes of an element."""
    return manifest_lib.nbytes(self.entry, ((0, 1),))

  def put(self, where: Range, data: np.ndarray) -> None:
    """Takes a saved shard that was read."""
    if self.like is None:
      return
    for need in self.needed:
      common = _common(where, need)
      if common is None:
        continue
      if where == need:
        self._buffers[need] = data
        continue
      with self._lock:
        if need not in self._buffers:
          size = tuple(stop - start for start, stop in need)
          self._buffers[need] = np.empty(size, data.dtype)
      self._buffers[need][_within(common, need)] = data[_within(common, where)]

  def place(self, *, failed: bool) -> None:
    """Puts what was read onto the devices and drops it on the host.

    Args:
      failed: a read has failed; what other processes wait for is done still.
    """
    if self.like is None or (failed and self.replicas is None):
      self._buffers.clear()
      return
    if self.replicas is None:
      parts = [
        jax.device_put(self._buffers[where], device)
        for device, (where, _) in self.places.items()
      ]
      self.value = jax.make_array_from_single_device_arrays(
        self.shape, self.sharding, parts
      )
    else:
      self.value = self._shared()
    jax.block_until_ready(self.value)
    self._buffers.clear()

  def _shared(self) -> jax.Array:
    """The array in all processes, of one replica's content.

    Bits travel as unsigned integers, whose maximum with 0 they are themselves;
    floats would lose the sign of a zero.
    """
    assert self.replicas is not None
    bits = np.dtype(f"u{self.itemsize}")
    parts = []
    for device, (where, number) in self.places.items():
      data = self._buffers.get(where) if number == self.reader else None
      if data is None:
        data = np.zeros([stop - start for start, stop in where], bits)
      parts.append(jax.device_put(data.view(bits)[None], device))
    stacked = jax.make_array_from_single_device_arrays(
      (self.count, *self.shape), self.replicas, parts
    )
    dtype = jnp.dtype(self.like.dtype)
    return jax.jit(
      functools.partial(_merge, dtype=dtype), out_shardings=self.sharding
    )(stacked)


def _merge(stacked: jax.Array, *, dtype: Any) -> jax.Array:
  bits = jnp.max(stacked, axis=0)
  if jnp.issubdtype(dtype, jnp.bool_):
    return bits.astype(dtype)
  return jax.lax.bitcast_convert_type(bits, dtype)


def _common(a: Range, b: Range) -> Range | None:
  """What two ranges have in common; None: nothing."""
  both = tuple(
    (max(a0, b0), min(a1, b1)) for (a0, a1), (b0, b1) in zip(a, b, strict=True)
  )
  empty = any(start >= stop for start, stop in both)
  return None if empty and a != b else both


def _within(part: Range, whole: Range) -> tuple[slice, ...]:
  """A part of a range as an index of the array that the range holds."""
  return tuple(
    slice(start - origin, stop - origin)
    for (start, stop), (origin, _) in zip(part, whole, strict=True)
  )


def _replicas(
  sharding: jax.sharding.Sharding, shape: tuple[int, ...], itemsize: int
) -> tuple[jax.NamedSharding | None, int]:
  """Sharding of [replicas, *shape] if processes share large shards, or None.

  The second value is the number of replicas.
  """
  if not isinstance(sharding, jax.NamedSharding):
    return None, 1
  if math.prod(sharding.shard_shape(shape)) * itemsize < SHARE_BYTES:
    return None, 1
  holders: dict[Range, set[int]] = {}
  for device, index in sharding.devices_indices_map(shape).items():
    holders.setdefault(to_range(index, shape), set()).add(device.process_index)
  if max(map(len, holders.values())) == 1:
    return None, 1
  spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
  used = {
    name
    for axis in spec
    if axis is not None
    for name in ((axis,) if isinstance(axis, str) else axis)
  }
  free = tuple(n for n in sharding.mesh.axis_names if n not in used)
  count = math.prod(sharding.mesh.shape[name] for name in free)
  return jax.NamedSharding(sharding.mesh, jax.P(free, *spec)), count


class _Reading:
  """The arrays of a step, read shard by shard and placed in their order."""

  def __init__(
    self,
    folder: epath.PathLike,
    items: Mapping[str, Mapping[str, Any]],
    arrays: Sequence[_Array],
  ):
    self._folder, self._items, self._arrays = folder, items, arrays
    self._files: dict[str, storage.ArrayFiles] = {}
    self._next = 0  # the array that is placed next
    self._failure: Exception | None = None

  def placed(
    self, likes: Mapping[str, Mapping[str, Any]]
  ) -> dict[str, dict[str, Any]]:
    """What the arrays became."""
    found: dict[str, dict[str, Any]] = {item: {} for item in likes}
    for array in self._arrays:
      if array.like is not None:
        found[array.item][array.path] = array.value
    return found

  def run(self) -> Exception | None:
    """Reads and places all; what failed first, if anything did."""
    self._try(self._open)
    for number, array in enumerate(self._arrays):
      self._try(functools.partial(array.plan, number))
    with ThreadPoolExecutor(max_workers=storage.READERS) as pool:
      self._place_those_read()
      for window in self._windows():
        self._try(lambda window=window: list(pool.map(self._read, window)))
        for array, *_ in window:
          array.remaining -= 1
        self._place_those_read()
        memory.trim()  # what the threads have read stays in their arenas
    return self._failure

  def _try(self, call: Any) -> None:
    """Calls unless something has failed; other processes may not know it."""
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
    """In order, since processes place what they share together."""
    while self._next < len(self._arrays):
      array = self._arrays[self._next]
      if array.remaining:
        return
      array.place(failed=self._failure is not None)
      self._next += 1

  def _windows(self) -> Iterator[list[tuple[_Array, Range, str]]]:
    """Saved shards that are on the host at the same time."""
    jobs = [
      (a, where, sha256) for a in self._arrays for where, sha256 in a.saved
    ]
    total = sum(manifest_lib.nbytes(a.entry, where) for a, where, _ in jobs)
    limit = min(BATCH_BYTES, max(total // 16, _LEAST_BATCH))
    window: list[tuple[_Array, Range, str]] = []
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

  def _read(self, job: tuple[_Array, Range, str]) -> None:
    array, where, sha256 = job
    files, entry = self._files[array.item], array.entry
    store = files.open(array.path)
    wrong = manifest_lib.differs(
      array.item, array.path, entry, store.shape, store.dtype.name
    )
    if wrong:
      raise CheckpointError(wrong)
    data = files.read(store, manifest_lib.slices(where))
    if manifest_lib.array_hash(data) != sha256:
      raise CheckpointError(
        manifest_lib.content_differs(array.item, array.path)
      )
    array.put(where, data)
