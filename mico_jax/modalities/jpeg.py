"""Decoding of JPEG with simplejpeg, where it equals Pillow bit by bit.

Both are libjpeg-turbo, but Pillow decodes in small strips and copies the pixels
twice. What is not plain JPEG in grey or RGB is left to Pillow, and so are files
with any fault: which of those are refused is Pillow's matter alone.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Decoder = Callable[..., np.ndarray]


def parts_of(width: int, height: int, least: float) -> int:
  """1, 2, 4 or 8: the most by which a shorter side of `least` pixels is kept.

  libjpeg-turbo decodes these fast; at 5/8 to 7/8 it is slower than at 1.
  """
  side = min(width, height)
  return next((n for n in (8, 4, 2) if 0 < least <= side // n), 1)


def decode_jpeg(
  data: bytes, width: int, height: int, parts: int = 1
) -> UInt8[np.ndarray, "Y X 3"] | None:
  """Pixels of a JPEG file without faults, not yet turned upright.

  Args:
    data: content of the file.
    width: in pixels, by its header.
    height: in pixels, by its header.
    parts: 2, 4 or 8: by how much both sides are divided, rounded up.

  Returns:
    None if Pillow must decode it.
  """
  decoder = _decoder()
  if decoder is None:
    return None
  width, height = -(-width // parts), -(-height // parts)
  least = {"min_height": height, "min_width": width} if parts > 1 else {}
  try:
    pixels = decoder(data, **least)
  except (ValueError, RuntimeError):  # faults, and rare kinds of JPEG
    return None
  return pixels if pixels.shape == (height, width, 3) else None


@functools.cache
def _decoder() -> Decoder | None:
  """The decoder of simplejpeg; None without it, or if its pixels differ.

  They are compared once, since both packages bring a library of their own.
  """
  try:
    import simplejpeg
  except ImportError:
    return None
  decoder = functools.partial(
    simplejpeg.decode_jpeg,
    colorspace="RGB",
    fastdct=False,
    fastupsample=False,
    strict=True,
  )
  try:
    equal = all(_is_equal(decoder, kind) for kind in (-1, 0, 1, 2))
  except (ValueError, RuntimeError, TypeError):
    return None
  return decoder if equal else None


def _is_equal(decoder: Decoder, subsampling: int) -> bool:
  """Whether the pixels of a small picture equal Pillow's; -1: a grey one."""
  noise = np.random.default_rng(0).integers(0, 256, (41, 55, 3), np.uint8)
  noise[:20] = np.arange(55, dtype=np.uint8)[:, None] * 4
  image, file = Image.fromarray(noise), io.BytesIO()
  if subsampling < 0:
    image.convert("L").save(file, "JPEG", quality=85)
  else:
    image.save(file, "JPEG", quality=85, subsampling=subsampling)
  with Image.open(file) as opened:
    expected = np.asarray(opened.convert("RGB"))
  return np.array_equal(decoder(file.getvalue()), expected)
