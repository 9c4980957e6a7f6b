"""Transforms of sound: of waveforms, and of log-mel slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config.fields import Fraction, Range
from mico_jax.modalities.augmentation import LOG_MEL, MIX, SOUND, Transform
from mico_jax.modalities.sound import at_other_speed

Waveform = Float[np.ndarray, " N"]
_Masks = Annotated[int, Range(0, 64, "masks")]
_LOWEST = 1 / 256  # of the highest frequency: where the scale of gains begins


@dataclasses.dataclass(frozen=True)
class Mixup(Transform):
  """Mixes in another sound of the source, and joins both captions by "and".

  own * x + other * (1 - x) with x of Beta(alpha, alpha), the other one cut to
  the own length or followed by silence, as AST mixes AudioSet
  (arXiv:2104.01778). For tasks of sounds alone, since nothing else that a
  sample holds would fit the mixture; a partner that cannot be read, or is
  silent, is not mixed in.
  """

  name: ClassVar[str] = "mixup"
  stage: ClassVar[str] = MIX
  groups_only: ClassVar[str] = "a"
  probability: Fraction = 0.5
  alpha: Annotated[float, Range(0.01, 1000.0)] = 10.0

  def __call__(
    self,
    value: tuple[Waveform, Float[np.ndarray, " M"]],
    rng: np.random.Generator,
  ) -> Waveform:
    """The mixture, as long as the own sound."""
    own, other = value
    share = np.float32(rng.beta(self.alpha, self.alpha))
    mixed = own * share
    length = min(len(own), len(other))
    mixed[:length] += other[:length] * (1 - share)
    return mixed


@dataclasses.dataclass(frozen=True)
class Gain(Transform):
  """Makes the sound louder or softer."""

  name: ClassVar[str] = "gain"
  stage: ClassVar[str] = SOUND
  # largest change, either way
  decibels: Annotated[float, Range(0.0, 60.0, "dB")] = 6.0

  def __call__(self, value: Waveform, rng: np.random.Generator) -> Waveform:
    """A waveform of another level."""
    level = rng.uniform(-self.decibels, self.decibels)
    return value * np.float32(10 ** (level / 20))


@dataclasses.dataclass(frozen=True)
class Speed(Transform):
  """Plays the sound faster or slower, which changes its pitch as well.

  Linear interpolation between samples. Source: Ko et al., Audio Augmentation
  for Speech Recognition, Interspeech 2015.
  """

  name: ClassVar[str] = "speed"
  stage: ClassVar[str] = SOUND
  # largest relative change, either way
  change: Annotated[float, Range(0.0, 0.9)] = 0.1

  def __call__(
    self, value: Waveform, rng: np.random.Generator
  ) -> Float[np.ndarray, " M"]:
    """A waveform of another length."""
    speed = rng.uniform(1 - self.change, 1 + self.change)
    return at_other_speed(value, speed)


@dataclasses.dataclass(frozen=True)
class Shift(Transform):
  """Begins later, after silence, or cuts the beginning off."""

  name: ClassVar[str] = "shift"
  stage: ClassVar[str] = SOUND
  share: Fraction = 0.1  # of the sound's length: the largest shift, either way

  def __call__(
    self, value: Waveform, rng: np.random.Generator
  ) -> Float[np.ndarray, " M"]:
    """A waveform with another beginning and the same end."""
    most = int(self.share * len(value))
    later = int(rng.integers(-most, most + 1))
    return np.pad(value, (later, 0)) if later > 0 else value[-later:]


@dataclasses.dataclass(frozen=True)
class Equalize(Transform):
  """Makes some frequencies louder and others softer, as another room would.

  The gain in decibels is a line through random points, evenly apart on a
  logarithmic scale of frequency from a 256th of the highest one on.
  """

  name: ClassVar[str] = "equalize"
  stage: ClassVar[str] = SOUND
  # largest change of a frequency, either way
  decibels: Annotated[float, Range(0.0, 60.0, "dB")] = 6.0
  points: Annotated[int, Range(2, 64, "points")] = 6

  def __call__(self, value: Waveform, rng: np.random.Generator) -> Waveform:
    """The filtered waveform."""
    levels = rng.uniform(-self.decibels, self.decibels, self.points)
    spectrum = np.fft.rfft(value)
    share = np.linspace(0.0, 1.0, len(spectrum))  # of the highest frequency
    height = 1 + np.log2(np.maximum(share, _LOWEST)) / -np.log2(_LOWEST)
    gain = np.interp(height, np.linspace(0.0, 1.0, self.points), levels)
    changed = np.fft.irfft(spectrum * 10 ** (gain / 20), len(value))
    return changed.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class SpecAugment(Transform):
  """Masks of time and frequency in log-mel slices, of the mean's value.

  Each mask has a width drawn from 0 to the largest, and lies anywhere; slices
  count as one sound, end to end. Source: SpecAugment, arXiv:1904.08779, without
  the warping of time.
  """

  name: ClassVar[str] = "spec_augment"
  stage: ClassVar[str] = LOG_MEL
  time_masks: _Masks = 2
  # largest width of a mask, in frames of data.audio.hop_ms
  time_width: Annotated[int, Range(0, 65_536, "frames")] = 40
  frequency_masks: _Masks = 2
  # largest width of a mask, in columns of the encoder's input
  frequency_width: Annotated[int, Range(0, 65_536, "columns")] = 27

  def __call__(
    self, value: Float[np.ndarray, "T frames bins"], rng: np.random.Generator
  ) -> Float[np.ndarray, "T frames bins"]:
    """Masked slices."""
    long = value.reshape(-1, value.shape[2]).copy()
    masks = [(self.time_width, 0)] * self.time_masks
    masks += [(self.frequency_width, 1)] * self.frequency_masks
    for most, axis in masks:
      length = long.shape[axis]
      width = int(rng.integers(0, min(most, length) + 1))
      start = int(rng.integers(0, length - width + 1))
      long.swapaxes(0, axis)[start : start + width] = 0.0
    return long.reshape(value.shape)

  def problem(self, stages: Sequence[tuple[str, ...]], size: int) -> str:
    """See `Transform`."""
    del stages
    for name, width in (
      ("time_width", self.time_width),
      ("frequency_width", self.frequency_width),
    ):
      if width > size:
        return (
          f"{name}={width} is more than the {size} rows and columns of a "
          "slice (model.vision.image_size)."
        )
    return ""
