"""The filterbank inside the step: sound travels as waveform in 16 bits.

Each slice is an int16 array: two numbers (how many of its frames are sound, and
the power of two that its samples are divided by) and the samples that its
frames cover. Sounds of 16 bits at the configured rate travel unchanged; others
are rounded to 16 bits of the peak of their slice. `sound.fbank` is the
definition; here it is written for `xp`, which is NumPy or `jax.numpy`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from mico_jax.modalities.augmentation import Augmentation
from mico_jax.modalities.base import Geometry
from mico_jax.modalities.sampling import choose_slices
from mico_jax.modalities.sound import (
  LOG_FLOOR,
  PREEMPHASIS,
  mel_filters,
  num_frames,
  sizes_of,
  window_of,
)
from mico_jax.modalities.spatial import resize_axis

HEADER = 2  # numbers before the samples: frames of sound, and the exponent
_BITS = 15  # of a sample, besides its sign
_MOST_EXPONENT = 100  # beyond it lies no sound that float32 holds


def samples_of(geometry: Geometry) -> int:
  """Samples that the frames of a slice cover."""
  size, hop = sizes_of(geometry.audio)
  return (geometry.size - 1) * hop + size


def slice_shape(geometry: Geometry) -> tuple[int, ...]:
  """Shape of what travels: slices, and header and samples of each."""
  return (geometry.frames, HEADER + samples_of(geometry))


def waveform_slices(
  waveform: Float[np.ndarray, " N"],
  geometry: Geometry,
  rng: np.random.Generator | None = None,
  *,
  augment: Augmentation | None = None,
) -> Int16[np.ndarray, "T samples"]:
  """The slices that `audio.log_mel_slices` would filter, as waveforms.

  Args:
    waveform: mono, in units of full scale, at the configured rate.
    geometry: T, the size of a slice, and the filterbank.
    rng: draws a slice of each of T groups; None: the middle one.
    augment: changes the waveform; None: nothing does.
  """
  if augment is not None:
    waveform = augment.sound(waveform)
  rows, (_, hop) = geometry.size, sizes_of(geometry.audio)
  frames = num_frames(len(waveform), geometry.audio)
  count = max(geometry.frames, -(-frames // rows))
  chosen = choose_slices(count, geometry, rng).tolist()
  made = np.zeros(slice_shape(geometry), np.int16)
  for row, i in zip(made, chosen, strict=True):
    begin = i * rows * hop
    part = waveform[begin : begin + samples_of(geometry)]
    row[0] = np.clip(frames - i * rows, 0, rows)
    row[1], row[HEADER : HEADER + len(part)] = _rounded(part)
  return made


def _rounded(part: Float[np.ndarray, " N"]) -> tuple[int, np.ndarray]:
  """(e, integers), the samples being integers / 2**15 * 2**e."""
  peak = float(np.abs(part).max(initial=0.0))
  if not peak:
    return 0, np.zeros(len(part), np.int16)
  exponent = int(np.clip(np.frexp(peak)[1], -_MOST_EXPONENT, _MOST_EXPONENT))
  # -1 itself fits, so sounds of 16 bits keep their last one.
  smaller = np.rint(np.ldexp(part, _BITS - exponent + 1))
  if smaller.min() >= -(2**_BITS) and smaller.max() < 2**_BITS:
    return exponent - 1, smaller.astype(np.int16)
  whole = np.rint(np.ldexp(part, _BITS - exponent))
  return exponent, np.clip(whole, -(2**_BITS), 2**_BITS - 1).astype(np.int16)


def log_mel(
  array: Any, *, geometry: Geometry, xp: Any
) -> Float[Any, "*B T frames bins"]:
  """Log-mel energy (nats) minus the mean, 0 in padding, in float32.

  Args:
    array: of `waveform_slices`, int16 [*B, T, samples].
    geometry: of the slices.
    xp: `numpy` or `jax.numpy`.
  """
  config, rows = geometry.audio, geometry.size
  size, hop = sizes_of(config)
  count, exponent = array[..., 0], array[..., 1]
  samples = array[..., HEADER:].astype(xp.float32)
  # In units of 2**-15, as Kaldi has them; `ldexp` is exact.
  x = xp.ldexp(samples, exponent[..., None].astype(xp.int32))
  frames = _frames(x, rows, size, hop, xp)
  # Differences are exact, so a constant leaves nothing, however means round.
  frames = frames - frames[..., :1]
  frames = frames - frames.mean(axis=-1, keepdims=True, dtype=xp.float32)
  before = xp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
  ones = (1,) * (frames.ndim - 1)
  window = xp.asarray(window_of(size).reshape(*ones, size))
  frames = (frames - PREEMPHASIS * before) * window
  fft_size = 1 << (size - 1).bit_length()
  spectrum = xp.fft.rfft(frames, fft_size)
  power = xp.square(spectrum.real) + xp.square(spectrum.imag)
  bins = config.mel_bins or rows
  filters = mel_filters(bins, fft_size, config.sample_rate)
  # A product of bfloat16 parts would be heard.
  exact = {} if xp is np else {"precision": "highest"}
  energies = xp.matmul(power.astype(xp.float32), xp.asarray(filters), **exact)
  logs = xp.log(xp.maximum(energies, LOG_FLOOR))
  if bins != rows:
    table = resize_axis(np.eye(bins, dtype=np.float32), rows, 1)
    logs = xp.matmul(logs, xp.asarray(table), **exact)
  place = xp.asarray(np.arange(rows, dtype=np.int16).reshape(*ones[1:], rows))
  valid = place < count[..., None]
  return xp.where(valid[..., None], logs - np.float32(config.mean), 0.0)


def _frames(x: Any, rows: int, size: int, hop: int, xp: Any) -> Any:
  """Windows of `size` samples, `hop` apart: [*B, rows, size].

  Made of whole hops side by side, which accelerators copy faster than they
  gather.
  """
  hops = -(-size // hop)
  missing = (rows + hops - 1) * hop - x.shape[-1]
  ends = [(0, 0)] * (x.ndim - 1) + [(0, missing)]
  blocks = xp.pad(x, ends).reshape(*x.shape[:-1], rows + hops - 1, hop)
  parts = [blocks[..., j : j + rows, :] for j in range(hops)]
  return xp.concatenate(parts, axis=-1)[..., :size]
