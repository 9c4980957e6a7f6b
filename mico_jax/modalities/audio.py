"""Audio: log-mel slices [T, frames, mel bins], each as large as an image.

The input array is log-mel energy minus `data.audio.mean`, so that 0 is padding
(the official code pads after normalisation) and float16 is most precise near
the mean. Modes: `plain` pads the last slice only; `mico`, as the official code,
adds a slice of zeros if the length is a multiple of a slice; `mico_demo` is the
same in float32, equal to the official demo; `plain_on_device` sends the
waveform and filters it in the step (`device_fbank`); `spec_augment` adds time
shift, gain and masked bands to `plain`; `speed_augment` also changes the speed
and has twice the masks. The last two are `plain` in evaluation; the others may
be augmented by transforms, whose numbers are in the config (where the device
filters, by those of the waveform).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Float16

from mico_jax.config import InputConfig
from mico_jax.modalities import device_fbank
from mico_jax.modalities.augmentation import (
  LOG_MEL,
  MIX,
  SOUND,
  Augmentation,
)
from mico_jax.modalities.base import (
  ArraySpec,
  Axis,
  Caption,
  Geometry,
  Modality,
  Mode,
  Scale,
)
from mico_jax.modalities.sampling import choose_slices
from mico_jax.modalities.sound import (
  at_other_speed,
  decode_audio,
  fbank,
  mel_place,
  num_frames,
)
from mico_jax.modalities.spatial import modes, resize_axis

STAGES = (MIX, SOUND, LOG_MEL)


def log_mel_slices(
  waveform: Float[np.ndarray, " N"],
  geometry: Geometry,
  *,
  slice_frames: int = 0,
  extra_slice: bool = False,
  rng: np.random.Generator | None = None,
) -> Float[np.ndarray, "T frames bins"]:
  """T slices of log-mel energy (nats) minus the mean.

  Args:
    waveform: mono, in units of full scale, at the configured rate.
    geometry: T, the size of a slice, and the filterbank.
    slice_frames: frames of a slice; 0: as many as the image has rows.
    extra_slice: pad a full last slice with one of zeros, as the official code.
    rng: draws a slice of each of T groups; None: the middle one.

  Source: the official MiCo code, checked by the golden cases (tests/golden).
  """
  config, size = geometry.audio, geometry.size
  rows = slice_frames or size
  frames = num_frames(len(waveform), config)
  rest = rows - frames % rows if extra_slice else -frames % rows
  count = (frames + max(rows * geometry.frames - frames, rest)) // rows
  made = {}
  chosen = choose_slices(count, geometry, rng).tolist()
  for i in dict.fromkeys(chosen):
    # Only the chosen slices of a long sound are filtered.
    energies = fbank(
      waveform, config.mel_bins or size, config, i * rows, (i + 1) * rows
    )
    energies = resize_axis(energies, size, 1) - np.float32(config.mean)
    made[i] = np.pad(energies, ((0, rows - len(energies)), (0, 0)))
  return np.stack([made[i] for i in chosen])


def _host(
  waveform: Float[np.ndarray, " N"],
  geometry: Geometry,
  rng: np.random.Generator | None = None,
  *,
  augment: Augmentation | None = None,
  extra_slice: bool = False,
  dtype: str = "float16",
) -> Float[np.ndarray, "T frames bins"]:
  """Slices of a sound; see `log_mel_slices`."""
  if augment is not None:
    waveform = augment.sound(waveform)
  slices = log_mel_slices(waveform, geometry, extra_slice=extra_slice, rng=rng)
  if augment is not None:
    slices = augment.log_mel(slices)
  return slices.astype(dtype)


def _augment(
  waveform: Float[np.ndarray, " N"],
  geometry: Geometry,
  rng: Any = None,
  *,
  speed: float = 0.0,
  masks: int = 1,
) -> Float16[np.ndarray, "T frames bins"]:
  """Shift by up to 10%, gain of up to 6 dB either way, and masked bands.

  Args:
    waveform: mono, in [-1, 1].
    geometry: of the slices.
    rng: None: no augmentation.
    speed: largest relative change of speed.
    masks: number of masks in time, and as many in frequency.

  Source: SpecAugment, arXiv:1904.08779; speed: Ko et al., Audio Augmentation
    for Speech Recognition, Interspeech 2015.
  """
  if rng is None:
    return _host(waveform, geometry)
  config = geometry.audio
  if speed:
    waveform = at_other_speed(waveform, rng.uniform(1 - speed, 1 + speed))
  covered = geometry.frames * geometry.size * config.hop_ms / 1000
  reach = int(0.1 * min(covered * config.sample_rate, len(waveform)))
  offset = int(rng.integers(-reach, reach + 1))
  if offset < 0:
    waveform = np.pad(waveform, (-offset, 0))
  else:
    waveform = waveform[offset:] if offset < len(waveform) else waveform
  gain = np.float32(10 ** (rng.uniform(-6, 6) / 20))
  slices = log_mel_slices(waveform * gain, geometry, rng=rng)
  for axis in (0, 1) * masks:
    long = slices.reshape(-1, geometry.size)
    width = int(rng.integers(0, max(2, long.shape[axis] // 8)))
    start = int(rng.integers(0, long.shape[axis] - width + 1))
    index = [slice(None), slice(None)]
    index[axis] = slice(start, start + width)
    long[tuple(index)] = 0.0
  return slices.astype(np.float16)


def _filtered(array: Any, *, geometry: Geometry, xp: Any) -> Any:
  """Pixels of waveforms, which are filtered here."""
  slices = device_fbank.log_mel(array, geometry=geometry, xp=xp)
  return _to_pixels(slices, geometry=geometry, xp=xp)


def _to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
  x = array.astype(xp.float32)[..., None] / (2.0 * geometry.audio.std)
  return xp.broadcast_to(x, (*x.shape[:-1], 3))


def _recipe(*, extra_slice: bool, rounded: bool = True) -> dict[str, Any]:
  """Recipe of a mode; `rounded`: its array is float16."""
  return {"kind": "log_mel", "extra_slice": extra_slice, "rounded": rounded}


def example_audio(geometry: Geometry, seed: int) -> Float[np.ndarray, " N"]:
  """A decaying chirp as long as the slices."""
  config = geometry.audio
  seconds = geometry.frames * geometry.size * config.hop_ms / 1000 + 0.02
  t = np.arange(int(seconds * config.sample_rate)) / config.sample_rate
  pitch = 220.0 * (1 + seed % 5)
  wave = 0.5 * np.exp(-2 * t) * np.sin(2 * np.pi * pitch * t * (1 + t))
  return wave.astype(np.float32)


_MARKS = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)  # Hz


def _scale(geometry: Geometry, mode: Mode) -> Scale:
  """Seconds to the right, from the start of a slice, and Hz upwards."""
  config, size = geometry.audio, geometry.size
  bins = config.mel_bins or size
  places = [(mel_place(f, bins, config.sample_rate), f) for f in _MARKS]
  inside = [(x, f"{f:g}") for x, f in places if 0.02 < x < 0.98]
  ends = {0, len(inside) // 2, len(inside) - 1}
  few = [inside[i] for i in sorted(ends) if 0 <= i < len(inside)]
  seconds = size * config.hop_ms / 1000
  return Scale(
    right=Axis("s", ((0.0, "0"), (1.0, f"{seconds:.3g}"))),
    up=Axis("Hz", tuple(few)),
    # where the device filters, what is drawn are its pixels
    values="nats" if mode.shape is None else "",
  )


AUDIO = Modality(
  key="audio",
  letter="a",
  kind="knowledge",
  spec=ArraySpec(
    ("T", "Y", "X"), "float16", "log mel energy - mean", (-40.0, 40.0)
  ),
  decode=decode_audio,
  modes=modes(
    Mode(
      "plain",
      _host,
      _to_pixels,
      description="log-mel slices",
      stages=STAGES,
      recipe=_recipe(extra_slice=False),
    ),
    Mode(
      "plain_on_device",
      device_fbank.waveform_slices,
      _filtered,
      description="plain, filtered in the step: 16-bit waveform travels",
      dtype="int16",
      stages=(MIX, SOUND),
      recipe=_recipe(extra_slice=False, rounded=False),
      shape=device_fbank.slice_shape,
      value_range=(-32768, 32767),
    ),
    Mode(
      "mico",
      functools.partial(_host, extra_slice=True),
      _to_pixels,
      stages=STAGES,
      description="the official padding: an extra slice",
      recipe=_recipe(extra_slice=True),
    ),
    Mode(
      "mico_demo",
      functools.partial(_host, extra_slice=True, dtype="float32"),
      _to_pixels,
      stages=STAGES,
      description="the official demo, exact: float32 slices",
      dtype="float32",
      recipe=_recipe(extra_slice=True, rounded=False),
    ),
    Mode(
      "spec_augment",
      _augment,
      _to_pixels,
      "plain",
      "shift, gain, time and frequency masks",
    ),
    Mode(
      "speed_augment",
      functools.partial(_augment, speed=0.1, masks=2),
      _to_pixels,
      "plain",
      "speed, shift, gain, twice the masks",
    ),
  ),
  default_mode="plain",
  example=example_audio,
  context_type="audio",
  caption=Caption("audio", fields=("audio_caption",), general=True),
  rated=True,
  draw=lambda x: x.T[::-1],  # time to the right, pitch upwards
  scale=_scale,
  play=lambda waveform, sizes: (waveform, sizes.audio.sample_rate),
  extensions=(
    *(".flac", ".wav", ".ogg", ".mp3", ".opus", ".m4a", ".aac", ".oga"),
    *(".aif", ".aiff", ".mka"),
  ),
  default_input=InputConfig(frames=1),
  notes="rows are time, columns mel bins; any rate; audio:FILE for videos",
)
