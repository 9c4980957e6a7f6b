"""Small sound and video files for tests, made with PyAV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8


def tone(
  seconds: float, rate: int = 16000, hz: float = 440
) -> Float32[np.ndarray, " N"]:
  """A sine of half the full scale."""
  t = np.arange(round(seconds * rate)) / rate
  return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def greys(
  values: Iterable[int], size: tuple[int, int] = (48, 64)
) -> list[UInt8[np.ndarray, "Y X 3"]]:
  """Frames of one grey value each."""
  return [np.full((*size, 3), v, np.uint8) for v in values]


def file_of(
  kind: str,
  frames: Sequence[UInt8[np.ndarray, "Y X C"]] = (),
  sound: Shaped[np.ndarray, "*C N"] | None = None,
  *,
  codec: str = "mpeg4",
  rate: int = 10,
  times: Sequence[int] | None = None,
  sound_codec: str = "aac",
  sound_rate: int = 16000,
  sound_start: float = 0.0,
  layout: str = "mono",
  options: Mapping[str, str] | None = None,
  codec_options: Mapping[str, str] | None = None,
  pixels: str = "",
  prepare: Callable[[Any], None] | None = None,
) -> bytes:
  """Bytes of a file with frames, sound, or both.

  Args:
    kind: format, as FFmpeg names it.
    frames: RGB or RGBA.
    sound: samples of one or of several channels.
    codec: of the frames.
    rate: frames per second.
    times: of the frames, in 1/1000 s; None: at the rate.
    sound_codec: of the sound.
    sound_rate: in Hz.
    sound_start: in s.
    layout: of the channels.
    options: of the format.
    codec_options: of the video codec.
    pixels: format of the encoded pixels; "": the codec's own.
    prepare: called with the video stream.
  """
  import av

  out = io.BytesIO()
  with av.open(out, "w", format=kind, options=dict(options or {})) as container:
    add: Any = container.add_stream
    video = audio = None
    if len(frames):
      video = add(codec, rate=rate, options=dict(codec_options or {}))
      video.height, video.width = frames[0].shape[:2]
      if pixels:
        video.pix_fmt = pixels
      if times is not None:
        video.codec_context.time_base = Fraction(1, 1000)
      if prepare is not None:
        prepare(video)
    if sound is not None:
      audio = add(sound_codec, rate=sound_rate, layout=layout)
    if video is not None:
      _write_frames(container, video, frames, times)
    if audio is not None and sound is not None:
      start = round(sound_start * sound_rate)
      _write_sound(container, audio, np.atleast_2d(sound), start)
  return out.getvalue()


def _write_frames(
  container: Any,
  video: Any,
  frames: Sequence[UInt8[np.ndarray, "Y X C"]],
  times: Sequence[int] | None,
) -> None:
  """Encodes frames into a stream, at times in 1/1000 s or at its rate."""
  import av

  for i, array in enumerate(frames):
    name = "rgba" if array.shape[-1] == 4 else "rgb24"
    frame = av.VideoFrame.from_ndarray(array, format=name)
    if times is not None:
      frame.pts, frame.time_base = int(times[i]), Fraction(1, 1000)
    container.mux(video.encode(frame))
  container.mux(video.encode())


def _write_sound(
  container: Any, audio: Any, sound: Shaped[np.ndarray, "C N"], start: int
) -> None:
  """Encodes sound into a stream, from sample `start` on."""
  import av

  samples = np.asarray(sound, np.float32)
  for at in range(0, samples.shape[1], 1024):
    part = samples[:, at : at + 1024].T.reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(
      np.ascontiguousarray(part), format="flt", layout=audio.layout.name
    )
    frame.sample_rate, frame.pts = audio.rate, start + at
    frame.time_base = Fraction(1, audio.rate)
    container.mux(audio.encode(frame))
  container.mux(audio.encode())
