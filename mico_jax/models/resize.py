"""Position and frame tables at another resolution or number of frames.

Pure NumPy; used when a checkpoint is loaded into other sizes, and for the frame
table of inputs with another number of frames than the table has. Arithmetic of
grids follows PyTorch's `interpolate` (align_corners False, no antialias, also
when shrinking), which the original applies.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Array, Float, Int

BICUBIC_A = -0.75  # the constant of PyTorch's cubic convolution


def nearest_indices(old: int, new: int) -> Int[np.ndarray, " new"]:
  """Source index of each entry of a nearest resize from `old` to `new`.

  floor(k * float32(old / new)) in float32: it differs from integer arithmetic
  in a few places (39 -> 33, for one), and the official weights use it.
  """
  scale = np.float32(old) / np.float32(new)
  index = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
  return np.minimum(index, old - 1)


def resize_frames(
  table: Float[np.ndarray, "T W"] | Float[Array, "T W"], new: int
) -> Float[np.ndarray, "new W"] | Float[Array, "new W"]:
  """Frame table for another number of frames, by nearest neighbour."""
  return table[nearest_indices(table.shape[0], new)]


def resize_text_positions(
  table: Float[np.ndarray, "L W"], new: int
) -> Float[np.ndarray, "new W"]:
  """Text position table of another length: cut, or repeated from its start.

  Positions that both lengths have keep their vectors, so texts that fit before
  are read as before.

  Source: Longformer, arXiv:2004.05150, section 5, for the repetition.
  """
  return table[np.arange(new) % table.shape[0]]


def _linear_weights(old: int, new: int) -> np.ndarray:
  """Matrix [new, old] of a bilinear resize along one axis."""
  position = (np.arange(new) + 0.5) * (old / new) - 0.5
  position = np.maximum(position, 0.0)
  low = np.minimum(np.floor(position).astype(np.int64), old - 1)
  high = np.minimum(low + 1, old - 1)
  fraction = position - low
  matrix = np.zeros((new, old))
  np.add.at(matrix, (np.arange(new), low), 1.0 - fraction)
  np.add.at(matrix, (np.arange(new), high), fraction)
  return matrix


def _cubic_weights(old: int, new: int) -> np.ndarray:
  """Matrix [new, old] of a bicubic resize along one axis."""
  a = BICUBIC_A

  def kernel(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a
    return np.where(x <= 1.0, near, np.where(x < 2.0, far, 0.0))

  position = (np.arange(new) + 0.5) * (old / new) - 0.5
  base = np.floor(position).astype(np.int64)
  matrix = np.zeros((new, old))
  for offset in range(-1, 3):
    index = np.clip(base + offset, 0, old - 1)
    np.add.at(matrix, (np.arange(new), index), kernel(position - base - offset))
  return matrix


METHODS = {"bilinear": _linear_weights, "bicubic": _cubic_weights}


def resize_positions(
  table: Float[np.ndarray, "L D"], new_grid: int, *, method: str = "bilinear"
) -> Float[np.ndarray, "K D"]:
  """Position table for another square grid; the class row stays as it is.

  Args:
    table: class row, then the rows of a square grid.
    new_grid: patches along one side.
    method: "bilinear" (MiCo's loader) or "bicubic" (bare EVA-CLIP weights).

  Raises:
    ValueError: if the grid is not square or the method unknown.
  """
  if method not in METHODS:
    raise ValueError(f"{method=} must be one of {', '.join(METHODS)}.")
  old_grid = math.isqrt(table.shape[0] - 1)
  if old_grid**2 != table.shape[0] - 1:
    raise ValueError(
      f"position table of {table.shape[0]} rows is no class row plus a square "
      "grid."
    )
  if old_grid == new_grid:
    return table
  weights = METHODS[method](old_grid, new_grid)
  grid = table[1:].astype(np.float64).reshape(old_grid, old_grid, -1)
  grid = np.einsum("ij,jkd->ikd", weights, grid)
  grid = np.einsum("ij,kjd->kid", weights, grid)
  rows = grid.reshape(new_grid**2, -1).astype(table.dtype)
  return np.concatenate([table[:1], rows])


def resize_table(
  table: Float[np.ndarray, "L D"], rows: int, *, method: str = "bilinear"
) -> Float[np.ndarray, "K D"]:
  """Position table of another length, with a class row or patches alone.

  Args:
    table: as the wanted one: with a class row, or without.
    rows: wanted; a square number: patches alone.
    method: see `resize_positions`.

  Raises:
    ValueError: if a grid is not square, or only one of the two has a class row.
  """
  side = math.isqrt(rows)
  if side**2 != rows:
    return resize_positions(table, math.isqrt(rows - 1), method=method)
  padded = np.concatenate([table[:1], table])
  return resize_positions(padded, side, method=method)[1:]
