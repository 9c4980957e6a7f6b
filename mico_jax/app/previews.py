"""Pictures, sounds and videos as any browser shows them.

What is sent is always encoded anew, JPEG, FLAC or H.264: the bytes of a file
never are, so that a preview can give away no file that is none of these.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from mico_jax.data.build.raw import Raw
from mico_jax.data.build.stages.audio import flac
from mico_jax.data.build.stages.frames import shown_at, shrunk
from mico_jax.data.build.stages.h264 import H264Options, encoded
from mico_jax.data.sheet import colour_map, drawable, tiles_of
from mico_jax.inference.prepare import Preparer
from mico_jax.modalities import MODALITIES, DecodeError, Geometry, preprocessing
from mico_jax.modalities.spatial import Clip
from mico_jax.modalities.video_file import VideoClip

JPEG, FLAC, MP4 = "image/jpeg", "audio/flac", "video/mp4"

_RATE = 15.0  # frames per second of a preview, at most
_SECONDS = 20.0  # of a preview, at most
_ARRAY_FRAMES = 32  # of a clip that is an array
_QUALITY = 85  # of JPEG
_LEAST = 128  # pixels, to which smaller pictures are enlarged
_DARK = 0.15  # brightness that is left where a model attends least

Picture = UInt8[np.ndarray, "Y X 3"]


def thumbnails(
  preparer: Preparer, key: str, value: Any, *, count: int = 1, side: int
) -> list[tuple[str, bytes]]:
  """Titles and JPEG files of an input, evenly spaced in time.

  Args:
    preparer: of the model.
    key: of a knowledge modality.
    value: input of the model.
    count: how many, at most.
    side: the larger one in pixels.

  Raises:
    DecodeError: for an input that cannot be read.
  """
  decoded, geometry = preparer.decode_one(key, value)
  return [
    (title, jpeg(picture, side))
    for title, picture in _pictures(preparer, key, decoded, geometry, count)
  ]


def _pictures(
  preparer: Preparer, key: str, decoded: Any, geometry: Geometry, count: int
) -> list[tuple[str, Picture]]:
  """Frames as they are in the file, else what the model sees."""
  if _is_clip(decoded):
    array = decoded.take(_even(len(decoded), count))
  else:
    modality, mode = MODALITIES[key], preparer.mode(key)
    array = drawable(
      preparer.config,
      key,
      preprocessing.host_array(modality, mode, decoded, geometry, None),
    )
    array = array[_even(len(array), count)]
  return tiles_of(key, array)


def _is_clip(decoded: Any) -> bool:
  """Whether a decoded sample gives its frames; an array has a `take`, too."""
  return hasattr(decoded, "take") and not isinstance(decoded, np.ndarray)


def _even(length: int, count: int) -> list[int]:
  """Indices spread over a length; one is in the middle."""
  count = min(length, count)
  return [int((i + 0.5) * length / count) for i in range(count)]


def jpeg(picture: UInt8[np.ndarray, "..."], side: int) -> bytes:
  """A JPEG file, at most `side` pixels wide and high.

  Small pictures, as a model sees them, are enlarged with their pixels.
  """
  image = Image.fromarray(picture).convert("RGB")
  scale = min(side, max(_LEAST, *image.size)) / max(image.size)
  size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
  kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
  out = io.BytesIO()
  image.resize(size, kind).save(out, "JPEG", quality=_QUALITY)
  return out.getvalue()


def data_url(kind: str, data: bytes) -> str:
  """A file inside of a page."""
  return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def playable(
  preparer: Preparer, key: str, value: Any, *, side: int
) -> tuple[str, bytes]:
  """The sound, or the moving pictures without sound, of an input.

  Args:
    preparer: of the model.
    key: of a knowledge modality.
    value: input of the model.
    side: the shorter one of a video in pixels.

  Returns:
    The media type and the file.

  Raises:
    DecodeError: for an input that cannot be read, or does not play.
  """
  modality = MODALITIES[key]
  decoded, geometry = preparer.decode_one(key, value)
  if modality.play is not None:
    samples, rate = modality.play(decoded, geometry)
    return FLAC, flac(samples[: math.ceil(_SECONDS * rate)], rate)
  if isinstance(decoded, VideoClip) and len(decoded) > 1:
    return MP4, _film(preparer, key, value, side)
  if _is_clip(decoded) and len(decoded) > 1:
    return MP4, _array_film(key, decoded, side)
  raise DecodeError(f"{key}: there is nothing to play.")


def _film(preparer: Preparer, key: str, value: Any, side: int) -> bytes:
  """H.264 of the beginning of a file."""
  raw = Raw(
    "preview",
    lambda: preparer.content_of(key, value),
    key=key,
    max_pixels=preparer.config.data.max_pixels,
  )
  seconds = min(raw.video.seconds, _SECONDS)
  count = max(1, len(raw.video.times))
  rate = min(_RATE, max(1.0, count / max(raw.video.seconds, 1e-3)))
  frames = shown_at(raw, 0.0, seconds, rate)
  return _encoded(frames, rate, seconds, side)


def _array_film(key: str, decoded: Clip, side: int) -> bytes:
  """H.264 of frames without times, which take a second together."""
  count = min(len(decoded), _ARRAY_FRAMES)
  array = decoded.take(_even(len(decoded), count))
  frames = (Image.fromarray(p).convert("RGB") for _, p in tiles_of(key, array))
  return _encoded(map(np.asarray, frames), float(count), 1.0, side)


def _encoded(
  frames: Iterator[Picture], rate: float, seconds: float, side: int
) -> bytes:
  timed = (
    (i / rate, shrunk(frame, side, even=True)) for i, frame in enumerate(frames)
  )
  return encoded(timed, seconds, H264Options(size=0, crf=26))


def overlays(
  preparer: Preparer,
  key: str,
  value: Any,
  maps: Float[np.ndarray, "T gy gx"],
  *,
  side: int,
) -> list[dict[str, Any]]:
  """What a model sees of an input, with and without its attention on it.

  Args:
    preparer: of the model.
    key: of a modality that is a grid of patches.
    value: input of the model.
    maps: weights on the patches of each frame.
    side: the larger one of a picture in pixels.

  Returns:
    For each frame `title`, `picture` and `overlay` (data URLs; the brighter,
    the more weight), and the `least` and `most` weight.
  """
  array = drawable(preparer.config, key, preparer.prepare_one(key, value))
  draw, found = MODALITIES[key].draw, []
  tiles = tiles_of(key, array)
  for (title, picture), frame, weights in zip(tiles, array, maps, strict=True):
    heat = _spread(weights, frame.shape[:2])
    heat = heat if draw is None else draw(heat)
    if picture.ndim < 3:
      picture = colour_map(picture)
    found.append(
      {
        "title": title,
        "picture": data_url(JPEG, jpeg(picture, side)),
        "overlay": data_url(JPEG, jpeg(_lit(picture, heat), side)),
        "least": float(weights.min()),
        "most": float(weights.max()),
      }
    )
  return found


def _spread(
  weights: Float[np.ndarray, "gy gx"], size: tuple[int, int]
) -> Float[np.ndarray, "Y X"]:
  """Weights of patches for each pixel, from 0 for the least to 1."""
  low, high = float(weights.min()), float(weights.max())
  scaled = (weights - low) / (high - low) if high > low else 0 * weights + 1
  image = Image.fromarray(scaled.astype(np.float32))
  image = image.resize(size[::-1], Image.Resampling.BILINEAR)
  return np.clip(np.asarray(image), 0.0, 1.0)


def _lit(picture: Picture, light: Float[np.ndarray, "Y X"]) -> Picture:
  """A picture that is dark where there is no light."""
  share = _DARK + (1.0 - _DARK) * light[..., None]
  return np.rint(picture * share).astype(np.uint8)
