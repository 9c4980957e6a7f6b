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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array


@dataclass(frozen=True)
class RowPartition:
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


def parts(partition: RowPartition | None) -> int:
  """Number of parts; 1 without a partition."""
  return 1 if partition is None else partition.size


def split_rows(rows: int, limit: int) -> int:
  """The largest divisor of `rows` that is at most `limit`, at least 1."""
  return next(
    size for size in range(min(rows, max(limit, 1)), 0, -1) if rows % size == 0
  )
