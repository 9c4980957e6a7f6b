"""Ranges of an array, such as those of its shards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

# (start, stop) along each axis.
Range = tuple[tuple[int, int], ...]


def of_index(index: Sequence[slice] | None, shape: Sequence[int]) -> Range:
  """The range of a shard from its JAX index; None: the whole array."""
  index = [slice(None)] * len(shape) if index is None else index
  return tuple(
    (s.start or 0, size if s.stop is None else s.stop)
    for s, size in zip(index, shape, strict=True)
  )


def whole(shape: Sequence[int]) -> Range:
  """The range of a whole array."""
  return tuple((0, size) for size in shape)


def sizes(where: Range) -> tuple[int, ...]:
  """The shape of a range."""
  return tuple(stop - start for start, stop in where)


def slices(where: Range) -> tuple[slice, ...]:
  """A range as an index of an array."""
  return tuple(slice(start, stop) for start, stop in where)


def key(where: Range) -> str:
  """The start of a range as text: "0,64"; "" for a scalar."""
  return ",".join(str(start) for start, _ in where)


def count(shape: Sequence[int], grid: Sequence[int]) -> int:
  """Number of the shards of an array.

  Args:
    shape: of the array.
    grid: shape of a shard, which divides the array evenly.

  Raises:
    ValueError: if it does not.
  """
  if len(grid) != len(shape) or any(
    size != step and (step < 1 or size % step)
    for size, step in zip(shape, grid, strict=True)
  ):
    raise ValueError(
      f"shards of shape {list(grid)} do not divide an array {list(shape)}"
    )
  return math.prod(
    1 if size == step else size // step
    for size, step in zip(shape, grid, strict=True)
  )


def of_grid(shape: Sequence[int], grid: Sequence[int]) -> list[Range]:
  """Ranges of the shards of an array, in C order; see `count`."""
  count(shape, grid)
  axes = [
    [(0, size)]
    if size == step
    else [(start, start + step) for start in range(0, size, step)]
    for size, step in zip(shape, grid, strict=True)
  ]
  return list(itertools.product(*axes))


def common(a: Range, b: Range) -> Range | None:
  """The intersection of two ranges; None: empty."""
  both = tuple(
    (max(a0, b0), min(a1, b1)) for (a0, a1), (b0, b1) in zip(a, b, strict=True)
  )
  empty = any(start >= stop for start, stop in both)
  return None if empty and a != b else both


def within(part: Range, outer: Range) -> tuple[slice, ...]:
  """The index of `part` in an array that holds the range `outer`."""
  return tuple(
    slice(start - origin, stop - origin)
    for (start, stop), (origin, _) in zip(part, outer, strict=True)
  )
