"""Sharding of the rows of a global batch over a device mesh.

Kernels that move rows between devices themselves take it as an argument;
everything else leaves communication to the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped


@dataclass(frozen=True)
class BatchSharding:
  """Rows split evenly over some axes of a mesh, in the order of the axes.

  Attributes:
    mesh: device mesh of the run.
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
    """Partition spec of an array whose batch lies on `axis`."""
    return PartitionSpec(*(None,) * axis, self.axes)

  def constrain(
    self, x: Shaped[Array, "..."], axis: int = 0
  ) -> Shaped[Array, "..."]:
    """Asks the compiler to split that axis of `x` over the parts."""
    sharding = NamedSharding(self.mesh, self.spec(axis))
    return jax.lax.with_sharding_constraint(x, sharding)

  def local(
    self, function: Callable[..., Any], in_specs: Any, out_specs: Any
  ) -> Callable[..., Any]:
    """`shard_map` of a function of local rows over the mesh.

    Args:
      function: takes the rows of one part; may use collectives over `axes`.
      in_specs: `spec()` or `PartitionSpec()` per argument.
      out_specs: the same per result.
    """
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )

  def run(
    self, x: Shaped[Array, "..."], count: int, axis: int = 0
  ) -> Shaped[Array, "..."]:
    """Gathers the rows of `count` neighbouring parts; call it inside `local`.

    Parts form runs of `count`. Each part gets all rows of its run: first those
    it holds, then those of the part before it, and so on, cyclically
    (`in_run`).

    Args:
      x: rows of this part.
      count: parts of a run, a divisor of `size`; 1: nothing is sent.
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
    """Positions of global rows in the result of `run`, inside `local`.

    Args:
      indices: rows of the global batch that belong to this part's run.
      rows: number of rows of a part.
      count: parts of a run.
    """
    part = jax.lax.axis_index(self.axes)
    turn = (part - indices // rows) % count
    return turn * rows + indices % rows


def parts(partition: BatchSharding | None) -> int:
  """Number of parts; 1 without a partition."""
  return 1 if partition is None else partition.size


def split_rows(rows: int, limit: int) -> int:
  """The largest divisor of `rows` that is at most `limit`, at least 1."""
  return next(
    size for size in range(min(rows, max(limit, 1)), 0, -1) if rows % size == 0
  )
