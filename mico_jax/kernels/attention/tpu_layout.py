"""How the heads of one grid step lie in VMEM, and how a kernel reads them.

`Lanes`: heads side by side along the 128 lanes, as a projection leaves them, so
nothing is transposed or padded in HBM. A head of 88 starts anywhere in a lane
tile and mostly ends in the next one. It is not rotated into place: its two ends
fall on different lanes of their tiles, so one select merges them into a single
tile of 128 lanes, "wrapped". Queries and keys are wrapped alike, and a product
over lanes does not mind the order; foreign lanes are zeroed on one side of it.
Results come out wrapped as well and are merged into whole tiles on the way out.

`Heads`: heads apart, [N, L, H], whatever the size of a head.
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
    num_heads: of a block; together they fill whole lane tiles.
    head_dim: at most 128.
  """

  num_heads: int
  head_dim: int

  @property
  def width(self) -> int:
    """Lanes of what `read` gives."""
    return LANES

  def place(self, head: int) -> tuple[int, int, int]:
    """First tile of a head, its first lane there, its lanes in the next."""
    tile, first = divmod(head * self.head_dim, LANES)
    return tile, first, max(first + self.head_dim - LANES, 0)

  def read(self, ref: Any, head: int, *, clean: bool) -> Any:
    """One head [rows, 128], wrapped; `clean`: foreign lanes are zero."""
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
    """Takes the results of heads 0, 1, ... in this order."""
    return LanesWriter(self, ref, first_lane)


class LanesWriter:
  """Merges wrapped heads into whole lane tiles and stores them."""

  def __init__(self, layout: Lanes, ref: Any, first_lane: int):
    self._layout, self._ref, self._first_lane = layout, ref, first_lane
    self._open: Any = None

  def put(self, head: int, value: Any) -> None:
    """Stores a head [rows, 128], wrapped."""
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
  """Heads apart; a block is [1, num_heads, rows, head_dim].

  Attributes:
    num_heads: of a block.
    head_dim: any.
  """

  num_heads: int
  head_dim: int

  @property
  def width(self) -> int:
    """Lanes of what `read` gives."""
    return self.head_dim

  def read(self, ref: Any, head: int, *, clean: bool) -> Any:
    """One head [rows, head_dim]."""
    del clean
    return ref[0, head]

  def writer(self, ref: Any, *, first_lane: int = 0) -> HeadsWriter:
    """Takes the results of heads in any order."""
    del first_lane
    return HeadsWriter(ref)


class HeadsWriter:
  """Stores heads apart."""

  def __init__(self, ref: Any):
    self._ref = ref

  def put(self, head: int, value: Any) -> None:
    """Stores a head [rows, head_dim]."""
    self._ref[0, head] = value.astype(self._ref.dtype)


Layout = Lanes | Heads


def lane_groups(num_heads: int, head_dim: int) -> list[int]:
  """Numbers of heads that fill whole lane tiles, largest first.

  Empty if the heads do not fill lane tiles at all.
  """
  if head_dim > LANES:
    return []
  return [
    group
    for group in range(num_heads, 0, -1)
    if num_heads % group == 0 and group * head_dim % LANES == 0
  ]
