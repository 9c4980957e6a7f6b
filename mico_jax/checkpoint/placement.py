"""Restoring one array: the shards to read, and their devices."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import ranges
from mico_jax.checkpoint.ranges import Range

SHARE_BYTES = 2**20


class PlacedArray:
  """An array that is being restored.

  Shards of at least `SHARE_BYTES` that several processes replicate are read by
  one of them, in turn, and reach the others through the devices; every process
  reads smaller ones itself.

  Attributes:
    item: of the checkpoint, such as "params".
    path: within that item.
    entry: of the manifest.
    like: array or ShapeDtypeStruct with the sharding; None: the array is only
      verified.
    saved: ranges of the saved shards that this process reads, with their
      hashes.
    remaining: number of shards of `saved` that are not yet read.
    value: the array, once it is placed.
  """

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

  def find_places(self, number: int) -> None:
    """Chooses the ranges that this process reads and places.

    The choice must be the same function of the inputs in every process, since
    processes that share an array place it together.

    Args:
      number: of the array, the same in all processes.
    """
    if self.like is None:
      mine = number % jax.process_count() == jax.process_index()
      self.needed = (ranges.whole(self.shape),) if mine else ()
      return
    self._find_devices(number)
    wanted = [r for r, n in self.places.values() if n == self.reader]
    self.needed = tuple(dict.fromkeys(wanted))

  def find_saved(self) -> None:
    """Finds the saved shards that intersect the ranges to read.

    Raises:
      CheckpointError: if the manifest's entry of the array is contradictory.
    """
    self.saved = [
      (where, sha256)
      for where, sha256 in manifest_lib.shards(self.entry)
      if any(ranges.common(where, need) is not None for need in self.needed)
    ]
    self.remaining = len(self.saved)

  def _find_devices(self, number: int) -> None:
    self.replicas, self.count = _replicas(
      self.sharding, self.shape, self.itemsize
    )
    if self.replicas is None:
      places = self.sharding.addressable_devices_indices_map(self.shape)
      self.places = {
        d: (ranges.of_index(index, self.shape), 0)
        for d, index in places.items()
      }
      return
    self.reader = number % self.count
    stacked = (self.count, *self.shape)
    places = self.replicas.addressable_devices_indices_map(stacked)
    self.places = {
      d: (where[1:], where[0][0])
      for d, index in places.items()
      for where in (ranges.of_index(index, stacked),)
    }

  @property
  def itemsize(self) -> int:
    """Bytes of an element."""
    return manifest_lib.nbytes(self.entry, ((0, 1),))

  def put(self, where: Range, data: np.ndarray) -> None:
    """Receives the content of a saved shard."""
    if self.like is None:
      return
    for need in self.needed:
      common = ranges.common(where, need)
      if common is None:
        continue
      if where == need:
        self._buffers[need] = data
        continue
      with self._lock:
        if need not in self._buffers:
          self._buffers[need] = np.empty(ranges.sizes(need), data.dtype)
      self._buffers[need][ranges.within(common, need)] = data[
        ranges.within(common, where)
      ]

  def place(self, *, failed: bool) -> None:
    """Moves the array from the host to the devices.

    Args:
      failed: whether a read has failed; an array that other processes wait for
        is placed nevertheless.
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
    """The array in all processes, from the content of one replica.

    The replicas are merged by a maximum with zeros, as unsigned integers: the
    maximum of floats would lose the sign of a zero.
    """
    assert self.replicas is not None
    bits = np.dtype(f"u{self.itemsize}")
    parts = []
    for device, (where, number) in self.places.items():
      data = self._buffers.get(where) if number == self.reader else None
      if data is None:
        data = np.zeros(ranges.sizes(where), bits)
      parts.append(jax.device_put(data.view(bits)[None], device))
    stacked = jax.make_array_from_single_device_arrays(
      (self.count, *self.shape), self.replicas, parts
    )
    dtype = jnp.dtype(self.like.dtype)
    return _merger(self.sharding, dtype)(stacked)


@functools.lru_cache(maxsize=128)
def _merger(sharding: Any, dtype: Any) -> Callable[[jax.Array], jax.Array]:
  """Function from the bits [replicas, ...], all but one zero, to the array."""

  def merge(stacked: jax.Array) -> jax.Array:
    bits = jnp.max(stacked, axis=0)
    if jnp.issubdtype(dtype, jnp.bool_):
      return bits.astype(dtype)
    return jax.lax.bitcast_convert_type(bits, dtype)

  return jax.jit(merge, out_shardings=sharding)


def _replicas(
  sharding: jax.sharding.Sharding, shape: tuple[int, ...], itemsize: int
) -> tuple[jax.NamedSharding | None, int]:
  """Sharding of [replicas, *shape] if processes share large shards, or None.

  The second value is the number of replicas.
  """
  if not isinstance(sharding, jax.NamedSharding) or itemsize > 4:
    return None, 1  # 64-bit integers are disabled in JAX
  if math.prod(sharding.shard_shape(shape)) * itemsize < SHARE_BYTES:
    return None, 1
  holders: dict[Range, set[int]] = {}
  for device, index in sharding.devices_indices_map(shape).items():
    holders.setdefault(ranges.of_index(index, shape), set()).add(
      device.process_index
    )
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
