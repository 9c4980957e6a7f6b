"""A raw file of pictures, sound or both, and the exact cutting of it.

Times are seconds from the first frame (of a sound alone: from its first
sample). A part [a, b) holds the frames that are shown in it, the first being
the one that is shown at `a`, and the samples round(a * rate) to round(b * rate)
of the sound on the same time line: parts that meet share no sample and lose
none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mico_jax.config import AudioConfig
from mico_jax.data.build import pulse
from mico_jax.modalities import DecodeError, Geometry, containers
from mico_jax.modalities.audio import AUDIO
from mico_jax.modalities.sound import decode_audio
from mico_jax.modalities.video_file import VideoClip

MAX_SECONDS = 86_400.0  # of a raw file; a longer one is refused
_EPSILON = 1e-6  # s; times closer than this are one
_BAD_SHARE = 0.1  # of frames; more that cannot be decoded fail the part
_STEPS_BACK = (0.0, 1.0, 10.0)  # s before a moment to seek to, until it is met
_LUMA = (32, 18)  # pixels that shots are told apart by


class _Video(VideoClip):
  """A video read in order, from any moment on."""

  @property
  def times(self) -> Float[np.ndarray, " N"]:
    """When frames are shown, in s from the first one."""
    return self._shown.times - self._shown.start

  @property
  def start(self) -> float:
    """Of the first frame on the time line of the file, in s."""
    return self._shown.start

  @property
  def seconds(self) -> float:
    """To the end of the last frame; infinite for a picture alone."""
    return self._shown.end - self._shown.start

  def _from(self, moment: float) -> Iterator[tuple[float, Any]]:
    """(time, decoded frame) from the key frame before a moment on."""
    first = self._shown.start
    target = first + moment
    plain = self._shown.ranked or self._shown.joined
    if moment > 0 and not plain:
      with self._open() as (container, stream):
        for back in _STEPS_BACK:
          offset = int(np.floor((target - back) / float(stream.time_base)))
          container.seek(offset, stream=stream, backward=True)
          frames = self._frames(container, stream)
          begin = next(frames, None)
          if begin is not None and begin[0] <= target + _EPSILON:
            for time, frame in itertools.chain([begin], frames):
              pulse.beat()
              yield time - first, frame
            return
    with self._open() as (container, stream):
      for time, frame in self._frames(container, stream):
        pulse.beat()
        yield time - first, frame

  def between(
    self, start: float, end: float
  ) -> Iterator[tuple[float, UInt8[np.ndarray, "Y X 3"]]]:
    """(time from `start`, upright pixels) of what is shown in [start, end).

    Raises:
      DecodeError: at the end, if too many frames could not be decoded.
    """
    held, count = None, 0
    for time, frame in self._from(start):
      if time >= end - _EPSILON:
        break
      if time <= start + _EPSILON:
        held = frame
        continue
      if held is not None:
        yield 0.0, self._pixels(start, held)[1]
        held, count = None, count + 1
      yield time - start, self._pixels(time, frame)[1]
      count += 1
    if held is not None:
      yield 0.0, self._pixels(start, held)[1]
      count += 1
    self._check(start, end, count)

  def _check(self, start: float, end: float, count: int) -> None:
    times = self.times
    inside = (times > start + _EPSILON) & (times < end - _EPSILON)
    promised = int(np.count_nonzero(inside)) + bool(times[0] <= start)
    if count < (1 - _BAD_SHARE) * promised or not count:
      raise DecodeError(
        f"the video is damaged: {count} of {promised} frames from {start:.2f} "
        f"to {end:.2f} s can be read."
      )

  def lumas(
    self, start: float, end: float
  ) -> Iterator[tuple[float, UInt8[np.ndarray, "18 32"]]]:
    """(time, brightness) of the frames of [start, end), much reduced."""
    width, height = _LUMA
    for time, frame in self._from(start):
      if time >= end - _EPSILON:
        return
      if time >= start - _EPSILON:
        small = frame.reformat(width=width, height=height, format="gray")
        yield time, small.to_ndarray()


class Raw:
  """A raw file; read when it is first needed, until `release`.

  Attributes:
    name: for messages and the status table.
    path: where it lies; "": in a tar file, or nowhere by itself.
    key: of the modality that it is if it is stored as it is.
  """

  def __init__(
    self,
    name: str,
    read: Callable[[], bytes],
    *,
    key: str,
    path: str = "",
    max_pixels: int = Geometry.max_pixels,
  ):
    """Takes the function that reads the file; see the class."""
    self.name, self.path, self.key = name, path, key
    self._read, self._max_pixels = read, max_pixels
    self._kept: dict[Any, Any] = {}

  def geometry(self, rate: int = 16000, channel: str = "mean") -> Geometry:
    """Limits of decoding, and the form of sound."""
    audio = AudioConfig(
      sample_rate=rate, channel=channel, max_seconds=MAX_SECONDS
    )
    return Geometry(
      frames=1, size=224, audio=audio, max_pixels=self._max_pixels
    )

  def release(self) -> None:
    """Forgets what was read."""
    self._kept.clear()

  def _once(self, name: Any, make: Callable[[], Any]) -> Any:
    if name not in self._kept:
      self._kept[name] = make()
    return self._kept[name]

  @property
  def data(self) -> bytes:
    """The content of the file.

    Raises:
      DecodeError: if it cannot be read.
    """
    return self._once("data", self._read)

  def _streams(self) -> tuple[bool, bool]:
    def look() -> tuple[bool, bool]:
      with containers.opened(self.data, "video or sound file") as container:
        pictures = containers.picture_stream(container) is not None
        return pictures, containers.sound_stream(container) is not None

    return self._once("streams", look)

  @property
  def has_pictures(self) -> bool:
    """Whether there is a video stream (cover art is none)."""
    return self._streams()[0]

  @property
  def stored_as(self) -> str:
    """Key of the modality that the file as it is belongs to.

    Raises:
      DecodeError: if it holds neither pictures nor sound.
    """
    if not self.has_pictures and not self.has_sound:
      raise DecodeError("the file holds neither pictures nor sound.")
    return self.key if self.has_pictures else AUDIO.key

  @property
  def has_sound(self) -> bool:
    """Whether there is an audio stream."""
    return self._streams()[1]

  @property
  def video(self) -> _Video:
    """The pictures.

    Raises:
      DecodeError: if there are none, or they cannot be read.
    """

    def make() -> _Video:
      video = _Video(self.data, self.geometry())
      if video.times[-1] > MAX_SECONDS - 60:
        raise DecodeError(f"the video is longer than {MAX_SECONDS:g} s.")
      return video

    return self._once("pictures", make)

  @property
  def seconds(self) -> float:
    """Its length: to the end of the last frame, or of the sound alone."""
    if self.has_pictures:
      return self.video.seconds
    return len(self.sound(16000, "mean")) / 16000

  @property
  def offset(self) -> float:
    """Of the first frame on the time line of the file, in s."""
    return self.video.start if self.has_pictures else 0.0

  def sound(self, rate: int, channel: str) -> Float[np.ndarray, " N"]:
    """All of the sound, mono, over the interval of the pictures.

    Raises:
      DecodeError: if there is none, or it cannot be read.
    """
    return self._once(
      ("sound", rate, channel),
      lambda: decode_audio(self.data, self.geometry(rate, channel)),
    )

  def sound_between(
    self, start: float, end: float, rate: int, channel: str
  ) -> Float[np.ndarray, " N"]:
    """The samples of [start, end).

    Raises:
      DecodeError: as `sound`, or if nothing of it lies there.
    """
    samples = self.sound(rate, channel)
    last = len(samples) if np.isinf(end) else round(end * rate)
    part = samples[round(start * rate) : last]
    if not len(part):
      raise DecodeError(
        f"the sound ends at {len(samples) / rate:.2f} s, before the clip "
        f"from {start:.2f} s."
      )
    return part
