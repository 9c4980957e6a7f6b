"""Depth maps as SUN RGB-D stores them: millimetres, rotated by three bits.

Source: Song et al., SUN RGB-D, CVPR 2015 (its toolbox: the 16 bits of a value
rotated to the right by three).
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from mico_jax.modalities import DecodeError

_BITS = 3


def rotated(data: bytes) -> UInt16[np.ndarray, "Y X"]:
  """The millimetres of a 16-bit PNG; 0 where nothing was measured.

  Raises:
    DecodeError: for another picture.
  """
  try:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
      values = np.asarray(image)
  except (OSError, ValueError, Image.DecompressionBombError) as error:
    raise DecodeError(f"depth map: {error}") from error
  if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
    raise DecodeError(
      f"depth map: expected one channel of 16 bits, got {values.dtype} "
      f"{values.shape}."
    )
  if values.size and (values.min() < 0 or values.max() > 0xFFFF):
    raise DecodeError("depth map: values of more than 16 bits.")
  bits = values.astype(np.uint16)
  return (bits >> _BITS) | (bits << (16 - _BITS)).astype(np.uint16)
