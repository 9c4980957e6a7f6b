"""Transforms of sound: of waveforms, and of log-mel slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config.fields import Fraction, Range
from mico_jax.modalities.augmentation import LOG_MEL, MIX, SOUND, Transform

Waveform = Float[np.ndarray, " N"]
_Masks = Annotated[int, Range(0, 64, "masks")]


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
