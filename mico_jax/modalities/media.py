"""Image bytes to frames, through Pillow.

Memory is bounded: the header is read before any pixel, an image beyond
`max_pixels` is refused, and one beyond `LARGE` pixels is decoded alone and
reduced at once.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mico_jax.modalities.base import DecodeError, Geometry
from mico_jax.modalities.spatial import ArrayClip, Clip

LARGE = 16_000_000  # pixels; larger images are reduced before use
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_large_lock = threading.Lock()

# Pillow warns at 89 million pixels; ours is the check that counts.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, 180_000_000)


@contextlib.contextmanager
def open_image(data: bytes, geometry: Geometry) -> Iterator[Image.Image]:
  """Opens an image, checks its size before decoding, reduces a large one.

  Raises:
    DecodeError: for unreadable, truncated or too large files.
  """
  if not data:
    raise DecodeError("the file is empty (0 bytes).")
  try:
    with Image.open(io.BytesIO(data)) as image:
      pixels = image.width * image.height
      if pixels > geometry.max_pixels:
        raise DecodeError(
          f"image of {image.width} x {image.height} pixels exceeds "
          f"data.max_pixels={geometry.max_pixels}; shrink it or raise that."
        )
      large = pixels > LARGE
      with _large_lock if large else contextlib.nullcontext():
        if large:
          # JPEG decodes at 1/2, 1/4 or 1/8 by itself; the rest is reduced.
          side = 2 * geometry.size
          image.draft("RGB", (side, side))
          image.load()
          yield _reduce(image)
        else:
          image.load()
          yield image
  except DecodeError:
    raise
  except Exception as error:  # Pillow raises many kinds for broken files
    raise DecodeError(f"not a readable image: {one_line(error)}") from error


def _reduce(image: Image.Image) -> Image.Image:
  factor = 1
  while image.width * image.height > LARGE * factor * factor:
    factor += 1
  if factor == 1 or image.mode in _SIXTEEN_BIT:
    return image
  return image.reduce(factor)


def one_line(error: BaseException) -> str:
  """The message of a library's error, without the object it was reading."""
  text = re.sub(r"<_io\.BytesIO[^>]*>", "file", str(error))
  return " ".join(text.split())[:200] or type(error).__name__


def decode_image(data: bytes, geometry: Geometry) -> np.ndarray:
  """An 8-bit RGB image, uint8 [Y, X, 3].

  Raises:
    DecodeError: also for a 16-bit image, whose meaning is not known.
  """
  with open_image(data, geometry) as image:
    if image.mode in _SIXTEEN_BIT or image.mode == "F":
      raise DecodeError(
        f"{image.mode!r} image with 16 or 32 bits per pixel is no photo; if it "
        "is depth, say so and give its unit: depth:mm:FILE.png (or depth:m:, "
        "depth:relative:)."
      )
    return np.asarray(image.convert("RGB"))


def as_rgb(array: np.ndarray) -> np.ndarray:
  """A raw array as uint8 [T, Y, X, 3]; grey is repeated.

  Accepts [Y, X], [Y, X, 3], [T, Y, X, 3]; raises DecodeError otherwise.
  """
  if array.dtype != np.uint8:
    raise DecodeError(f"frames must be uint8, got {array.dtype}.")
  if array.ndim == 2:
    array = np.repeat(array[..., None], 3, -1)
  if array.ndim == 3:
    array = array[None]
  if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
    raise DecodeError(
      f"frames must be [Y, X], [Y, X, 3] or [T, Y, X, 3], got {array.shape}."
    )
  return array


class ImageListClip:
  """Frames kept as image files until they are taken."""

  def __init__(self, files: Sequence[Any], geometry: Geometry):
    """Takes bytes or arrays, one per frame; at least one."""
    if not files:
      raise DecodeError("the list of frames is empty.")
    self._files, self._geometry = files, geometry

  def __len__(self) -> int:
    """Number of frames."""
    return len(self._files)

  def take(self, indices: Sequence[int]) -> np.ndarray:
    """The frames at `indices`, uint8 [T, Y, X, 3]."""
    frames = []
    for i in indices:
      raw = self._files[int(i)]
      if isinstance(raw, np.ndarray):
        frames.append(as_rgb(raw)[0])
      else:
        frames.append(decode_image(raw, self._geometry))
    if len({f.shape for f in frames}) > 1:
      raise DecodeError(
        f"frames differ in size: {sorted({f.shape[:2] for f in frames})}."
      )
    return np.stack(frames)


def decode_frames(raw: Any, geometry: Geometry) -> Clip:
  """An image, a list of frames or an array as a clip.

  Raises:
    DecodeError: for anything that is not.
  """
  if isinstance(raw, np.ndarray):
    return ArrayClip(as_rgb(raw))
  if isinstance(raw, (list, tuple)):
    return ImageListClip(raw, geometry)
  if isinstance(raw, bytes):
    return ArrayClip(decode_image(raw, geometry)[None])
  raise DecodeError(f"expected a file, frames or an array, got {type(raw)}.")


def example_frames(geometry: Geometry, seed: int) -> Clip:
  """A deterministic clip: smooth colour waves that move with time."""
  t = np.arange(geometry.frames, dtype=np.float32)[:, None, None, None]
  y = np.linspace(0, 1, geometry.size, dtype=np.float32)[None, :, None, None]
  x = np.linspace(0, 1, geometry.size, dtype=np.float32)[None, None, :, None]
  c = np.arange(3, dtype=np.float32)[None, None, None, :]
  wave = np.sin(6.0 * y + (seed % 7 + 2.0) * x + c + 0.5 * t + seed)
  return ArrayClip(np.rint(127.5 + 127.5 * wave).astype(np.uint8))
