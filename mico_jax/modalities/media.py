"""Decoding of images with Pillow.

Memory is bounded: the header is read before any pixel, images of more than
`max_pixels` are refused, and those of more than `LARGE` pixels are decoded one
at a time and reduced at once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from mico_jax.modalities.arrays import (
  CHANNELS,
  encode_normals,
  is_npy,
  read_npy,
)
from mico_jax.modalities.base import DecodeError, Geometry
from mico_jax.modalities.jpeg import decode_jpeg, parts_of
from mico_jax.modalities.spatial import ArrayClip, Clip

LARGE = 16_000_000  # pixels; larger images are reduced before use
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_large_lock = threading.RLock()

# Pillow warns at 89 million pixels; `max_pixels` is checked here instead.
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, 180_000_000)

BACKGROUND = (255, 255, 255)  # sRGB, behind transparent pixels
# Formats to open; others of Pillow's start programs or are no pictures.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM",
           "TIFF", "WEBP")  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"  # no other format begins so
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


@functools.cache
def _formats() -> tuple[str, ...]:
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(
  data: bytes | Image.Image, geometry: Geometry, *, values: bool = False
) -> Image.Image:
  """Decodes an image, upright and of at most `LARGE` pixels.

  Of a file with several pictures (GIF, APNG, animated WebP, pages of a TIFF,
  MPO) the first is used. The orientation is that of EXIF, or of XMP if there is
  no readable EXIF. Colour profiles are ignored: values are taken as sRGB.

  Args:
    data: content of a file, or an image opened by Pillow.
    geometry: limits.
    values: True: the channels as stored (a depth map), reduced by taking
      pixels; False: 8-bit RGB over `BACKGROUND`, reduced by averaging.

  Raises:
    DecodeError: for unreadable, truncated or too large files.
  """
  if isinstance(data, bytes) and not data:
    raise DecodeError("the file is empty (0 bytes).")
  try:
    with contextlib.ExitStack() as held:
      if isinstance(data, Image.Image):
        if values:
          _check_counts(data, b"")
        image = _load_opened(data, geometry, held)
      else:
        image = _load_whole(data, geometry, held, values=values)
      turn = _TURNS.get(_orientation(image))
      image = _nearest(image) if values else _flat(image)
      return image if turn is None else image.transpose(turn)
  except (DecodeError, MemoryError):
    raise
  except Exception as error:  # Pillow raises many kinds for broken files
    raise DecodeError(f"not a readable image: {one_line(error)}") from error


def _load(
  data: bytes, geometry: Geometry, held: contextlib.ExitStack, *, values: bool
) -> Image.Image:
  """Checks the size, then decodes; large images one at a time."""
  data = _with_free_canvas(data)
  formats = ("PNG",) if data.startswith(_PNG) else _formats()
  with Image.open(io.BytesIO(data), formats=formats) as image:
    if _is_large(image, geometry, held) and not values:
      # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size.
      image.draft("RGB", (2 * geometry.size, 2 * geometry.size))
    elif not values and image.format == "JPEG":
      parts = _parts(image, geometry)
      if parts > 1:
        image.draft(None, (image.width // parts, image.height // parts))
    if values:
      _check_counts(image, data)
    image.load()
    _mend_transparency(image, data)
    return image


def _parts(image: Image.Image, geometry: Geometry) -> int:
  """See `parts_of`."""
  return parts_of(*image.size, geometry.draft * geometry.size)


def _with_free_canvas(data: bytes) -> bytes:
  """Marks an animated WebP as transparent.

  A file of opaque frames is marked as opaque, though its first frame may leave
  a part of the canvas free, which Pillow would show as black.
  """
  animated = data[:4] + data[8:16] == b"RIFFWEBPVP8X" and data[20:21] > b""
  if not (animated and data[20] & 2):
    return data
  return data[:20] + bytes((data[20] | 16,)) + data[21:]


def _check_counts(image: Image.Image, data: bytes) -> None:
  """Refuses values that Pillow would stretch to the full range of 16 bits."""
  most, tile = 0, getattr(image, "tile", None)
  if image.format == "PPM" and image.mode == "I" and tile:
    args = tile[0].args  # "I;16B", or (mode, largest value)
    most = args[-1] if isinstance(args, tuple) else 65535
  elif image.format == "JPEG2000":
    at = data.find(b"\xff\x4f\xff\x51")  # marker of the sizes
    bits = (data[at + 42] & 127) + 1 if 0 <= at < len(data) - 42 else 16
    most = 0 if bits in (8, 16) else 2**bits - 1
  if most not in (0, 65535):
    raise DecodeError(
      f"a {image.format} file whose values end at {most} would be stretched; "
      "save the counts in 16 bits (a PGM's largest value is 65535)."
    )


def _is_large(
  image: Image.Image, geometry: Geometry, held: contextlib.ExitStack
) -> bool:
  """Checks the size, and takes the lock for large images."""
  pixels = image.width * image.height
  if not 0 < pixels <= geometry.max_pixels:
    raise DecodeError(
      f"image of {image.width} x {image.height} pixels; expected between 1 "
      f"and data.max_pixels={geometry.max_pixels}: shrink it or raise that."
    )
  if pixels > LARGE:
    held.enter_context(_large_lock)
  return pixels > LARGE


def _load_opened(
  image: Image.Image, geometry: Geometry, held: contextlib.ExitStack
) -> Image.Image:
  """Decodes an image opened by Pillow, if that has not happened yet."""
  _is_large(image, geometry, held)
  # The number of bits of an opened PNG is unknown, and so is the transparent
  # value.
  clear = image.format == "PNG" and "transparency" in image.info
  if clear and image.mode in ("L", "RGB"):
    raise DecodeError(
      "an opened PNG with one transparent grey or colour; give the path of the "
      "file, or image.convert('RGBA') if it has 8 bits."
    )
  image.load()
  return image


def _load_whole(
  data: bytes, geometry: Geometry, held: contextlib.ExitStack, *, values: bool
) -> Image.Image:
  """Decodes a file; a JPEG may lack its end marker if no pixel is missing.

  None is missing if appended bytes do not change the picture.
  """
  load = functools.partial(_load, geometry=geometry, held=held, values=values)
  try:
    return load(data)
  except OSError:
    if not (data.startswith(b"\xff\xd8") and _has_all_scans(data)):
      raise
    data, end = data.rstrip(b"\xff"), b"\xff\xd9"
    image = load(data + end)
    pixels = image.tobytes()
    for filler in (b"\x00", b"\x55", b"\xfe"):
      if load(data + 4096 * filler + end).tobytes() != pixels:
        raise
    return image


def _has_all_scans(jpeg: bytes) -> bool:
  """Whether scans of all components at full precision have begun."""
  expected: set[tuple[int, int]] = set()
  begun: set[tuple[int, int]] = set()
  for match in re.finditer(rb"\xff([\xc0-\xc2\xda])..", jpeg, re.DOTALL):
    body = jpeg[match.end() : match.end() + 800]
    if match[1] != b"\xda":  # A frame: size, then its components.
      ids = body[6 : 6 + 3 * body[5] : 3] if len(body) > 5 else b""
      expected |= {(i, end) for i in ids for end in (0, 63)}
      continue
    count = body[0] if body else 0
    if len(body) > 3 + 2 * count and body[3 + 2 * count] & 15 == 0:
      ends = body[1 + 2 * count : 3 + 2 * count]
      begun |= {(i, e) for i in body[1 : 1 + 2 * count : 2] for e in ends}
  return bool(expected) and expected <= begun


def _mend_transparency(image: Image.Image, data: bytes) -> None:
  """Scales the transparent value of a PNG to 8 bits, as Pillow does pixels."""
  clear = image.info.get("transparency")
  if image.format != "PNG" or clear is None:
    return
  bits = data[24]
  if image.mode == "RGB" and bits == 16:
    raise DecodeError(
      "a 16-bit RGB PNG with one transparent colour; save it with an alpha "
      "channel or 8 bits."
    )
  if image.mode == "L" and bits in (2, 4) and clear < 2**bits:
    image.info["transparency"] = clear * (255 // (2**bits - 1))


def _orientation(image: Image.Image) -> int:
  if image.format == "JPEG" and not {"exif", "xmp"} & image.info.keys():
    return 1  # Pillow would search the whole file
  try:
    value = image.getexif().get(_ORIENTATION)
  except Exception:  # broken metadata can raise many kinds
    return 1
  return value if isinstance(value, int) else 1


def _factor(image: Image.Image) -> int:
  """Factor by which both sides of a large image are reduced."""
  factor = 1
  while image.width * image.height > LARGE * factor * factor:
    factor += 1
  return factor


def _nearest(image: Image.Image) -> Image.Image:
  factor = _factor(image)
  if factor == 1:
    return image
  size = (-(-image.width // factor), -(-image.height // factor))
  return image.resize(size, Image.Resampling.NEAREST)


def _flat(image: Image.Image) -> Image.Image:
  """RGB of at most `LARGE` pixels; a large image is reduced in bands."""
  if image.mode in (*_SIXTEEN_BIT, "F"):
    raise DecodeError(
      f"{image.mode!r} image with 16 or 32 bits per pixel is no photo; if it "
      "is depth, write it with its unit: depth:mm:FILE.png (or depth:m:, "
      "depth:relative:)."
    )
  factor = _factor(image)
  if factor == 1:
    return _over_background(image)
  width, height = image.size
  small = Image.new("RGB", (-(-width // factor), -(-height // factor)))
  rows = factor * max(1, 2**20 // (width * factor))
  for top in range(0, height, rows):
    band = image.crop((0, top, width, min(top + rows, height)))
    small.paste(_over_background(band).reduce(factor), (0, top // factor))
  return small


def _over_background(image: Image.Image) -> Image.Image:
  if not image.has_transparency_data:
    return image if image.mode == "RGB" else image.convert("RGB")
  ground = Image.new("RGBA", image.size, (*BACKGROUND, 255))
  return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def one_line(error: BaseException) -> str:
  """The message of an error in one line, without the file object's address."""
  text = re.sub(r"<_io\.BytesIO[^>]*>", "file", str(error))
  return " ".join(text.split())[:200] or type(error).__name__


def decode_image(
  data: bytes | Image.Image, geometry: Geometry
) -> UInt8[np.ndarray, "Y X 3"]:
  """Decodes a picture: upright, over `BACKGROUND`, see `open_image`.

  The upper 8 bits of 16-bit colours are used.

  Raises:
    DecodeError: also for one channel of 16 bits, which may be depth.
  """
  if isinstance(data, bytes) and data.startswith(b"\xff\xd8\xff"):
    pixels = _jpeg_pixels(data, geometry)
    if pixels is not None:
      return pixels
  return np.asarray(open_image(data, geometry))


def _jpeg_pixels(
  data: bytes, geometry: Geometry
) -> UInt8[np.ndarray, "Y X 3"] | None:
  """Upright pixels of a JPEG without faults; None: `open_image` decodes it."""
  try:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
      pixels = image.width * image.height
      plain = image.format == "JPEG" and image.mode in ("L", "RGB")
      if not plain or pixels > min(LARGE, geometry.max_pixels):
        return None
      turn = _TURNS.get(_orientation(image))
      array = decode_jpeg(data, *image.size, _parts(image, geometry))
  except MemoryError:
    raise
  except Exception:  # Pillow raises many kinds; `open_image` tells them
    return None
  if array is None or turn is None:
    return array
  return np.asarray(Image.fromarray(array).transpose(turn))


def as_rgb(
  array: Shaped[np.ndarray, "..."],
) -> UInt8[np.ndarray, "T Y X 3"]:
  """Frames of a raw array; a grey picture is repeated for R, G and B.

  Floats are in [0, 1], as `matplotlib` and `torchvision` have them, and are
  rounded to 255 steps. Channels may come first, where nothing else can be
  meant.

  Args:
    array: uint8 or float [Y, X], [Y, X, 3], [3, Y, X], or [T, ...] of the last
      two.

  Raises:
    DecodeError: for others, for floats beyond [0, 1], and for shapes that mean
      several things, such as so few columns that they are rather channels.
  """
  array = _channels_last(array)
  if array.dtype.kind == "f":
    array = _counts(array)
  if array.dtype != np.uint8:
    raise DecodeError(
      f"frames must be uint8 in 0..255 or float in 0..1, got {array.dtype}."
    )
  shape = array.shape
  if array.ndim == 2 and not shape[1] <= CHANNELS < shape[0]:
    array = np.repeat(array[..., None], 3, -1)
  if array.ndim == 3:
    array = array[None]
  if array.ndim != 4 or array.shape[-1] != 3 or 0 in shape:
    raise DecodeError(
      "frames must be [Y, X], [Y, X, 3], [3, Y, X], or several of the last two "
      f"[T, ...], got {shape}."
    )
  return array


def _channels_last(
  array: Shaped[np.ndarray, "..."],
) -> Shaped[np.ndarray, "..."]:
  """[3, Y, X] as [Y, X, 3], also behind an axis of frames."""
  shape = array.shape
  if array.ndim not in (3, 4) or shape[-3] != 3:
    return array
  if shape[-1] > CHANNELS:
    return np.moveaxis(array, -3, -1)
  if array.ndim == 4 and shape[-1] == 3:
    raise DecodeError(
      f"frames {list(shape)} may have their channels first or last; give "
      "[T, Y, X, 3] of more than three rows."
    )
  return array


def _counts(
  array: Float[np.ndarray, "..."],
) -> UInt8[np.ndarray, "..."]:
  """Floats in [0, 1] as 0..255.

  Raises:
    DecodeError: for others: they are 0..255 as floats, or normalised already.
  """
  least, most = (
    float(f(array)) if array.size else 0.0 for f in (np.min, np.max)
  )
  if not (least >= 0 and most <= 1):  # also where one is not a number
    raise DecodeError(
      f"float frames must be in 0..1, got {least:.3g} to {most:.3g}; give "
      "0..255 as uint8, and pixels before any normalisation."
    )
  return np.rint(array * 255.0).astype(np.uint8)


class ImageListClip:
  """Frames that stay image files until they are taken."""

  def __init__(
    self,
    files: Sequence[Any],
    geometry: Geometry,
    decode: Callable[[Any, Geometry], Clip],
  ):
    """Takes bytes or arrays, one per frame, and the decoder of a frame."""
    if not files:
      raise DecodeError("the list of frames is empty.")
    self._files, self._geometry, self._decode = files, geometry, decode

  def __len__(self) -> int:
    """Number of frames."""
    return len(self._files)

  def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "T Y X 3"]:
    """The frames at `indices`."""
    frames = []
    for i in indices:
      clip = self._decode(self._files[int(i)], self._geometry)
      if len(clip) != 1:
        raise DecodeError(f"a frame of a list holds {len(clip)} frames.")
      frames.append(clip.take([0])[0])
    if len({f.shape for f in frames}) > 1:
      raise DecodeError(
        f"frames differ in size: {sorted({f.shape[:2] for f in frames})}."
      )
    return np.stack(frames)


def decode_frames(raw: Any, geometry: Geometry) -> Clip:
  """Decodes images and frames.

  Args:
    raw: content of a file, a Pillow image, an array, or a list of frames.
    geometry: limits.

  Raises:
    DecodeError: for anything else, and for unreadable files.
  """
  if isinstance(raw, bytes) and is_npy(raw):
    raw = read_npy(raw)
  if isinstance(raw, np.ndarray):
    return ArrayClip(as_rgb(raw))
  if isinstance(raw, (list, tuple)):
    return ImageListClip(raw, geometry, decode_frames)
  if isinstance(raw, (bytes, Image.Image)):
    return ArrayClip(decode_image(raw, geometry)[None])
  raise DecodeError(f"expected a file, frames or an array, got {type(raw)}.")


def decode_normals(raw: Any, geometry: Geometry) -> Clip:
  """Decodes normals: pictures, uint8 arrays, or float arrays of unit vectors.

  Raises:
    DecodeError: for unreadable files, and for grey pictures.
  """
  if isinstance(raw, (list, tuple)):
    return ImageListClip(raw, geometry, decode_normals)
  if isinstance(raw, bytes) and is_npy(raw):
    raw = read_npy(raw)
  if isinstance(raw, np.ndarray):
    if raw.dtype.kind == "f":
      raw = encode_normals(raw)
    elif raw.ndim > 2 and raw.shape[-1] != 3:  # not components first
      raise DecodeError(
        f"frames must be [Y, X, 3] or [T, Y, X, 3], got {raw.shape}."
      )
  clip = decode_frames(raw, geometry)
  frames = clip.take(range(len(clip)))
  if frames.min() != frames.max() and (frames == frames[..., :1]).all():
    raise DecodeError(
      "a grey picture is no map of normals; expected R, G and B with "
      "(n + 1) / 2."
    )
  return clip


def example_frames(geometry: Geometry, seed: int) -> Clip:
  """A deterministic clip: smooth colour waves that move with time."""
  t = np.arange(geometry.frames, dtype=np.float32)[:, None, None, None]
  y = np.linspace(0, 1, geometry.size, dtype=np.float32)[None, :, None, None]
  x = np.linspace(0, 1, geometry.size, dtype=np.float32)[None, None, :, None]
  c = np.arange(3, dtype=np.float32)[None, None, None, :]
  wave = np.sin(6.0 * y + (seed % 7 + 2.0) * x + c + 0.5 * t + seed)
  return ArrayClip(np.rint(127.5 + 127.5 * wave).astype(np.uint8))
