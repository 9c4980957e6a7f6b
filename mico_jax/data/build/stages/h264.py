"""H.264: a clip encoded anew, quick to read at any moment."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from mico_jax.config import ConfigError
from mico_jax.config.fields import Choice, Range
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import Stage, span_of
from mico_jax.data.build.stages.frames import NO_PICTURES, shown_at, shrunk
from mico_jax.modalities import DecodeError
from mico_jax.modalities.video import VIDEO

_CLOCK = 90_000  # units of time a second
_PRESETS = ("ultrafast", "veryfast", "fast", "medium", "slow", "veryslow")


@dataclasses.dataclass(frozen=True)
class H264Options:
  """How clips are encoded."""

  # frames a second; 0: every frame at its own time, also of a varying rate
  fps: Annotated[float, Range(0.0, 240.0, "frames/s")] = 0.0
  # of the shorter side, sides made even; 0 or a larger one: as it is
  size: Annotated[int, Range(0, 4096, "pixels")] = 256
  # frames from one key frame to the next; few are quick to seek in
  gop: Annotated[int, Range(1, 1000, "frames")] = 12
  # quality: less is better
  crf: Annotated[int, Range(0, 51)] = 23
  # effort
  preset: Annotated[str, Choice(*_PRESETS)] = "veryfast"


class H264(Stage):
  """Stores clips as H.264 in MP4 with a short GOP, upright, without sound."""

  name: ClassVar[str] = "h264"
  Options: ClassVar[type] = H264Options
  makes: ClassVar[tuple[str, ...]] = (VIDEO.key,)

  def check(self) -> None:
    """See `Stage`."""
    import av

    if "libx264" not in av.codecs_available:
      raise ConfigError("h264: this build of PyAV has no libx264; use frames.")

  def one(self, row: Row) -> Iterable[Row]:
    """See `Stage`."""
    start, end = span_of(row)
    assert row.raw is not None  # or `span_of` had raised
    if not row.raw.has_pictures:
      row.lacks[VIDEO.key] = NO_PICTURES
      return [row]
    if math.isinf(end):
      raise DecodeError("a picture alone is no video; use frames.")
    frames: Iterator[tuple[float, np.ndarray]]
    if self.options.fps:
      fps = self.options.fps
      frames = (
        (i / fps, frame)
        for i, frame in enumerate(shown_at(row.raw, start, end, fps))
      )
    else:
      frames = row.raw.video.between(start, end)
    size = self.options.size
    row.media[VIDEO.key] = encoded(
      ((time, shrunk(f, size, even=True)) for time, f in frames),
      end - start,
      self.options,
    )
    return [row]


def encoded(
  frames: Iterable[tuple[float, UInt8[np.ndarray, "Y X 3"]]],
  seconds: float,
  options: H264Options,
) -> bytes:
  """An MP4 file of frames at their times.

  One thread and no tags: equal frames give equal bytes.

  Args:
    frames: (s from the start, pixels of one even size).
    seconds: the length; the last frame stays until then.
    options: of the encoder.

  Raises:
    DecodeError: if the frames differ in size.
  """
  import av

  out = io.BytesIO()
  stream: Any = None
  with av.open(
    out, "w", format="mp4", options={"fflags": "+bitexact"}
  ) as container:
    add: Any = container.add_stream
    size, times, packets = None, [], []
    for time, pixels in frames:
      if stream is None:
        size = pixels.shape
        stream = add("libx264", rate=30, options=_codec_options(options))
        stream.height, stream.width = size[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, _CLOCK)
      if pixels.shape != size:
        raise DecodeError("the frames of the video differ in size.")
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      frame.pts, frame.time_base = round(time * _CLOCK), Fraction(1, _CLOCK)
      times.append(frame.pts)
      packets += stream.encode(frame)
    if stream is None:
      raise DecodeError("the clip holds no frame.")
    packets += stream.encode()
    times.append(max(round(seconds * _CLOCK), times[-1] + 1))
    # Without B-frames packets come in the order of their frames.
    for i, packet in enumerate(packets):
      packet.duration = times[i + 1] - times[i]
      container.mux(packet)
  return out.getvalue()


def _codec_options(options: H264Options) -> dict[str, str]:
  # mbtree: x264 weighs blocks by what follows them with vector code that reads
  # memory nobody wrote; of some clips every tenth file came out different.
  return {
    "crf": str(options.crf),
    "preset": options.preset,
    "bf": "0",  # no frame waits for a later one
    "x264-params": (
      f"keyint={options.gop}:min-keyint={options.gop}:scenecut=0:threads=1:"
      "lookahead-threads=1:sliced-threads=0:rc-lookahead=10:mbtree=0"
    ),
  }
