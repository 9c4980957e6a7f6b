"""Exact bilinear resize of uint8 frames, in bands that stay in the cache."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

_BAND = 32  # rows resized at a time


@functools.lru_cache(maxsize=64)
def axis_weights(
  source: int, target: int
) -> tuple[
  Int[np.ndarray, " target"],
  Int[np.ndarray, " target"],
  Float[np.ndarray, " target"],
]:
  """Lower and upper source index, and the weight of the upper (half-pixel)."""
  scale = np.float32(source) / np.float32(target)
  at = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale
  at = np.maximum(at - np.float32(0.5), np.float32(0))
  low = np.minimum(at.astype(np.int64), source - 1)
  high = np.minimum(low + 1, source - 1)
  return low, high, (at - low.astype(np.float32)).astype(np.float32)


def resize_rounded(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> UInt8[np.ndarray, "T y x C"]:
  """`spatial.resize_bilinear` rounded to uint8, with the same roundings.

  Args:
    x: frames.
    size: rows and columns.
  """
  (rows, columns), channels = size, x.shape[3]
  out = np.empty((len(x), rows, columns * channels), np.uint8)
  low, high, weight = (a[:, None] for a in axis_weights(x.shape[1], rows))
  for frame, resized in zip(x, out, strict=True):
    frame = frame.reshape(len(frame), -1)
    for at in range(0, rows, _BAND):
      band = slice(at, at + _BAND)
      y = frame[low[band, 0]].astype(np.float32)
      if len(frame) != rows:
        above = frame[high[band, 0]].astype(np.float32)
        y = _blend(y, above, weight[band])
      if x.shape[2] != columns:
        left, right, share = _column_weights(x.shape[2], columns, channels)
        below, above = np.take(y, left, axis=1), np.take(y, right, axis=1)
        y = _blend(below, above, share)
      np.rint(y, out=y)
      resized[band] = y
  return out.reshape(len(x), rows, columns, channels)


def _blend(
  below: Float[np.ndarray, "n m"],
  above: Float[np.ndarray, "n m"],
  weight: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "n m"]:
  """The weighted mean of `resize_axis`, in place."""
  below *= np.float32(1) - weight
  above *= weight
  below += above
  return below


@functools.lru_cache(maxsize=64)
def _column_weights(
  source: int, target: int, channels: int
) -> tuple[
  Int[np.ndarray, " values"],
  Int[np.ndarray, " values"],
  Float[np.ndarray, " values"],
]:
  """`axis_weights` of columns for rows of interleaved channels."""
  low, high, weight = axis_weights(source, target)
  channel = np.arange(channels)
  return (
    (low[:, None] * channels + channel).reshape(-1),
    (high[:, None] * channels + channel).reshape(-1),
    np.repeat(weight, channels),
  )


def mirror(
  x: Shaped[np.ndarray, "T Y X *C"],
) -> Shaped[np.ndarray, "T Y X *C"]:
  """Frames with left and right exchanged, contiguous."""
  whole = np.ascontiguousarray(x)
  if x.ndim < 4:
    return np.ascontiguousarray(whole[:, :, ::-1])
  # Whole pixels are moved, which is faster than their channels.
  pixels = whole.view(np.dtype((np.void, x.shape[3] * x.itemsize)))
  return np.ascontiguousarray(pixels[:, :, ::-1]).view(x.dtype)
