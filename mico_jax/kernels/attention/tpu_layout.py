"""Layouts of the heads of one grid step in VMEM, and how kernels access them.

`Lanes`: heads side by side along the 128 lanes, the layout that a projection
writes, so nothing is transposed or padded in HBM. A head of size 88 starts
anywhere in a lane tile and mostly ends in the next one. Instead of rotating it
into place, one select merges its two ends, which fall on different lanes, into
a single tile of 128 lanes ("wrapped"). Queries and keys are wrapped alike and a
product sums over lanes in any order; lanes of other heads are zeroed in one of
the factors. Results are wrapped too and merged into whole tiles when stored.

`Heads`: separate heads, [N, L, H], of any size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

LANES = 128


def _lane(x: Any) -> Any:
  return jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)


@dataclasses.dataclass(frozen=True)
class Lanes:
  """Heads side by side; a block is [1, rows, num_heads * head_dim].

  Attributes:
    num_heads: heads of a block, which together fill whole lane tiles.
    head_dim: H, at most 128.
  """

  num_heads: int
  head_dim: int

  @property
  def width(self) -> int:
    """Number of lanes of a head that `read` returns."""
    return LANES

  def place(self, head: int) -> tuple[int, int, int]:
    """First tile of a head, first lane there, number of lanes in the next."""
    tile, first = divmod(head * self.head_dim, LANES)
    return tile, first, max(first + self.head_dim - LANES, 0)

  def read(self, ref: Any, head: int, *, clean: bool) -> Any:
    """One wrapped head [rows, 128]; `clean` zeroes lanes of other heads."""
    tile, first, rest = self.place(head)
    x = ref[0, :, tile * LANES : (tile + 1) * LANES]
    if self.head_dim == LANES:
      return x
    lane, zero = _lane(x), jnp.zeros((), x.dtype)
    if rest:
      end = ref[0, :, (tile + 1) * LANES : (tile + 2) * LANES]
      if clean:
        return jnp.where(lane < first, jnp.where(lane < rest, end, zero), x)
      return jnp.where(lane < rest, end, x)
    if clean:
      inside = (lane >= first) & (lane < first + self.head_dim)
      return jnp.where(inside, x, zero)
    return x

  def writer(self, ref: Any, *, first_lane: int = 0) -> LanesWriter:
    """Writer that must get heads 0, 1, ... in this order."""
    return LanesWriter(self, ref, first_lane)


class LanesWriter:
  """Merges wrapped heads into whole lane tiles and stores them."""

  def __init__(self, layout: Lanes, ref: Any, first_lane: int):
    self._layout, self._ref, self._first_lane = layout, ref, first_lane
    self._open: Any = None

  def put(self, head: int, value: Any) -> None:
    """Stores a wrapped head [rows, 128]."""
    tile, first, rest = self._layout.place(head)
    value = value.astype(self._ref.dtype)
    if self._open is not None and first:
      merged = jnp.where(_lane(value) < first, self._open, value)
    else:
      merged = value
    full = first + self._layout.head_dim >= LANES
    if not full and head + 1 < self._layout.num_heads:
      self._open = merged
      return
    start = self._first_lane + tile * LANES
    self._ref[0, :, start : start + LANES] = merged
    self._open = value if rest else None


@dataclasses.dataclass(frozen=True)
class Heads:
  """Separate heads; a block is [1, num_heads, rows, head_dim].

  Attributes:
    num_heads: heads of a block.
    head_dim: H.
  """

  num_heads: int
  head_dim: int

  @property
  def width(self) -> int:
    """Number of lanes of a head that `read` returns."""
    return self.head_dim

  def read(self, ref: Any, head: int, *, clean: bool) -> Any:
    """One head [rows, head_dim]."""
    del clean
    return ref[0, head]

  def writer(self, ref: Any, *, first_lane: int = 0) -> HeadsWriter:
    """Writer that may get heads in any order."""
    del first_lane
    return HeadsWriter(ref)


class HeadsWriter:
  """Stores separate heads."""

  def __init__(self, ref: Any):
    self._ref = ref

  def put(self, head: int, value: Any) -> None:
    """Stores a head [rows, head_dim]."""
    self._ref[0, head] = value.astype(self._ref.dtype)


Layout = Lanes | Heads


def lane_groups(num_heads: int, head_dim: int) -> list[int]:
  """Numbers of heads that fill whole lane tiles, largest first; may be []."""
  if head_dim > LANES:
    return []
  return [
    group
    for group in range(num_heads, 0, -1)
    if num_heads % group == 0 and group * head_dim % LANES == 0
  ]
