"""Checks of raw arrays: .npy files, maps and normals.

A shape has one meaning only. An array whose shape could mean something else
(channels instead of columns) is refused.
"""

from __future__ import annotations

import io
import math

import numpy as np
from jaxtyping import Shaped, UInt8

from mico_jax.modalities.base import DecodeError

CHANNELS = 4  # a last axis up to here holds channels, not columns
_MAX_AXES = 8
_MAGIC = b"\x93NUMPY"


def is_npy(data: bytes) -> bool:
  """Whether the content of a file is that of a .npy file."""
  return data.startswith(_MAGIC)


def read_npy(data: bytes) -> Shaped[np.ndarray, "..."]:
  """The array of a .npy file, read-only, without copying its values.

  Raises:
    DecodeError: if the header does not match the size of the file, or for
      values that are no numbers (objects, records, texts, times).
  """
  stream = io.BytesIO(data)
  try:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
      raise ValueError(f"version {version} of the format")
    read = (
      np.lib.format.read_array_header_1_0
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(stream)
  except Exception as error:  # a wrong header can raise many kinds
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise DecodeError(f"not a readable .npy file: {reason}") from error
  if dtype.kind not in "buifc":
    raise DecodeError(f".npy file of {dtype}; expected numbers.")
  start = stream.tell()
  size = math.prod(shape) * dtype.itemsize
  if (
    len(shape) > _MAX_AXES
    or min(shape, default=0) < 0
    or size != len(data) - start
  ):
    raise DecodeError(
      "not a readable .npy file: its header says "
      f"{list(shape[:_MAX_AXES])} of {dtype}, "
      f"{size} bytes; {len(data) - start} are there."
    )
  flat = np.frombuffer(data, dtype, offset=start)
  return flat.reshape(shape, order="F" if fortran else "C")


def window(
  cube: Shaped[np.ndarray, "Y X ..."], row: int, column: int, reach: int = 7
) -> Shaped[np.ndarray, "W W ..."]:
  """The pixels around one of them, which is in the middle.

  Args:
    cube: of any values; what lies beyond its edges is NaN, and the values are
      float32 then.
    row: of the pixel, from 0.
    column: of the pixel, from 0.
    reach: pixels on either side.

  Raises:
    DecodeError: for a pixel outside.
  """
  shape = cube.shape
  if cube.ndim < 2 or not (0 <= row < shape[0] and 0 <= column < shape[1]):
    raise DecodeError(
      f"there is no pixel {row},{column} in an array of shape {list(shape)}."
    )
  rows = slice(max(row - reach, 0), row + reach + 1)
  columns = slice(max(column - reach, 0), column + reach + 1)
  part = cube[rows, columns]
  size = 2 * reach + 1
  if part.shape[:2] == (size, size):
    return part
  out = np.full((size, size, *shape[2:]), np.nan, np.float32)
  top, left = rows.start - row + reach, columns.start - column + reach
  out[top : top + part.shape[0], left : left + part.shape[1]] = part
  return out


def as_maps(
  array: Shaped[np.ndarray, "..."],
) -> Shaped[np.ndarray, "T Y X"]:
  """Maps with one value per pixel.

  Args:
    array: [Y, X], [T, Y, X], or one of these with a last axis of one channel.

  Raises:
    DecodeError: for other shapes, and for so few columns that they are rather
      channels or frames.
  """
  shape = array.shape
  if array.ndim in (3, 4) and shape[-1] == 1:
    array = array[..., 0]
  if array.ndim not in (2, 3) or 0 in shape:
    raise DecodeError(
      f"one value per pixel expected, [Y, X] or [T, Y, X], got {list(shape)}."
    )
  *others, columns = array.shape
  few = columns <= CHANNELS < max(others)
  # Also [Y, X, T], frames last: it would be very narrow pictures.
  if few or (len(others) == 2 and columns * 4 < min(others)):
    raise DecodeError(
      "one value per pixel expected, [Y, X] or [T, Y, X]; the last axis of "
      f"{list(shape)} looks like channels or frames."
    )
  return array[None] if array.ndim == 2 else array


def encode_normals(
  array: Shaped[np.ndarray, "..."],
) -> UInt8[np.ndarray, "*T Y X 3"]:
  """Encodes unit vectors n as round(255 (n + 1) / 2).

  Args:
    array: [Y, X, 3] or [T, Y, X, 3], in [-1, 1]; vectors of length 0 mean that
      there is no value.

  Raises:
    DecodeError: for another shape or range, or if over a tenth of the vectors
      have a length that differs from 1 by over 0.1.
  """
  expected = "normals in [-1, 1], or (n + 1) / 2 as uint8"
  if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape:
    raise DecodeError(f"[Y, X, 3] {expected} expected, got {array.shape}.")
  n = array.astype(np.float32)
  most = float(np.abs(n).max())
  if not most <= 1.01:  # also where it is not a number
    raise DecodeError(f"{expected} expected, got values up to {most:.3g}.")
  length = np.sqrt(np.square(n).sum(-1))
  wrong = float(np.mean((np.abs(length - 1) > 0.1) & (length > 1e-3)))
  if wrong > 0.1:
    raise DecodeError(
      f"{100 * wrong:.0f}% of the normals are not of unit length; {expected} "
      "expected."
    )
  return np.rint((np.clip(n, -1, 1) + 1) * 127.5).astype(np.uint8)
