"""Transforms of what is seen: one draw for all aligned pictures of a sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np

from mico_jax.config.fields import Choice, Fraction, Items, Range
from mico_jax.modalities.augmentation import COLS, ROWS, VIEW, Transform, View

Area = Annotated[float, Range(1e-4, 1.0)]
Aspect = Annotated[float, Range(0.01, 100.0)]
_TRIES = 10


def _order(**pairs: Sequence[float]) -> str:
  """What is wrong with (smallest, largest); "": nothing."""
  for name, (low, high) in pairs.items():
    if low > high:
      return f"{name}={(low, high)}: expected (smallest, largest)."
  return ""


def _sides(
  rng: np.random.Generator,
  scale: Sequence[float],
  ratio: Sequence[float],
  area: float,
) -> tuple[float, float]:
  """(height, width) of a share of an area; log(width / height) is uniform."""
  share = area * rng.uniform(scale[0], scale[1])
  aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
  return math.sqrt(share / aspect), math.sqrt(share * aspect)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop(Transform):
  """Part of the picture, resized to the encoder's size.

  Of ten boxes drawn the first that fits is taken; else the largest in the
  middle whose aspect ratio is allowed. Source: torchvision's transform of this
  name; open_clip trains with its defaults here and "bicubic".
  """

  name: ClassVar[str] = "random_resized_crop"
  stage: ClassVar[str] = VIEW
  # smallest and largest share of the area
  scale: Annotated[tuple[Area, ...], Items(only=(2,))] = (0.9, 1.0)
  # smallest and largest width / height
  ratio: Annotated[tuple[Aspect, ...], Items(only=(2,))] = (3 / 4, 4 / 3)
  # of colours, antialiased; "": as the mode resizes
  interpolation: Annotated[str, Choice("", "bilinear", "bicubic")] = ""

  def __call__(self, value: View, rng: np.random.Generator) -> View:
    """A view of a box."""
    box = self._box(value.rows, value.cols, rng)
    return dataclasses.replace(value, box=box, interpolation=self.interpolation)

  def _box(
    self, rows: int, cols: int, rng: np.random.Generator
  ) -> tuple[int, int, int, int]:
    for _ in range(_TRIES):
      sides = _sides(rng, self.scale, self.ratio, rows * cols)
      height, width = (round(side) for side in sides)
      if 0 < height <= rows and 0 < width <= cols:
        top = int(rng.integers(0, rows - height + 1))
        left = int(rng.integers(0, cols - width + 1))
        return top, left, height, width
    low, high = self.ratio
    height = min(rows, max(1, round(cols / low)))
    width = min(cols, max(1, round(rows * high)))
    return (rows - height) // 2, (cols - width) // 2, height, width

  def problem(self, stages: Sequence[tuple[str, ...]], size: int) -> str:
    """See `Transform`."""
    del stages, size
    return _order(scale=self.scale, ratio=self.ratio)


@dataclasses.dataclass(frozen=True)
class Flip(Transform):
  """Mirrors the picture; the components of normals change sign with it."""

  name: ClassVar[str] = "flip"
  stage: ClassVar[str] = VIEW
  # probability of left for right
  horizontal: Fraction = 0.5
  # probability of up for down
  vertical: Fraction = 0.0

  def __call__(self, value: View, rng: np.random.Generator) -> View:
    """A view that is turned."""
    across, down = rng.random(2)
    flips = (COLS,) * bool(across < self.horizontal)
    flips += (ROWS,) * bool(down < self.vertical)
    return dataclasses.replace(value, flips=flips)


@dataclasses.dataclass(frozen=True)
class RandomErasing(Transform):
  """Hides a box: the mode's mean of colours, no reading of depth.

  Source: arXiv:1708.04896; numbers of timm. Of ten boxes drawn the first that
  fits is taken.
  """

  name: ClassVar[str] = "random_erasing"
  stage: ClassVar[str] = VIEW
  probability: Fraction = 0.25
  # smallest and largest share of the area
  scale: Annotated[tuple[Area, ...], Items(only=(2,))] = (0.02, 1 / 3)
  # smallest and largest width / height
  ratio: Annotated[tuple[Aspect, ...], Items(only=(2,))] = (0.3, 1 / 0.3)

  def __call__(self, value: View, rng: np.random.Generator) -> View:
    """A view with a hidden box."""
    if rng.random() >= self.probability:
      return value
    for _ in range(_TRIES):
      height, width = _sides(rng, self.scale, self.ratio, 1.0)
      if height < 1 and width < 1:
        top, left = rng.random(2) * (1 - height, 1 - width)
        box = (float(top), float(left), height, width)
        return dataclasses.replace(value, blanks=(*value.blanks, box))
    return value

  def problem(self, stages: Sequence[tuple[str, ...]], size: int) -> str:
    """See `Transform`."""
    del stages, size
    return _order(scale=self.scale, ratio=self.ratio)
