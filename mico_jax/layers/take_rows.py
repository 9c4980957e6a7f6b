"""Rows of stacked arrays by index, on one device or from neighbouring ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from mico_jax.kernels import target
from mico_jax.kernels.batch_sharding import BatchSharding

# Rows up to which rows are taken by a product on a TPU.
_FEW_ROWS = 256


def take_rows(
  values: Float[Array, "P B S D"], indices: Int[Array, " C"]
) -> Float[Array, "P C S D"]:
  """Rows `indices` of axis 1.

  On a TPU by a product with ones and zeros, where rows are few: it takes and,
  in the backward pass, adds rows one after the other, which was a fifth of a
  step of ViT-g.
  """
  rows = values.shape[1]
  if target.current().platform != "tpu" or rows > _FEW_ROWS:
    return jnp.take(values, indices, axis=1)
  chosen = (indices[:, None] == jnp.arange(rows)[None]).astype(values.dtype)
  return jnp.einsum(
    "cb,pbsd->pcsd", chosen, values, precision=jax.lax.Precision.HIGHEST
  )


def _take(
  indices: Int[Array, " C"], *arrays: Shaped[Array, "..."]
) -> tuple[Shaped[Array, "..."], ...]:
  return tuple(
    take_rows(x, indices) if x.ndim == 4 else jnp.take(x, indices, axis=0)
    for x in arrays
  )


def take_sharded_rows(
  arrays: Sequence[Shaped[Array, "..."]],
  indices: Int[Array, " C"],
  partition: BatchSharding | None,
  run: int,
) -> tuple[Shaped[Array, "..."], ...]:
  """Rows `indices` of arrays [P B S D] (axis 1) and [B S] (axis 0).

  Args:
    arrays: of the same rows.
    indices: global rows, 0 <= index < B.
    partition: how the rows lie on a mesh.
    run: number of neighbouring parts (`BatchSharding.run`) that hold the rows
      named by the indices of each of them; only those are sent. 1: the part
      itself; 0: any part may hold them.
  """
  take: Any = _take
  if partition is not None and partition.size > 1 and run:
    batch_axes = tuple(1 if x.ndim == 4 else 0 for x in arrays)

    def take_near(
      indices: Int[Array, " C"], *arrays: Shaped[Array, "..."]
    ) -> tuple[Shaped[Array, "..."], ...]:
      near = [
        partition.run(array, run, axis)
        for array, axis in zip(arrays, batch_axes, strict=True)
      ]
      rows = arrays[0].shape[1]
      return _take(partition.in_run(indices, rows, run), *near)

    specs = tuple(partition.spec(axis) for axis in batch_axes)
    take = partition.local(take_near, (partition.spec(), *specs), specs)
  return take(indices, *arrays)
