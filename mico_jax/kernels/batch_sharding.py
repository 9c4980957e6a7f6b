"""How the rows of a global batch lie on a device mesh.

Kernels that move rows between devices themselves need to know it; everything
else leaves that to the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int


@dataclass(frozen=True)
class BatchSharding:
  """Rows split evenly over some axes of a mesh, in the order of the axes.

  Attributes:
    mesh: of the run.
    axes: mesh axes over which axis 0 of a batch is split; other axes of the
      mesh hold copies.
  """

  mesh: Mesh
  axes: tuple[str, ...]

  @property
  def size(self) -> int:
    """Number of parts."""
    return math.prod(self.mesh.shape[name] for name in self.axes)

  def spec(self, axis: int = 0) -> PartitionSpec:
    """The spec of an array whose given axis is the batch."""
    return PartitionSpec(*(None,) * axis, self.axes)

  def constrain(self, x: Array, axis: int = 0) -> Array:
    """Asks the compiler to split that axis of `x` over the parts."""
    sharding = NamedSharding(self.mesh, self.spec(axis))
    return jax.lax.with_sharding_constraint(x, sharding)

  def local(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any
  ) -> Callable[..., Any]:
    """`function` on the rows of one part; collectives over `axes` inside.

    Args:
      function: sees the local rows.
      in_specs: per argument, `spec()` or `PartitionSpec()`.
      out_specs: likewise for what it returns.
    """
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )

  def run(self, x: Array, count: int, axis: int = 0) -> Array:
    """Inside `local`: also the rows of the parts next to this one.

    Parts come in runs of `count`. Each gets the rows of its run, its own first,
    then those of the part before it, and so on around the run (`in_run`).

    Args:
      x: rows of this part.
      count: divides `size`; 1: nothing travels.
      axis: of the rows.
    """
    blocks = [x]
    for shift in range(1, count):
      pairs = [
        (part, part - part % count + (part + shift) % count)
        for part in range(self.size)
      ]
      blocks.append(jax.lax.ppermute(x, self.axes, pairs))
    return jnp.concatenate(blocks, axis) if count > 1 else x

  def in_run(
    self, indices: Int[Array, "*C"], rows: int, count: int
  ) -> Int[Array, "*C"]:
    """Inside `local`: where global rows of this part's run are in `run`.

    Args:
      indices: of the global batch.
      rows: of a part.
      count: of the parts of a run.
    """
    own = jax.lax.axis_index(self.axes)
    turn = (own - indices // rows) % count
    return turn * rows + indices % rows


def parts(partition: BatchSharding | None) -> int:
  """Number of parts; 1 without a partition."""
  return 1 if partition is None else partition.size


def split_rows(rows: int, limit: int) -> int:
  """The largest divisor of `rows` that is at most `limit`, at least 1."""
  return next(
    size for size in range(min(rows, max(limit, 1)), 0, -1) if rows % size == 0
  )
