"""Steps of decoding maps of one value: files, ranges, sizes, channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from mico_jax.modalities.arrays import is_npy, read_npy
from mico_jax.modalities.base import DecodeError, Geometry
from mico_jax.modalities.media import open_image

ABSENT = -300.0  # below every reading: no temperature in Celsius, no share
_GREY = 4  # of 255, by which JPEG lets the channels of a grey picture differ
_TAILS = (0.1, 99.9)  # percentiles that a spread map ends at
_FLAT = 1e-3  # deviation, in the span of the level, of a map without relief
_MOST = 3.0  # deviations of the relief


def read_map(
  raw: Any, geometry: Geometry, key: str
) -> Shaped[np.ndarray, "..."]:
  """The values of a file, image or array, as stored.

  Raises:
    DecodeError: for unreadable files, and pictures with colours.
  """
  if isinstance(raw, np.ndarray):
    return raw
  if not isinstance(raw, (bytes, Image.Image)):
    raise DecodeError(f"expected a file or array of {key}, got {type(raw)}.")
  if isinstance(raw, bytes) and is_npy(raw):
    return read_npy(raw)
  image = open_image(raw, geometry, values=True)
  if "transparency" in image.info:
    raise DecodeError(f"{key} with a transparent value.")
  array = np.asarray(image)
  if image.mode == "RGB" and np.ptp(array, axis=-1).max() <= _GREY:
    return array[..., 1]
  if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
    raise DecodeError(
      f"{key} must be one channel or grey, got {image.mode!r} with colours; a "
      "palette of colours cannot be turned back into values."
    )
  return array


def spread(x: Float[np.ndarray, "Y X"]) -> Float[np.ndarray, "Y X"]:
  """A map over its own range, from 0 to 1; a constant one is 0.5."""
  if not np.isfinite(x).any():
    return x
  low, high = np.nanpercentile(x, _TAILS)
  if high <= low:
    return np.where(np.isfinite(x), 0.5, x)
  return np.clip((x - low) / (high - low), 0, 1)


def resize_values(
  x: Float[np.ndarray, "T Y X"], size: tuple[int, int]
) -> Float[np.ndarray, "T y x"]:
  """Bilinear resize, antialiased when it shrinks; NaN has no weight.

  A pixel that is made of missing ones for the most part is missing.
  """
  if x.shape[1:] == tuple(size):
    return x

  def resize(frame: np.ndarray) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(frame, np.float32))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))

  out = np.empty((len(x), *size), np.float32)
  for frame, small in zip(x, out, strict=True):
    there = np.isfinite(frame)
    small[:] = resize(np.where(there, frame, 0))
    if not there.all():
      weight = resize(there.astype(np.float32))
      known = weight > 0.5
      small[:] = np.where(known, small / np.where(known, weight, 1), np.nan)
  return out


def channels_of(array: Any, low: float, high: float, xp: Any) -> Any:
  """Channels [*B, Y, X, 3] of maps [*B, Y, X]: level, relief, relief.

  Args:
    array: as sent.
    low: value of the level -1.
    high: value of the level 1.
    xp: `numpy` or `jax.numpy`.
  """
  x = array.astype(xp.float32)
  there = x > 0.9 * ABSENT  # which is exact in 16 bits; readings are above
  x = xp.where(there, x, low)
  level = xp.clip(2.0 * (x - low) / (high - low) - 1.0, -1.0, 1.0)
  read = there.astype(xp.float32)
  total = lambda v: (v * read).sum(axis=(-2, -1), keepdims=True)
  count = xp.maximum(total(read), 1.0)
  moved = (x - total(x) / count) * read
  # Again, since the first mean is rounded: flat maps have little else.
  moved = (moved - total(moved) / count) * read
  floor = float(_FLAT * (high - low)) ** 2
  deviation = xp.sqrt(xp.maximum(total(moved * moved) / count, floor))
  relief = xp.clip(moved / deviation, -_MOST, _MOST)
  return xp.stack([level, relief, relief], axis=-1)
