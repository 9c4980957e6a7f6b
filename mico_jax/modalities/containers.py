"""Sound and video files in PyAV: opening, streams and times.

A declared duration is not relied on: packets are read to the end, and times are
those of the packets. Declared sizes are checked: a file with fewer bytes than
its headers state is truncated and refused.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.modalities.base import DecodeError
from mico_jax.modalities.media import one_line

# Self-contained formats only: playlists would open other files and URLs.
FORMATS = (
  "aac,ac3,aiff,amr,ape,apng,asf,au,avi,caf,dts,eac3,flac,flv,gif,h264,hevc,"
  "ivf,m4v,matroska,webm,mov,mp4,mp3,mpeg,mpegts,mpegvideo,ogg,tta,w64,wav,wv"
)
MAX_FRAME_PIXELS = 36_000_000  # of a video frame; 8K has 33 million
_NO_TIMES = ("avi", "mpeg")  # formats that store few times or none
_BACK = 0.5  # seconds; a larger step back in time starts an appended file
_STREAMED = (0x80000000, 0xFFFFFFFF)  # sizes that mean "to the end"
_SLACK = 4096  # bytes that writers subtract from those for their headers
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


@contextlib.contextmanager
def opened(data: bytes, what: str) -> Iterator[Any]:
  """Opens a file as an `av.container.InputContainer`.

  Args:
    data: content of the file.
    what: "video" or "sound file", for messages.

  Raises:
    DecodeError: for files that PyAV cannot read, and for truncated ones.
  """
  import av

  if not data:
    raise DecodeError("the file is empty (0 bytes).")
  check_whole(data)
  options = {
    "format_whitelist": FORMATS,
    "max_pixels": str(MAX_FRAME_PIXELS),
    "max_size": "65536",  # bytes of a packet of plain samples
  }
  if data[:4] in (b"RIFF", b"FORM") and data[8:12] != b"AVI ":
    options["probesize"] = "32768"  # a larger one is slow on invalid data
  try:
    with av.open(
      io.BytesIO(data), options=options, metadata_errors="replace"
    ) as container:
      yield container
  except DecodeError:
    raise
  except MemoryError as error:  # of PyAV, for invalid sizes in the file
    if not isinstance(error, av.FFmpegError):
      raise
    raise DecodeError(f"not a readable {what}: {one_line(error)}") from error
  except Exception as error:
    raise DecodeError(f"not a readable {what}: {one_line(error)}") from error


def packets(container: Any, stream: Any) -> Iterator[Any]:
  """Yields the packets of a stream up to the first that cannot be read."""
  import av

  with contextlib.suppress(av.FFmpegError):
    yield from container.demux(stream)


def seconds(frame: Any) -> float:
  """Presentation time of a decoded frame that has one, in s."""
  base = frame.time_base  # a product of fractions would be slow
  return frame.pts * base.numerator / base.denominator


def picture_stream(container: Any) -> Any | None:
  """The video stream, which is not cover art; None: none."""
  from av.stream import Disposition

  still = Disposition.attached_pic | Disposition.timed_thumbnails
  return _preferred(
    [s for s in container.streams.video if not s.disposition & still]
  )


def sound_stream(container: Any) -> Any | None:
  """The audio stream that players choose: the default or first one."""
  return _preferred(list(container.streams.audio))


def _preferred(streams: list[Any]) -> Any | None:
  from av.stream import Disposition

  default = [s for s in streams if s.disposition & Disposition.default]
  return next(iter(default or streams), None)


@dataclass(frozen=True)
class Pictures:
  """Presentation times of the frames of a video.

  Attributes:
    times: of the frames within the time limit, in s, increasing.
    end: of the last frame, in s; infinite for a single picture.
    ranked: the container does not store the time of every frame (AVI, MPEG, raw
      streams), so that times belong to frames by their rank.
    joined: times restart in the middle, as of files appended to each other.
  """

  times: Float[np.ndarray, " N"]
  end: float
  ranked: bool
  joined: bool

  @property
  def start(self) -> float:
    """Time of the first frame, in s."""
    return float(self.times[0])


class Clock:
  """Makes times continuous that restart in appended files."""

  def __init__(self) -> None:
    """Starts with the first time."""
    self._shift, self._last, self._step = 0.0, -np.inf, 0.0
    self.joined = False

  def __call__(self, time: float) -> float:
    """The continuous time of the next `time`, both in s."""
    if time + self._shift < self._last - _BACK:
      self._shift = self._last + self._step - time
      self.joined = True
    now = time + self._shift
    if -np.inf < self._last < now:
      self._step = now - self._last
    self._last = max(self._last, now)
    return now


def scan_pictures(container: Any, stream: Any, limit: float) -> Pictures:
  """Reads the times of all frames of a video stream without decoding.

  Args:
    container: at its start; it is read to the end.
    stream: of video.
    limit: seconds from the first frame; later frames are left out.

  Raises:
    DecodeError: if there is no frame.
  """
  base = float(stream.time_base or 0) or 1e-6
  shown, orders, missing, longest = [], [], 0, 0.0
  clock = Clock()
  for packet in packets(container, stream):
    if not packet.size or packet.is_discard:
      continue
    if packet.pts is None:
      missing += 1
      continue
    # Decoding times increase; presentation times go back and forth.
    order = packet.pts if packet.dts is None else packet.dts
    orders.append(clock(order * base))
    shift = orders[-1] - order * base
    shown.append((packet.pts * base + shift, (packet.duration or 0) * base))
  if not shown and not missing:
    raise DecodeError("the video has no frames.")
  ranked = container.format.name in _NO_TIMES or missing > len(shown)
  if ranked:
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    first = min((t for t, _ in shown), default=0.0)
    steps = np.arange(len(shown) + missing) / rate
    if container.format.name == "avi" and not missing:
      # Dropped frames leave gaps. Times are those of decoding, so B-frames may
      # be off by their delay at a gap.
      steps = np.asarray(orders) - orders[0]
    times = first + steps
  else:
    shown.sort()
    times, longest = np.unique([t for t, _ in shown]), shown[-1][1]
  times = times[times < times[0] + limit]
  if len(times) == 1:
    return Pictures(times, np.inf, ranked, clock.joined)
  # The last frame lasts as long as the one before it, or its own duration.
  last = max(times[-1] - times[-2], min(longest, limit))
  return Pictures(times, float(times[-1] + last), ranked, clock.joined)


def ogg_links(data: bytes) -> list[bytes]:
  """The links of a chained Ogg file, which holds several files in a row.

  A file with parallel streams (sound and pictures) is one link. Bytes between
  pages belong to the link before.
  """
  starts, current, begun, at = [], b"", False, 0
  while 0 <= at <= len(data) - 27:
    if data[at : at + 4] != b"OggS":
      at = data.find(b"OggS", at)
      continue
    serial = data[at + 14 : at + 18]
    if data[at + 5] & 2:  # a stream begins
      if begun:  # two streams in parallel
        return [data]
      starts.append(at)
      current, begun = serial, True
    elif serial != current:
      return [data]
    else:
      begun = False
    table = data[at + 27 : at + 27 + data[at + 26]]
    at += 27 + len(table) + sum(table)
  if len(starts) < 2:
    return [data]
  ends = [*starts[1:], len(data)]
  return [data[a:b] for a, b in zip(starts, ends, strict=True)]


def check_whole(data: bytes) -> None:
  """Compares the size of a file with the sizes in its headers.

  WAV, RF64, W64, AIFF, AU, CAF, AVI, ASF, MP4 and Matroska files are checked.

  Raises:
    DecodeError: for truncated files, and for WAV and AIFF files appended to
      each other.
  """
  if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
    _check_chunks(data, b"data", "little")
  elif data[:4] == b"FORM" and data[8:11] == b"AIF":
    _check_chunks(data, b"SSND", "big")
  elif data[:4] == b".snd":
    start, size = (int.from_bytes(data[i : i + 4], "big") for i in (4, 8))
    _check_size(data, start, size)
  elif data[:4] == b"caff":
    _check_long_chunks(data, 8, 4, "big")
  elif data[:4] == b"riff" and data[24:28] == b"wave":
    _check_long_chunks(data, 40, 16, "little")
  elif data[:16] == _ASF:
    _check_asf(data)
  elif data[:4] == b"RIFF" and data[8:12] == b"AVI ":
    _check_size(data, 8, int.from_bytes(data[4:8], "little"))
  elif data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
    _check_boxes(data)
  elif data[:4] == b"\x1aE\xdf\xa3":
    _check_segment(data)


def _is_streamed(size: int) -> bool:
  """Whether a size means "to the end of the file"."""
  return size == 0 or any(0 <= s - size <= _SLACK for s in _STREAMED)


def _check_size(data: bytes, start: int, size: int) -> None:
  """Refuses a file that ends before `size` bytes from `start`."""
  if start + size > len(data) and not _is_streamed(size):
    raise DecodeError(
      f"the file is cut short: its header promises {start + size} bytes, "
      f"{len(data)} are there."
    )


def _check_chunks(data: bytes, name: bytes, order: Any) -> None:
  """Checks the chunk of the samples of a WAV or AIFF file."""
  at, long = 12, 0
  while at + 8 <= len(data):
    size = int.from_bytes(data[at + 4 : at + 8], order)
    if data[at : at + 4] == b"ds64":  # RF64: sizes of 64 bits
      long = int.from_bytes(data[at + 16 : at + 24], order)
    if data[at : at + 4] == name:
      size = long if long and size == _STREAMED[1] else size
      _check_size(data, at + 8, size)
      if not _is_streamed(size):
        _check_rest(data, at + 8 + size + size % 2, name, order)
      return
    at += 8 + size + size % 2


def _check_rest(data: bytes, at: int, name: bytes, order: Any) -> None:
  """Refuses data after the samples that may be samples as well."""
  tags = (b"ID3", b"TAG", b"APE")
  while at + 8 <= len(data) and data[at : at + 3] not in tags:
    kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], order)
    known = all(32 <= byte < 127 for byte in kind)
    loose = at + 8 + size > len(data) or not known
    if loose and len(data[at:].strip(b"\0")) <= _SLACK:
      return
    if loose or kind in (name, b"RIFF", b"RF64", b"FORM"):
      raise DecodeError(
        f"{len(data) - at} bytes follow the samples that its header promises: "
        "files joined one behind the other, or a wrong header; write it anew."
      )
    at += 8 + size + size % 2


def _check_long_chunks(data: bytes, at: int, width: int, order: Any) -> None:
  """`_check_chunks` for CAF and W64: names of `width` bytes, 64-bit sizes."""
  head = width + 8
  while at + head <= len(data):
    size = int.from_bytes(data[at + width : at + head], order, signed=True)
    if width == 16:  # W64 counts the head and pads to 8 bytes
      size -= head
    if data[at : at + 4] == b"data":
      return _check_size(data, at + head, max(size, 0))
    if size < 0:
      return None
    at += head + (size if width == 4 else -(-size // 8) * 8)
  return None


def _check_asf(data: bytes) -> None:
  """Checks the size in the properties of an ASF (WMA, WMV) file."""
  at = data.find(_ASF_FILE, 0, 1 << 16)
  if at < 0 or at + 92 > len(data) or data[at + 88] & 1:  # a broadcast
    return
  _check_size(data, 0, int.from_bytes(data[at + 40 : at + 48], "little"))


def _check_boxes(data: bytes) -> None:
  """Checks the outer boxes of an MP4 or QuickTime file."""
  at = 0
  while at + 16 <= len(data):
    size = int.from_bytes(data[at : at + 4], "big")
    if size == 1:
      size = int.from_bytes(data[at + 8 : at + 16], "big")
    if size < 8 or not data[at + 4 : at + 8].isalnum():
      return
    if data[at + 4 : at + 8] in (b"mdat", b"moov", b"moof"):
      _check_size(data, at, size)
    at += size


def _check_segment(data: bytes) -> None:
  """Checks the size of the segment of a Matroska or WebM file."""
  size, at = _varint(data, 4)
  at += max(size, 0)
  if data[at : at + 4] == b"\x18S\x80g":
    size, at = _varint(data, at + 4)
    if size > 0:  # else unknown: streamed
      _check_size(data, at, size)


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """A Matroska size at `at` (-1: unknown), and where it ends."""
  if at >= len(data) or not data[at]:
    return -1, at
  width = 9 - data[at].bit_length()
  value = int.from_bytes(data[at : at + width], "big")
  mask = (1 << 7 * width) - 1
  return (-1 if value & mask == mask else value & mask), at + width
