"""Decoding of video files with PyAV; only the selected frames are kept.

Frames are selected by their presentation time. The time of a clip of N frames,
from the first frame to the end of the last, is divided into N equal steps;
index i is the frame nearest in time to the beginning of step i. At a constant
rate that is frame i. Frames beyond `data.audio.max_seconds` are left out, as
sound is. Frames are rotated by their display matrix, transparency is on white,
and colours are taken as stored (no tone mapping, no deinterlacing).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mico_jax.modalities import containers, h264
from mico_jax.modalities.base import DecodeError, Geometry
from mico_jax.modalities.media import BACKGROUND, LARGE, decode_frames
from mico_jax.modalities.spatial import Clip

_SEEK_BEYOND = 1000  # frames; longer videos are read by seeking
_STEPS_BACK = (0.0, 1.0, 10.0)  # s before a moment to seek to, in turn
_REACH = 1.0  # s; distance from which a frame may replace a damaged one


class VideoClip:
  """A video file whose frames are decoded when they are taken.

  Attributes:
    nbytes: size of all frames when decoded.
    duration: in s, from the first frame to the end of the last.
  """

  def __init__(self, data: bytes, geometry: Geometry):
    """Reads the times of all frames.

    Raises:
      DecodeError: for unreadable, empty, too large or truncated files.
    """
    self._data, self._geometry = data, geometry
    with self._open() as (container, stream):
      self._check_size(stream.width, stream.height)
      limit = geometry.audio.max_seconds
      self._shown = containers.scan_pictures(container, stream, limit)
      pixels = stream.width * stream.height
      self.nbytes = 3 * min(pixels, LARGE) * len(self)
      self.duration = float(self._shown.end - self._shown.start)

  def _check_size(self, width: int, height: int) -> None:
    limit = min(self._geometry.max_pixels, containers.MAX_FRAME_PIXELS)
    if not 0 < width * height <= limit:
      raise DecodeError(
        f"video of {width} x {height} pixels; expected between 1 and {limit} "
        "(data.max_pixels, and 8K)."
      )

  @contextlib.contextmanager
  def _open(self) -> Iterator[tuple[Any, Any]]:
    with containers.opened(self._data, "video") as container:
      stream = containers.picture_stream(container)
      if stream is None:
        raise DecodeError("the file has no video stream (cover art is none).")
      stream.codec_context.thread_count = 1  # samples are decoded in parallel
      yield container, stream

  def __len__(self) -> int:
    """Number of frames."""
    return len(self._shown.times)

  def _moments(self, indices: Sequence[int]) -> Float[np.ndarray, " T"]:
    """Times of indices, in s."""
    shown = self._shown
    if len(self) == 1:
      return np.full(len(indices), shown.start)
    step = (shown.end - shown.start) / len(self)
    return shown.start + np.asarray(indices, np.float64) * step

  def take(self, indices: Sequence[int]) -> UInt8[np.ndarray, "T Y X 3"]:
    """The frames at increasing `indices`.

    Raises:
      DecodeError: if one cannot be read, or they differ in size.
    """
    wanted, place = np.unique(self._moments(indices), return_inverse=True)
    shown = self._read(wanted)
    if len(shown) < len(wanted):
      raise DecodeError("the video holds no readable frame.")
    for moment, (time, _) in zip(wanted, shown, strict=True):
      gap = np.abs(self._shown.times - moment).min()
      if abs(time - moment) > gap + _REACH:
        raise DecodeError(
          f"the video is damaged: no frame within {_REACH:g} s of "
          f"{moment - self._shown.start:.2f} s can be read."
        )
    if len({f.shape for _, f in shown}) > 1:
      raise DecodeError("the frames of the video differ in size.")
    return np.stack([shown[i][1] for i in place])

  def _read(
    self, wanted: Float[np.ndarray, " T"]
  ) -> list[tuple[float, np.ndarray]]:
    """(time, pixels) of the frame nearest to each increasing moment."""
    timed = not (self._shown.ranked or self._shown.joined)
    with self._open() as (container, stream):
      if timed and len(self) > _SEEK_BEYOND:
        return [self._seek(container, stream, t) for t in wanted]
      if not timed or stream.codec_context.name != "h264":
        return list(self._nearest(self._frames(container, stream), wanted))
      packets = containers.packets(container, stream)
      made = h264.decode_some(stream, packets, wanted, self._pixels)
    if made is not None:
      return made
    with self._open() as (container, stream):
      return list(self._nearest(self._frames(container, stream), wanted))

  def _frames(self, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
    """Yields (time in s, frame) in order of time, without damaged frames."""
    import av

    clock, times, rank = containers.Clock(), self._shown.times, 0
    decoder = _alpha_decoder(stream)
    for packet in containers.packets(container, stream):
      try:
        if decoder is None:
          frames = packet.decode()
        else:
          frames = decoder.decode(packet if packet.size else None)
      except av.FFmpegError:
        continue
      for frame in frames:
        rank += 1
        if frame.is_corrupt:
          continue
        if self._shown.ranked:
          yield float(times[min(rank, len(times)) - 1]), frame
        elif frame.pts is not None:
          yield clock(containers.seconds(frame)), frame

  def _nearest(
    self,
    frames: Iterator[tuple[float, Any]],
    moments: Float[np.ndarray, " T"],
  ) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (time, pixels) of the frame nearest to each increasing moment."""
    before = None
    rest = list(moments)
    for now in frames:
      while rest and now[0] >= rest[0]:
        moment = rest.pop(0)
        if before is None or now[0] - moment <= moment - before[0]:
          yield self._pixels(*now)
        else:
          yield self._pixels(*before)
      before = now
      if not rest:
        return
    if before is not None:
      last = self._pixels(*before)
      yield from (last for _ in rest)

  def _seek(
    self, container: Any, stream: Any, moment: float
  ) -> tuple[float, np.ndarray]:
    """(time, pixels) at a moment, decoded from the key frame before it."""
    moments = np.array([moment])
    for back in _STEPS_BACK:
      target = moment - back
      offset = int(np.floor(target / float(stream.time_base)))
      container.seek(offset, stream=stream, backward=True)
      frames = self._frames(container, stream)
      begin = next(frames, None)
      if begin is not None and begin[0] <= moment + 1e-6:
        return next(self._nearest(itertools.chain([begin], frames), moments))
    with self._open() as opened:  # no key frame was found before it
      nearest = next(self._nearest(self._frames(*opened), moments), None)
    if nearest is None:
      raise DecodeError("the video holds no readable frame.")
    return nearest

  def _pixels(self, time: float, frame: Any) -> tuple[float, np.ndarray]:
    self._check_size(frame.width, frame.height)
    width, height = frame.width, frame.height
    while width * height > LARGE:
      width, height = width // 2, height // 2
    see_through = frame.format.has_palette or any(
      component.is_alpha for component in frame.format.components
    )
    kind = "rgba" if see_through else "rgb24"
    if (width, height) != (frame.width, frame.height):
      frame_now = frame.reformat(width=width, height=height, format=kind)
      pixels = frame_now.to_ndarray()
    else:
      pixels = frame.to_ndarray(format=kind)
    if see_through:
      pixels = _on_background(pixels)
    return time, upright(pixels, _display_matrix(frame))


def _alpha_decoder(stream: Any) -> Any | None:
  """A decoder for the transparency of VP8 and VP9; None: there is none.

  FFmpeg's own decoders would show the colours behind it.
  """
  import av

  name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.name)
  if name is None or stream.metadata.get("alpha_mode") != "1":
    return None
  return av.CodecContext.create(name, "r")


def _on_background(
  pixels: UInt8[np.ndarray, "Y X 4"],
) -> UInt8[np.ndarray, "Y X 3"]:
  """Pixels over `BACKGROUND`."""
  alpha = pixels[..., 3:].astype(np.uint16)
  if (alpha == 255).all():
    return np.ascontiguousarray(pixels[..., :3])
  ground = np.asarray(BACKGROUND, np.uint16)
  mixed = pixels[..., :3] * alpha + ground * (255 - alpha)
  return ((mixed + 127) // 255).astype(np.uint8)


def _display_matrix(frame: Any) -> tuple[int, ...]:
  """(a, b, c, d) in 1/65536: x' = a x + c y, y' = b x + d y; () without one."""
  for item in frame.side_data:
    if item.type.name == "DISPLAYMATRIX":
      matrix = np.frombuffer(bytes(item), np.int32)
      if len(matrix) == 9:
        return tuple(int(matrix[i]) for i in (0, 1, 3, 4))
  return ()


def upright(
  pixels: UInt8[np.ndarray, "Y X 3"], matrix: Sequence[int]
) -> UInt8[np.ndarray, "y x 3"]:
  """Rotates and mirrors pixels by a display matrix (a, b, c, d).

  Raises:
    DecodeError: for other rotations than quarter turns.
  """
  if not any(matrix):
    return pixels
  a, b, c, d = matrix
  straight, turned = sorted((abs(a), abs(d))), sorted((abs(b), abs(c)))
  main, other = sorted((straight, turned), reverse=True)
  if main[0] <= 10 * other[1]:
    raise DecodeError(
      f"the display matrix {tuple(v / 65536 for v in matrix)} is no quarter "
      "turn or mirroring; rotate the video before use."
    )
  if turned > straight:
    pixels = pixels.swapaxes(0, 1)
    x, y = c, b
  else:
    x, y = a, d
  pixels = pixels[:, ::-1] if x < 0 else pixels
  pixels = pixels[::-1] if y < 0 else pixels
  return np.ascontiguousarray(pixels)


def decode_video(raw: Any, geometry: Geometry) -> Clip:
  """Decodes a video file, an image, a list of frames or an array.

  Raises:
    DecodeError: for unreadable files and for animated WebP.
  """
  if isinstance(raw, bytes) and not _is_still(raw):
    return VideoClip(raw, geometry)
  return decode_frames(raw, geometry)


def _is_still(data: bytes) -> bool:
  if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
    if data[12:16] == b"VP8X" and data[20:21] > b"" and data[20] & 2:
      raise DecodeError(
        "an animated WebP as a video; convert it (APNG, GIF and WebM are read)."
      )
    return True
  if data.startswith(b"\x89PNG"):
    return b"acTL" not in data[: data.find(b"IDAT")]  # else it is animated
  return data.startswith((b"\xff\xd8", b"BM"))
