"""Video files to frames, through PyAV: only the frames asked for are kept."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mico_jax.modalities.base import DecodeError, Geometry
from mico_jax.modalities.media import decode_frames, one_line
from mico_jax.modalities.spatial import Clip

_SEEK_BEYOND = 1000  # frames; longer videos are read by seeking


class VideoClip:
  """A video file; frames are decoded when taken."""

  def __init__(self, data: bytes, geometry: Geometry):
    """Reads the header; counts packets where it names no frame count."""
    if not data:
      raise DecodeError("the file is empty (0 bytes).")
    self._data = data
    with self._open() as (container, stream):
      pixels = stream.width * stream.height
      if pixels == 0 or pixels > geometry.max_pixels:
        raise DecodeError(
          f"video of {stream.width} x {stream.height} pixels; expected between "
          f"1 and data.max_pixels={geometry.max_pixels}."
        )
      self._length = stream.frames or sum(
        1 for packet in container.demux(stream) if packet.size
      )
      self.nbytes = 3 * pixels * self._length  # decoded
    if self._length < 1:
      raise DecodeError("the video has no frames.")

  @contextlib.contextmanager
  def _open(self) -> Iterator[tuple[Any, Any]]:
    import av

    try:
      with av.open(io.BytesIO(self._data)) as container:
        if not container.streams.video:
          raise DecodeError("the file has no video stream.")
        yield container, container.streams.video[0]
    except DecodeError:
      raise
    except Exception as error:
      raise DecodeError(f"not a readable video: {one_line(error)}") from error

  def __len__(self) -> int:
    """Number of frames, as the header says."""
    return self._length

  def take(self, indices: Sequence[int]) -> np.ndarray:
    """The frames at increasing `indices`, uint8 [T, Y, X, 3]."""
    wanted = [int(i) for i in indices]
    with self._open() as (container, stream):
      if self._length > _SEEK_BEYOND and stream.average_rate:
        found = self._seek(container, stream, sorted(set(wanted)))
      else:
        found = {}
        last = max(wanted)
        for i, frame in enumerate(container.decode(stream)):
          if i in wanted:
            found[i] = frame.to_ndarray(format="rgb24")
          if i >= last:
            break
    if not found:
      raise DecodeError("the video holds no readable frame.")
    if len(found) < len(set(wanted)):
      raise DecodeError(
        f"the video is cut short: {len(found)} of {len(set(wanted))} wanted "
        f"frames could be read (the header promises {self._length})."
      )
    return np.stack([found[i] for i in wanted])

  def _seek(
    self, container: Any, stream: Any, wanted: list[int]
  ) -> dict[int, np.ndarray]:
    """Reads single frames of a long video from the key frame before each."""
    rate, base = stream.average_rate, stream.time_base
    first = stream.start_time or 0
    found = {}
    for i in wanted:
      target = first + int(i / rate / base)
      container.seek(target, stream=stream, backward=True)
      half = int(0.5 / rate / base)
      for frame in container.decode(stream):
        if frame.pts is not None and frame.pts + half >= target:
          found[i] = frame.to_ndarray(format="rgb24")
          break
    return found


def decode_video(raw: Any, geometry: Geometry) -> Clip:
  """A video file, a still image, a list of frames or an array as a clip."""
  if isinstance(raw, bytes) and not _is_still(raw):
    return VideoClip(raw, geometry)
  return decode_frames(raw, geometry)


def _is_still(data: bytes) -> bool:
  webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
  return webp or data.startswith((b"\xff\xd8", b"\x89PNG", b"BM"))
