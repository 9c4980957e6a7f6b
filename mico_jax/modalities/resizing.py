"""Resizing of frames, in NumPy and Pillow.

`resize_bilinear` has no antialiasing, like the official preprocessing
(torchvision 0.15 on tensors); `resize_smooth` averages when it shrinks and is
the default.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from mico_jax.modalities import bands

Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


def resize_axis(
  x: Float[np.ndarray, "*B"], size: int, axis: int
) -> Float[np.ndarray, "*C"]:
  """Linear resize of one axis, without antialiasing (align_corners False)."""
  if x.shape[axis] == size:
    return x
  low, high, weight = bands.axis_weights(x.shape[axis], size)
  shape = [1] * x.ndim
  shape[axis] = size
  weight = weight.reshape(shape)
  below, above = np.take(x, low, axis=axis), np.take(x, high, axis=axis)
  return below * (np.float32(1) - weight) + above * weight


def resize_bilinear(
  x: Float[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> Float[np.ndarray, "T y x C"]:
  """Bilinear resize to (rows, columns) without antialiasing."""
  return resize_axis(resize_axis(x, size[0], 1), size[1], 2)


def _with_pillow(
  x: UInt8[np.ndarray, "T Y X C"],
  size: tuple[int, int],
  kind: Image.Resampling,
) -> UInt8[np.ndarray, "T y x C"]:
  if x.shape[1:3] == tuple(size):
    return x
  out = np.empty((len(x), *size, *x.shape[3:]), x.dtype)
  for frame, small in zip(x, out, strict=True):
    small[:] = Image.fromarray(frame).resize((size[1], size[0]), kind)
  return out


def resize_smooth(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> UInt8[np.ndarray, "T y x C"]:
  """Bilinear resize to (rows, columns), antialiased when it shrinks."""
  return _with_pillow(x, size, Image.Resampling.BILINEAR)


def resize_bicubic(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> UInt8[np.ndarray, "T y x C"]:
  """Bicubic resize to (rows, columns), antialiased when it shrinks."""
  return _with_pillow(x, size, Image.Resampling.BICUBIC)


def resize_nearest(
  x: Shaped[np.ndarray, "T Y X *C"], size: tuple[int, int]
) -> Shaped[np.ndarray, "T y x *C"]:
  """Nearest resize to (rows, columns): never mixes depths across an edge."""
  if x.shape[1:3] == tuple(size):
    return x
  rows = ((np.arange(size[0]) + 0.5) * x.shape[1] / size[0]).astype(np.int64)
  cols = ((np.arange(size[1]) + 0.5) * x.shape[2] / size[1]).astype(np.int64)
  return x[:, rows[:, None], cols[None, :]]


def resize_official(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> UInt8[np.ndarray, "T y x C"]:
  """`resize_bilinear` rounded to uint8."""
  return x if x.shape[1:3] == tuple(size) else bands.resize_rounded(x, size)


def resize_exact(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> Float[np.ndarray, "T y x C"]:
  """`resize_bilinear` of values in [0, 1], as the official code."""
  return resize_bilinear(x.astype(np.float32) / np.float32(255), size)


# By the names that `augmentation.View.interpolation` may have.
RESIZES = MappingProxyType(
  {"bilinear": resize_smooth, "bicubic": resize_bicubic}
)
