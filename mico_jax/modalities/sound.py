"""Waveform and log-mel energies of sound: resampling and filterbank in NumPy.

The filterbank is Kaldi's as in torchaudio (Povey window, DC removal,
pre-emphasis 0.97, power spectrum, low edge 20 Hz, high edge Nyquist, no dither,
frames that would leave the signal are dropped), of waveform * 2^15. Resampling
is a Hann-windowed sinc of width 6 and roll-off 0.99. Golden cases check both.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mico_jax.config import AudioConfig
from mico_jax.modalities.base import DecodeError, Geometry
from mico_jax.modalities.sound_file import array_blocks, mix_down, read_sound

_LOW_HZ = 20.0
PREEMPHASIS = np.float32(0.97)
LOG_FLOOR = np.float32(np.finfo(np.float32).eps)
_SINC_WIDTH, _ROLLOFF = 6, 0.99
_PHASES = 4096  # kernels kept; coprime rates with more are resampled slowly
_FRAMES = 64  # transformed at a time, so that they stay in the cache
_GROUP = 16  # output samples, or filters, of one matrix
# Multiplications of a product. From 2^18 on OpenBLAS divides it among threads,
# which wait for each other on the cores of other workers.
_PRODUCT = 1 << 17
_SHORT = 1 << 14  # output samples of a group of matrices
_BLOCK = 65536  # output samples resampled at a time
_INPUTS = 1 << 20  # input samples held at a time


def decode_audio(raw: Any, geometry: Geometry) -> Float[np.ndarray, " N"]:
  """Decodes a sound to a mono waveform.

  Args:
    raw: content of a file, an array at the configured rate, or (array, rate in
      Hz). Arrays are [N], [N, channels] or [channels, N]: the shorter axis is
      that of the channels. Integers are scaled to full scale.
    geometry: with the configured rate and length.

  Returns:
    Mono samples in units of full scale at `config.sample_rate`, at most
    `config.max_seconds` of them.

  Raises:
    DecodeError: for unreadable, empty or non-finite sound, and for samples,
      rates, shapes or types out of range.
  """
  config = geometry.audio
  if isinstance(raw, bytes):
    blocks = read_sound(raw, config.max_seconds)
  else:
    pair = raw if isinstance(raw, tuple) else (raw, config.sample_rate)
    if len(pair) != 2:
      raise DecodeError(f"expected (samples, rate), got {len(pair)} values.")
    samples, rate = pair
    blocks = array_blocks(samples, rate, config.max_seconds)
  pieces = [
    resample_blocks((mono for _, mono in group), rate, config.sample_rate)
    for rate, group in itertools.groupby(
      ((b.rate, mix_down(b, config.channel)) for b in blocks),
      key=lambda pair: pair[0],
    )
  ]
  waveform = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
  if not len(waveform):
    raise DecodeError("the sound has length 0.")
  return waveform


@functools.lru_cache(maxsize=8)
def _sinc_kernel(source: int, target: int) -> Float[np.ndarray, "target taps"]:
  """Taps (2 * reach + 2) of each output phase, for coprime rates."""
  phases = np.arange(target)
  return _taps(phases, source, target)


def _reach(source: int, target: int) -> int:
  return math.ceil(_SINC_WIDTH * source / (min(source, target) * _ROLLOFF))


def _taps(
  outputs: Int[np.ndarray, " N"], source: int, target: int
) -> Float[np.ndarray, "N taps"]:
  """Weights of the input samples around each output sample."""
  cutoff = min(source, target) * _ROLLOFF / source
  reach = _reach(source, target)
  offset = np.arange(-reach, reach + 2, dtype=np.float64)
  fraction = (outputs * source % target) / target
  t = (offset[None, :] - fraction[:, None]) * cutoff
  t = np.clip(t, -_SINC_WIDTH, _SINC_WIDTH)
  window = np.cos(t * np.pi / _SINC_WIDTH / 2) ** 2
  return (np.sinc(t) * window * cutoff).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _bands(
  source: int, target: int
) -> tuple[
  int, int, int, list[tuple[int, Float[np.ndarray, "inputs outputs"]]]
]:
  """The kernel as matrices of `_GROUP` neighbouring outputs each.

  Returns:
    Inputs and outputs of a period, periods of a product, and (first input,
    matrix) of each group. A period has more inputs than a matrix, as BLAS
    expects of its rows.
  """
  kernel = _sinc_kernel(source, target)
  taps = kernel.shape[1]
  width = taps + _GROUP * source // target + 1
  repeats = -(-width // source)
  period = target * repeats
  bands = []
  for first in range(0, period, _GROUP):
    phases = range(first, min(first + _GROUP, period))
    starts = [p * source // target for p in phases]
    band = np.zeros((starts[-1] - starts[0] + taps, len(phases)), np.float32)
    for column, (p, start) in enumerate(zip(phases, starts, strict=True)):
      at = start - starts[0]
      band[at : at + taps, column] = kernel[p % target]
    bands.append((starts[0], band))
  # A product makes few more outputs than a short sound has.
  most = max(band.size for _, band in bands)
  rows = max(8, min(_PRODUCT // most, _SHORT // period) // 8 * 8)
  return source * repeats, period, rows, bands


def _resample_periods(
  x: Float[np.ndarray, " N"], length: int, source: int, target: int
) -> Float[np.ndarray, " M"]:
  """`resample` by products of matrices, whose inputs are not copied.

  All products of two rates have one shape, since BLAS rounds by it: else a
  sample would depend on the length of the sound.
  """
  inputs, outputs, rows, bands = _bands(source, target)
  width = max(first + len(band) for first, band in bands)
  count = rows * -(-length // (outputs * rows))
  reach = _reach(source, target)
  padded = np.zeros(count * inputs + width + reach, np.float32)
  padded[reach : reach + len(x)] = x
  out = np.empty((count, outputs), np.float32)
  at = 0
  for first, band in bands:
    views = np.lib.stride_tricks.as_strided(
      padded[first:], (count, len(band)), (4 * inputs, 4), writeable=False
    )
    made = out[:, at : at + band.shape[1]]
    for row in range(0, count, rows):
      end = row + rows
      np.matmul(views[row:end], band, out=made[row:end])
    at += band.shape[1]
  return out.reshape(-1)[:length]


def resample(
  x: Float[np.ndarray, " N"], source: int, target: int
) -> Float[np.ndarray, " M"]:
  """Resamples from `source` to `target` Hz; M = ceil(N * target / source)."""
  if source == target:
    return x
  common = math.gcd(source, target)
  source, target = source // common, target // common
  length = -(-len(x) * target // source)
  reach = _reach(source, target)
  if target <= _PHASES:
    return _resample_periods(x, length, source, target)
  padded = np.pad(x, (reach, reach + 2 + source))
  out = np.empty(length, np.float32)
  around = np.arange(2 * reach + 2)
  for start in range(0, length, _BLOCK):
    outputs = np.arange(start, min(start + _BLOCK, length), dtype=np.int64)
    taps = _taps(outputs, source, target)
    inputs = padded[(outputs * source // target)[:, None] + around]
    out[start : start + len(outputs)] = np.einsum("nk,nk->n", inputs, taps)
  return out


def resample_blocks(
  blocks: Iterable[Float[np.ndarray, " _"]], source: int, target: int
) -> Float[np.ndarray, " M"]:
  """`resample` of concatenated blocks, without holding them all at once."""
  if source == target:
    return np.concatenate([np.zeros(0, np.float32), *blocks])
  common = math.gcd(source, target)
  unit = source // common  # inputs after which phases repeat
  if target // common <= _PHASES:
    inputs, _, rows, _ = _bands(unit, target // common)
    unit = inputs * rows  # and the place in a product, which rounds by it
  overlap = unit * -(-2 * (_reach(source, target) + 2) // unit)
  size = unit * -(-_INPUTS // unit)
  done, waiting, held, before = [], [], 0, 0

  def flush(last: bool) -> None:
    nonlocal waiting, held, before
    x = np.concatenate(waiting)
    out = resample(x, source, target)
    # Samples within `overlap` of an inner edge are made with the next block.
    stop = len(out) if last else (held - overlap) // unit * unit
    keep = len(out) if last else stop * target // source
    done.append(out[before * target // source : keep])
    start = max(0, stop - overlap)
    waiting, held, before = [x[start:]], len(x) - start, stop - start

  for block in blocks:
    waiting.append(block)
    held += len(block)
    if held >= size + 2 * overlap:
      flush(last=False)
  if held:
    flush(last=True)
  return np.concatenate([np.zeros(0, np.float32), *done])


def at_other_speed(
  waveform: Float[np.ndarray, " N"], speed: float
) -> Float[np.ndarray, " M"]:
  """A sound played `speed` times as fast, which also changes the pitch."""
  if len(waveform) < 2:
    return waveform
  old = np.arange(len(waveform))
  new = np.arange(0, len(waveform) - 1, speed)
  return np.interp(new, old, waveform).astype(np.float32)


@functools.lru_cache(maxsize=16)
def window_of(size: int) -> Float[np.ndarray, " size"]:
  """Kaldi's "povey" window of `size` samples."""
  n = np.arange(size) / (size - 1)
  return ((0.5 - 0.5 * np.cos(2 * np.pi * n)) ** 0.85).astype(np.float32)


@functools.lru_cache(maxsize=16)
def mel_filters(
  bins: int, fft_size: int, rate: int
) -> Float[np.ndarray, "frequency bins"]:
  """Triangular mel filters, fft_size / 2 + 1 frequencies up to Nyquist.

  Args:
    bins: number of filters.
    fft_size: length of the transform.
    rate: in Hz.
  """
  # Edges in float64 and the rest in float32, as in torchaudio: the rounding
  # matters for many narrow filters.
  one = np.float32(1)
  edge_low = 1127.0 * math.log(1.0 + _LOW_HZ / 700.0)
  edge_high = 1127.0 * math.log(1.0 + rate / 2 / 700.0)
  step = np.float32((edge_high - edge_low) / (bins + 1))
  low = np.float32(edge_low)
  index = np.arange(bins, dtype=np.float32)
  left, centre = low + index * step, low + (index + one) * step
  right = low + (index + np.float32(2)) * step
  hz = np.float32(rate / fft_size) * np.arange(fft_size // 2, dtype=np.float32)
  at = np.float32(1127) * np.log(one + hz / np.float32(700))
  at = at[:, None]
  up, down = (at - left) / (centre - left), (right - at) / (right - centre)
  filters = np.maximum(np.float32(0), np.minimum(up, down))
  return np.pad(filters, ((0, 1), (0, 0))).astype(np.float32)


def mel_place(hz: float, bins: int, rate: int) -> float:
  """Where a frequency lies among the centres of `mel_filters`.

  Args:
    hz: the frequency.
    bins: number of filters.
    rate: of the sound, in Hz.

  Returns:
    From 0 at the lower edge of the first of the bins to 1 at the upper edge of
    the last; its centre is half a bin inside. Outside for other frequencies.
  """
  mel = lambda f: 1127.0 * math.log(1.0 + f / 700.0)
  step = (mel(rate / 2) - mel(_LOW_HZ)) / (bins + 1)
  return ((mel(hz) - mel(_LOW_HZ)) / step - 0.5) / bins


@functools.lru_cache(maxsize=16)
def _filter_bands(
  bins: int, fft_size: int, rate: int
) -> list[tuple[int, int, Float[np.ndarray, "frequency group"]]]:
  """Groups of `mel_filters`: first bin, first frequency, and the filters."""
  filters, bands = mel_filters(bins, fft_size, rate), []
  for first in range(0, bins, _GROUP):
    group = filters[:, first : first + _GROUP]
    used = np.flatnonzero(group.any(axis=1))
    low, high = (used[0], used[-1] + 1) if len(used) else (0, 1)
    bands.append((first, int(low), np.ascontiguousarray(group[low:high])))
  return bands


def sizes_of(config: AudioConfig) -> tuple[int, int]:
  """Samples of a window, and of the hop between windows."""
  rate = config.sample_rate
  size, hop = config.window_ms, config.hop_ms
  return round(rate * size / 1000), round(rate * hop / 1000)


def num_frames(samples: int, config: AudioConfig) -> int:
  """Number of frames of log-mel energies of a sound; at least one."""
  size, hop = sizes_of(config)
  return 1 + max(0, samples - size) // hop


def fbank(
  waveform: Float[np.ndarray, " N"],
  bins: int,
  config: AudioConfig,
  start: int = 0,
  stop: int | None = None,
) -> Float[np.ndarray, "frames bins"]:
  """Kaldi log-mel energies (nats) of a waveform in units of full scale.

  A sound shorter than one window is padded with zeros to one frame.

  Args:
    waveform: mono.
    bins: of the filterbank.
    config: rate, window and hop.
    start: first frame to compute.
    stop: one past the last frame; None: all.
  """
  rate = config.sample_rate
  size, hop = sizes_of(config)
  if stop is not None or start:
    total = num_frames(len(waveform), config)
    stop = total if stop is None else min(stop, total)
    if stop <= start:
      return np.zeros((0, bins), np.float32)
    waveform = waveform[start * hop : (stop - 1) * hop + size]
  fft_size = 1 << (size - 1).bit_length()
  if len(waveform) < size:
    waveform = np.pad(waveform, (0, size - len(waveform)))
  x = np.ascontiguousarray(waveform, np.float32) * np.float32(2**15)
  views = np.lib.stride_tricks.sliding_window_view(x, size)[::hop]
  power = np.empty((len(views), fft_size // 2 + 1), np.float32)
  for at in range(0, len(views), _FRAMES):
    power[at : at + _FRAMES] = _power(views[at : at + _FRAMES], fft_size)
  energies = np.empty((len(views), bins), np.float32)
  for at, low, band in _filter_bands(bins, fft_size, rate):
    inputs = power[:, low : low + len(band)]
    made = energies[:, at : at + band.shape[1]]
    rows = max(1, _PRODUCT // band.size)
    for row in range(0, len(power), rows):
      np.matmul(inputs[row : row + rows], band, out=made[row : row + rows])
  np.maximum(energies, LOG_FLOOR, out=energies)
  return np.log(energies, out=energies)


def _power(
  frames: Float[np.ndarray, "n size"], fft_size: int
) -> Float[np.ndarray, "n frequency"]:
  """Power spectra of frames, without their mean and with pre-emphasis."""
  frames = frames - frames.mean(axis=1, keepdims=True, dtype=np.float32)
  before = PREEMPHASIS * frames
  frames[:, 1:] -= before[:, :-1]
  frames[:, 0] -= before[:, 0]
  frames *= window_of(frames.shape[1])
  parts = np.fft.rfft(frames, fft_size).view(np.float32)
  np.square(parts, out=parts)
  return parts[:, ::2] + parts[:, 1::2]
