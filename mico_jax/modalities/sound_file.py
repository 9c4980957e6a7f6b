"""Blocks of samples from sound files and arrays, and their mix to one channel.

Sound is decoded to its end or to `data.audio.max_seconds`. The sound of a video
covers exactly the time of its pictures: it is cut, and filled with silence.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities import containers
from mico_jax.modalities.base import DecodeError
from mico_jax.modalities.media import one_line

RATES = (1_000, 768_000)  # Hz
MAX_CHANNELS = 64
MAX_PEAK = 16.0  # times full scale; more means another unit, or damage
_BAD_SHARE = 0.1  # of damaged packets; a file with more is refused
_PLANES = 8  # from which PyAV reads beyond the end of planar samples
_TYPES = {"s16": np.int16, "s32": np.int32, "u8": np.uint8}  # interleaved
_GAP = 0.1  # s; a larger one between packets is silence
_BLOCK = 1 << 18  # samples of an array taken at a time
# Channels of a file or array without names, in the order of WAVE and FLAC.
_LAYOUTS = {
  3: "FL FR FC",
  4: "FL FR BL BR",
  5: "FL FR FC BL BR",
  6: "FL FR FC LFE BL BR",
  7: "FL FR FC LFE BC SL SR",
  8: "FL FR FC LFE BL BR SL SR",
}


@dataclass(frozen=True)
class Block:
  """Consecutive samples of a sound.

  Attributes:
    samples: float32, in units of full scale.
    rate: in Hz.
    layout: names of the channels; (): unknown.
  """

  samples: Float[np.ndarray, "n channels"]
  rate: int
  layout: tuple[str, ...] = ()


def read_sound(data: bytes, max_seconds: float) -> Iterator[Block]:
  """Yields the blocks of a sound file, or of the sound of a video.

  Args:
    data: content of the file.
    max_seconds: longest sound; the rest is cut.

  Raises:
    DecodeError: for unreadable, damaged or truncated files.
  """
  data = _untagged(data)
  links = containers.ogg_links(data) if data[:4] == b"OggS" else [data]
  shown = None
  if len(links) == 1 and not _sound_only(data):
    shown = _interval(data, max_seconds)
  blocks = itertools.chain.from_iterable(
    _by_libsndfile(link) if _ends_early(link) else _decoded(link)
    for link in links
  )
  if shown is not None:
    yield from _aligned(blocks, *shown)
    return
  left = max_seconds
  for _, block in blocks:
    room = round(left * block.rate)
    if room < len(block.samples):
      block = dataclasses.replace(block, samples=block.samples[:room])
    yield block
    left -= len(block.samples) / block.rate
    if round(left * block.rate) <= 0:
      return


def _interval(data: bytes, max_seconds: float) -> tuple[float, float] | None:
  """Start and length in s of the pictures; None for fewer than two pictures."""
  with containers.opened(data, "sound file") as container:
    pictures = containers.picture_stream(container)
    if pictures is None or containers.sound_stream(container) is None:
      return None
    shown = containers.scan_pictures(container, pictures, max_seconds)
  if math.isinf(shown.end):
    return None
  return shown.start, min(shown.end - shown.start, max_seconds)


def _sound_only(data: bytes) -> bool:
  """Whether the first bytes show that there are no pictures."""
  wave = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
  return wave or data[:4] in (b"fLaC", b"FORM", b"caff") or _is_vorbis(data)


def _ends_early(data: bytes) -> bool:
  """Whether PyAV ends a file at the wrong sample.

  That is so for mono and stereo Vorbis, and for ALAC in CAF files, except those
  that FFmpeg wrote, which libsndfile cannot open.
  """
  if data[:4] != b"caff" or data[28:32] != b"alac":
    return _is_vorbis(data)
  import soundfile

  try:
    soundfile.SoundFile(io.BytesIO(data)).close()
  except (soundfile.LibsndfileError, RuntimeError, TypeError):
    return False
  return True


def _is_vorbis(link: bytes) -> bool:
  """Mono or stereo Vorbis, whose last block PyAV cuts at the wrong sample."""
  at = link.find(b"\x01vorbis", 0, 300)
  return link[:4] == b"OggS" and at > 0 and link[at + 11 : at + 12] in b"\1\2"


def _by_libsndfile(data: bytes) -> Iterator[tuple[float, Block]]:
  """Decodes a file of one stream with libsndfile: (NaN, block)."""
  import soundfile

  containers.check_whole(data)
  try:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
      _check_rate(file.samplerate)
      while len(x := file.read(_BLOCK, dtype="float32", always_2d=True)):
        yield math.nan, Block(_checked(x), file.samplerate)
  except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
    reason = one_line(error)
    raise DecodeError(f"not a readable sound file: {reason}") from error


def _untagged(data: bytes) -> bytes:
  """The file without a leading ID3 tag, which would hide its format.

  MP3 and ADTS files, to which such tags belong, stay as they are.
  """
  if data[:3] != b"ID3" or len(data) < 10:
    return data
  size = 0
  for byte in data[6:10]:
    size = size << 7 | byte & 127
  size += 20 if data[5] & 16 else 10
  known = data[size : size + 4] in (b"OggS", b"fLaC", b"wvpk", b"RIFF")
  return data[size:] if known else data


def _promised_samples(data: bytes) -> int:
  """Number of samples in the header of FLAC (also in Ogg), WavPack or TTA.

  0 means that it is unknown.
  """
  at = data.find(b"fLaC", 0, 64) if data[:4] == b"OggS" else 0
  if at >= 0 and data[at : at + 4] == b"fLaC":
    return int.from_bytes(data[at + 18 : at + 26], "big") & ((1 << 36) - 1)
  place = {b"wvpk": 12, b"TTA1": 14}.get(data[:4])
  if place is None:
    return 0
  count = int.from_bytes(data[place : place + 4], "little")
  return 0 if count == 0xFFFFFFFF else count


def _decoded(data: bytes) -> Iterator[tuple[float, Block]]:
  """Decodes a file with PyAV: (time in s or NaN, block).

  Raises:
    DecodeError: if too many packets cannot be decoded, or there are fewer
      samples than the header states.
  """
  import av

  promised, count = _promised_samples(data), 0
  good, bad, reason = 0, 0, ""
  clock = containers.Clock()
  with containers.opened(data, "sound file") as container:
    stream = containers.sound_stream(container)
    if stream is None:
      raise DecodeError("the file has no sound.")
    _check_rate(stream.sample_rate or RATES[0])
    _check_channels(stream.channels or 1)
    if stream.codec_context.name == "flac":
      stream.codec_context.options = {"err_detect": "crccheck+explode"}
    for packet in containers.packets(container, stream):
      try:
        frames = packet.decode()
        good += 1
      except av.FFmpegError as error:
        bad, reason = bad + 1, one_line(error)
        continue
      for frame in frames:
        time = math.nan
        if frame.pts is not None:
          time = clock(containers.seconds(frame))
        block = _block(frame)
        count += len(block.samples)
        yield time, block
  if count < promised:
    raise DecodeError(
      f"the sound is cut short: {count} of {promised} samples can be read."
    )
  if bad > _BAD_SHARE * (good + bad):
    raise DecodeError(
      f"the sound is damaged: {bad} of {good + bad} packets cannot be decoded "
      f"({reason[:80]})."
    )


def _block(frame: Any) -> Block:
  """A decoded frame in units of full scale."""
  _check_rate(frame.sample_rate)
  layout = frame.layout
  channels = layout.nb_channels
  _check_channels(channels)
  kind, planar = frame.format.name, frame.format.is_planar
  if planar and channels >= _PLANES:
    frame, kind, planar = _packed(frame), "flt", False
  if planar or kind not in _TYPES:
    array = frame.to_ndarray()
    array = array.T if planar else array.reshape(-1, channels)
  else:  # `to_ndarray` would copy it twice
    count = frame.samples * channels
    array = np.frombuffer(frame.planes[0], _TYPES[kind], count)
    array = array.reshape(-1, channels)
  if array.dtype == np.uint8:
    samples = (array.astype(np.float32) - 128) / 128
  elif array.dtype.kind == "i":
    samples = array.astype(np.float32)
    samples *= np.float32(2.0 ** (1 - 8 * array.dtype.itemsize))
  else:
    samples = _checked(array)
  # Names are needed for more than two channels only.
  names = layout.channels if channels > 2 else ()
  return Block(samples, frame.sample_rate, tuple(c.name for c in names))


def _packed(frame: Any) -> Any:
  """The frame with its channels interleaved, as float32."""
  import av

  packer = av.AudioResampler(format="flt", layout=frame.layout)
  (packed,) = packer.resample(frame)
  return packed


def _aligned(
  blocks: Iterator[tuple[float, Block]], start: float, seconds: float
) -> Iterator[Block]:
  """Cuts and fills blocks to an interval of `seconds` from `start`."""
  at = 0.0  # s yielded so far
  block = None
  for number, (time, block) in enumerate(blocks):
    rate, samples = block.rate, block.samples
    offset = 0 if math.isnan(time) else round((time - start - at) * rate)
    if offset > (_GAP * rate if number else 0):
      offset = min(offset, math.ceil((seconds - at) * rate))
      yield from _silence(offset, block)
      at += offset / rate
    elif offset < 0 and at == 0:
      samples = samples[-offset:]
    samples = samples[: max(0, round((seconds - at) * rate))]
    at += len(samples) / rate
    if len(samples):
      yield Block(samples, rate, block.layout)
    if at >= seconds - 0.5 / rate:
      return
  if block is None:
    return
  yield from _silence(round((seconds - at) * block.rate), block)


def _silence(count: int, like: Block) -> Iterator[Block]:
  channels = like.samples.shape[1]
  for start in range(0, count, _BLOCK):
    samples = np.zeros((min(_BLOCK, count - start), channels), np.float32)
    yield Block(samples, like.rate, like.layout)


def array_blocks(
  samples: Any, rate: Any, max_seconds: float
) -> Iterator[Block]:
  """Yields the blocks of an array of samples.

  Args:
    samples: [N], [N, channels] or [channels, N]; floats in units of full scale,
      or int8, int16 or int32.
    rate: in Hz.
    max_seconds: longest sound; the rest is cut.

  Raises:
    DecodeError: for other shapes, types, rates or values.
  """
  if not isinstance(samples, np.ndarray) or samples.ndim not in (1, 2):
    raise DecodeError(
      "expected sound as a file, [N], [N, channels] or [channels, N], got "
      f"{getattr(samples, 'shape', type(samples))}."
    )
  integers = samples.dtype.kind == "i" and samples.dtype.itemsize <= 4
  if samples.dtype.kind != "f" and not integers:
    raise DecodeError(
      f"samples are {samples.dtype}; expected float in units of full scale, or "
      "int8, int16 or int32."
    )
  if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)):
    raise DecodeError(f"the sample rate is {rate!r}; expected a number of Hz.")
  rate = float(rate)
  _check_rate(rate)
  samples = samples[:, None] if samples.ndim == 1 else samples
  if not samples.size:
    return
  rows, columns = samples.shape
  if rows == columns > 1:
    raise DecodeError(
      f"sound of shape {samples.shape} does not tell channels from samples; "
      "give [N] or more samples."
    )
  samples = samples.T if rows < columns else samples
  _check_channels(samples.shape[1])
  samples = samples[: int(max_seconds * rate)]
  for start in range(0, len(samples), _BLOCK):
    part = samples[start : start + _BLOCK]
    if part.dtype.kind == "i":
      part = part / -float(np.iinfo(part.dtype).min)
    yield Block(_checked(part), int(rate))


def _check_rate(rate: float) -> None:
  low, high = RATES
  if not low <= rate <= high or rate != int(rate):
    raise DecodeError(
      f"the sample rate is {rate:g} Hz; expected a whole number from {low} to "
      f"{high}."
    )


def _check_channels(channels: int) -> None:
  if not 1 <= channels <= MAX_CHANNELS:
    raise DecodeError(
      f"the sound has {channels} channels; expected 1 to {MAX_CHANNELS}."
    )


def _checked(
  samples: Shaped[np.ndarray, "n channels"],
) -> Float[np.ndarray, "n channels"]:
  """The samples as float32, which must be finite and in range."""
  if samples.size:
    peak = max(float(samples.max()), -float(samples.min()))
    if not math.isfinite(peak):
      raise DecodeError("the sound holds non-finite samples.")
    if peak > MAX_PEAK:
      raise DecodeError(
        f"the sound peaks at {peak:g} times full scale; expected at most "
        f"{MAX_PEAK:g} (are these integers stored as float?)."
      )
  return samples.astype(np.float32, copy=False)


@functools.lru_cache(maxsize=64)
def _weights(
  layout: tuple[str, ...], channels: int
) -> Float[np.ndarray, "channels 2"]:
  """Weights of a mix to left and right; those of a side sum to 1.

  Front 1, centre and surround 0.7071, back centre 0.5, no low frequency
  effects. Channels without known names have equal weights.

  Source: ITU-R BS.775.
  """
  half, names = math.sqrt(0.5), layout
  known = {n for row in _LAYOUTS.values() for n in row.split()}
  known |= {"FLC", "FRC", "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"}
  known |= {"WL", "WR", "DL", "DR", "LFE2", "SDL", "SDR", "TSL", "TSR"}
  if len(names) != channels or not known.issuperset(names):
    names = tuple(_LAYOUTS.get(channels, "").split())
  rows = []
  for name in names or ["?"] * channels:
    if name.startswith("LFE"):
      rows.append((0.0, 0.0))
    elif name in ("FL", "DL", "FR", "DR"):
      rows.append((float(name[1] == "L"), float(name[1] == "R")))
    elif name in ("FLC", "FRC"):
      rows.append((half * (name == "FLC"), half * (name == "FRC")))
    elif name[-1] in "LR":
      rows.append((half * (name[-1] == "L"), half * (name[-1] == "R")))
    else:
      rows.append((half, half) if name in ("FC", "?") else (0.5, 0.5))
  weights = np.array(rows, np.float64)
  total = weights.sum(axis=0)
  weights[:, total == 0] = 1.0  # a side without channels: all equally
  return (weights / weights.sum(axis=0)).astype(np.float32)


def mix_down(block: Block, channel: str) -> Float[np.ndarray, " n"]:
  """One channel of a block; more than two channels are mixed to two first.

  Args:
    block: with any number of channels.
    channel: "first" (left) or "mean" of left and right.

  Raises:
    ValueError: for another `channel`.
  """
  samples = block.samples
  if channel not in ("first", "mean"):
    raise ValueError(
      f"data.audio.channel={channel!r}; expected 'first' or 'mean'."
    )
  if samples.shape[1] > 2:
    weights = _weights(block.layout, samples.shape[1])
    samples = samples @ weights
  if channel == "mean":
    return samples.mean(axis=1)
  return np.ascontiguousarray(samples[:, 0])
