"""Frames: pictures of a clip at even times, as JPEG."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mico_jax.config.fields import Range
from mico_jax.data.build.raw import Raw
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import Stage, span_of
from mico_jax.modalities import DecodeError
from mico_jax.modalities.spatial import resize_smooth
from mico_jax.modalities.video import VIDEO

MAX_FRAMES = 4096  # of a clip; more are refused, or memory would be the limit
NO_PICTURES = "the file has no pictures"


@dataclasses.dataclass(frozen=True)
class FramesOptions:
  """Which frames, and how they are stored."""

  # frames a second; frame k is what is shown k / fps s after the clip begins
  fps: Annotated[float, Range(0.001, 240.0, "frames/s")] = 1.0
  # of the shorter side; 0 or a larger one: as it is
  size: Annotated[int, Range(0, 8192, "pixels")] = 256
  # of JPEG
  quality: Annotated[int, Range(1, 100)] = 90


class Frames(Stage):
  """Stores frames at `fps` as JPEG, upright, in place of the video."""

  name: ClassVar[str] = "frames"
  Options: ClassVar[type] = FramesOptions
  makes: ClassVar[tuple[str, ...]] = (VIDEO.key,)
  lists: ClassVar[bool] = True

  def one(self, row: Row) -> Iterable[Row]:
    """See `Stage`."""
    start, end = span_of(row)
    assert row.raw is not None  # or `span_of` had raised
    if not row.raw.has_pictures:
      row.lacks[VIDEO.key] = NO_PICTURES
      return [row]
    row.media[VIDEO.key] = [
      jpeg(shrunk(frame, self.options.size), self.options.quality)
      for frame in shown_at(row.raw, start, end, self.options.fps)
    ]
    return [row]


def shown_at(
  raw: Raw, start: float, end: float, fps: float
) -> Iterator[UInt8[np.ndarray, "Y X 3"]]:
  """What is shown at start, start + 1/fps, ... before `end`.

  Raises:
    DecodeError: for damaged pictures, or more than `MAX_FRAMES`.
  """
  count = 1 if math.isinf(end) else math.ceil((end - start) * fps - 1e-6)
  if count > MAX_FRAMES:
    raise DecodeError(
      f"{end - start:.1f} s at {fps:g} frames/s are {count} frames; expected "
      f"at most {MAX_FRAMES}: cut clips, or lower fps."
    )
  before, done = None, 0
  for time, frame in raw.video.between(start, end):
    while done < count and before is not None and done / fps < time - 1e-6:
      yield before
      done += 1
    before = frame
  while done < count and before is not None:
    yield before
    done += 1


def shrunk(
  frame: UInt8[np.ndarray, "Y X 3"], size: int, *, even: bool = False
) -> UInt8[np.ndarray, "y x 3"]:
  """A picture with a shorter side of `size` at most; 0: of any size.

  `even` makes both sides even, as 4:2:0 colour needs them.
  """
  height, width = frame.shape[:2]
  scale = min(1.0, size / min(height, width)) if size else 1.0
  step = 2 if even else 1
  rows, columns = (
    max(step, step * round(side * scale / step)) for side in (height, width)
  )
  if (rows, columns) == (height, width):
    return frame
  return resize_smooth(frame[None], (rows, columns))[0]


def jpeg(frame: UInt8[np.ndarray, "Y X 3"], quality: int) -> bytes:
  """A picture as JPEG; equal pixels give equal bytes."""
  out = io.BytesIO()
  Image.fromarray(frame).save(out, "jpeg", quality=quality)
  return out.getvalue()
