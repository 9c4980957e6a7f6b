"""Rotary positions of patches on a grid, and of tokens in a text.

Heads turn in neighbouring pairs (x0, x1): all of a head with the place of a
token in its text; of a patch, half of it with the row, the other half with the
column. Positions of patches are scaled so that any grid spans the range of the
pretraining grid, so weights serve other resolutions as they are. The class
token is not turned. Tables are float32 for every compute dtype, and no
parameters.

Source: EVA-02, arXiv:2303.11331; RoFormer, arXiv:2104.09864. Angles follow the
official code bit by bit; its cosines and sines are off by one unit in the last
place here and there.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mico_jax.kernels.dtypes import accumulation_dtype

BASE = 10000.0  # the longest wavelength is 2 pi BASE positions, about


@functools.lru_cache(maxsize=32)
def rotary_tables(
  grid: int, head_dim: int, *, base_grid: int
) -> tuple[Float[np.ndarray, "L H"], Float[np.ndarray, "L H"]]:
  """Cosine and sine of every patch, row by row.

  Args:
    grid: patches along one side.
    head_dim: H, a multiple of 4.
    base_grid: patches along one side in pretraining: the range of positions.

  Raises:
    ValueError: if heads cannot be split into pairs for rows and columns.
  """
  if head_dim % 4:
    raise ValueError(
      f"rotary positions need heads of a width that is a multiple of 4, got "
      f"{head_dim}; set config.model.vision.num_heads."
    )
  half = head_dim // 2
  power = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
  frequency = np.float32(1.0) / np.float32(BASE) ** power
  position = np.arange(grid, dtype=np.float32) / np.float32(grid)
  position = position * np.float32(base_grid)
  angle = np.repeat(position[:, None] * frequency[None], 2, axis=-1)
  shape = (grid, grid, half)
  angles = np.concatenate(
    [
      np.broadcast_to(angle[:, None], shape),
      np.broadcast_to(angle[None], shape),
    ],
    axis=-1,
  ).reshape(grid**2, head_dim)
  exact = angles.astype(np.float64)
  return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)


def token_tables(
  grid: int,
  head_dim: int,
  *,
  base_grid: int,
  token_indices: Int[Array, "B K"] | None = None,
) -> tuple[Float[Array, "#B L H"], Float[Array, "#B L H"]]:
  """Tables of the tokens of a frame: the class token, then its patches.

  Args:
    grid: patches along one side.
    head_dim: H.
    base_grid: see `rotary_tables`.
    token_indices: the patches that are encoded; None: all, in order.
  """
  cos, sin = (
    jnp.asarray(t) for t in rotary_tables(grid, head_dim, base_grid=base_grid)
  )
  tables = []
  for table, still in ((cos, 1.0), (sin, 0.0)):
    if token_indices is None:
      rows = table[None]
    else:
      rows = jnp.take(table, token_indices, axis=0)
    first = jnp.full((rows.shape[0], 1, head_dim), still, jnp.float32)
    tables.append(jnp.concatenate([first, rows], axis=1))
  return tables[0], tables[1]


def sequence_tables(
  positions: Int[Array, "#B L"], head_dim: int
) -> tuple[Float[Array, "#B L H"], Float[Array, "#B L H"]]:
  """Cosine and sine of tokens in a row, in neighbouring pairs.

  Args:
    positions: of the tokens.
    head_dim: H, even.
  """
  power = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  frequency = np.repeat(np.float32(1.0) / np.float32(BASE) ** power, 2)
  angle = positions.astype(jnp.float32)[:, :, None] * frequency[None, None]
  return jnp.cos(angle), jnp.sin(angle)


def rotate(
  x: Float[Array, "B L N H"],
  cos: Float[Array, "#B L H"],
  sin: Float[Array, "#B L H"],
) -> Float[Array, "B L N H"]:
  """Turns the pairs of each head; float32 inside, the input's dtype outside."""
  dtype = accumulation_dtype(x.dtype)
  y = x.astype(dtype)
  # (x0, x1) -> (-x1, x0) by two shifts and a choice: no axis of length two,
  # which accelerators pad to a whole tile.
  even = (jnp.arange(x.shape[-1]) % 2 == 0).reshape(1, 1, 1, -1)
  turned = jnp.where(even, -jnp.roll(y, -1, axis=-1), jnp.roll(y, 1, axis=-1))
  y = y * cos.astype(dtype)[:, :, None] + turned * sin.astype(dtype)[:, :, None]
  return jax.lax.convert_element_type(y, x.dtype)
