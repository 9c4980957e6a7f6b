"""Transforms of colours, by Pillow: one draw for all frames of a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from mico_jax.config.fields import Fraction, Range
from mico_jax.modalities.augmentation import COLOR, VIEW, Transform

Frames = UInt8[np.ndarray, "T Y X 3"]
_GREY = (128, 128, 128)  # where a moved picture leaves nothing


def _each(frames: Frames, change: Callable[[Any], Any]) -> Frames:
  """Frames, each changed as a Pillow image."""
  images = [change(Image.fromarray(frame)) for frame in frames]
  return np.stack([np.asarray(image) for image in images])


def _turned(image: Any, shift: float) -> Any:
  """An image whose hue is turned by a share of the circle."""
  steps = round(shift * 255) % 256
  if not steps:
    return image
  hue, *rest = image.convert("HSV").split()
  hue = hue.point([(i + steps) % 256 for i in range(256)])
  return Image.merge("HSV", (hue, *rest)).convert("RGB")


@dataclasses.dataclass(frozen=True)
class ColorJitter(Transform):
  """Brightness, contrast, saturation and hue in a random order, and grey.

  Factors are uniform in [1 - x, 1 + x]. Source: torchvision's transform of this
  name; open_clip has `probability` and `grayscale` too.
  """

  name: ClassVar[str] = "color_jitter"
  stage: ClassVar[str] = COLOR
  brightness: Fraction = 0.4
  contrast: Fraction = 0.4
  saturation: Fraction = 0.4
  # largest turn, as a share of the circle
  hue: Annotated[float, Range(0.0, 0.5)] = 0.0
  probability: Fraction = 1.0
  # probability of a picture without colours
  grayscale: Fraction = 0.0

  def __call__(self, value: Frames, rng: np.random.Generator) -> Frames:
    """Frames in other colours."""
    applied, grey = rng.random(2)
    order = rng.permutation(4)
    factors = rng.uniform(-1, 1, 4)
    steps: list[Callable[[Any], Any]] = []
    kinds: tuple[tuple[float, Any], ...] = (
      (self.brightness, ImageEnhance.Brightness),
      (self.contrast, ImageEnhance.Contrast),
      (self.saturation, ImageEnhance.Color),
    )
    for i in order.tolist() if applied < self.probability else ():
      factor = float(factors[i])
      if i < 3 and kinds[i][0]:
        most, kind = kinds[i]
        steps.append(lambda x, k=kind, f=1 + most * factor: k(x).enhance(f))
      elif i == 3 and self.hue:
        steps.append(lambda x, f=self.hue * factor: _turned(x, f))
    if grey < self.grayscale:
      steps.append(lambda x: x.convert("L").convert("RGB"))

    def change(image: Any) -> Any:
      for step in steps:
        image = step(image)
      return image

    return _each(value, change) if steps else value


def _moved(image: Any, *matrix: float) -> Any:
  """An image whose (x, y) shows what was at a x + b y + c, d x + e y + f."""
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    matrix,
    resample=Image.Resampling.BILINEAR,
    fillcolor=_GREY,
  )


def _enhanced(kind: Any) -> Callable[[Any, float], Any]:
  return lambda x, m: kind(x).enhance(1 + 0.9 * m)


# Name -> (image, magnitude) -> image. Magnitudes are in [-1, 1] for `SIGNED`
# operations, else in [0, 1]; 0 changes nothing.
OPERATIONS: Mapping[str, Callable[[Any, float], Any]] = {
  "brightness": _enhanced(ImageEnhance.Brightness),
  "color": _enhanced(ImageEnhance.Color),
  "contrast": _enhanced(ImageEnhance.Contrast),
  "sharpness": _enhanced(ImageEnhance.Sharpness),
  "posterize": lambda x, m: ImageOps.posterize(x, 8 - round(4 * m)),
  "solarize": lambda x, m: ImageOps.solarize(x, round(256 * (1 - m))),
  "shear_x": lambda x, m: _moved(x, 1, 0.3 * m, 0, 0, 1, 0),
  "shear_y": lambda x, m: _moved(x, 1, 0, 0, 0.3 * m, 1, 0),
  "translate_x": lambda x, m: _moved(x, 1, 0, 150 / 331 * m * x.width, 0, 1, 0),
  "translate_y": lambda x, m: _moved(
    x, 1, 0, 0, 0, 1, 150 / 331 * m * x.height
  ),
  "rotate": lambda x, m: x.rotate(
    30 * m, resample=Image.Resampling.BILINEAR, fillcolor=_GREY
  ),
}
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
SIGNED = ("brightness", "color", "contrast", "sharpness", *GEOMETRIC)
# Operations without a magnitude.
PLAIN: Mapping[str, Callable[[Any], Any]] = {
  "identity": lambda x: x,
  "autocontrast": ImageOps.autocontrast,
  "equalize": ImageOps.equalize,
}


@dataclasses.dataclass(frozen=True)
class RandAugment(Transform):
  """A few operations, drawn from fourteen, at one magnitude.

  Source: arXiv:1909.13719, with torchvision's operations and ranges.
  """

  name: ClassVar[str] = "rand_augment"
  stage: ClassVar[str] = COLOR
  # operations of a sample, drawn with replacement
  num_ops: Annotated[int, Range(1, 14)] = 2
  # of 30
  magnitude: Annotated[float, Range(0.0, 30.0)] = 9.0
  # Whether shearing, moving and turning are among them; not beside depth or
  # normals, which would stay in place.
  geometric: bool = True

  def __call__(self, value: Frames, rng: np.random.Generator) -> Frames:
    """Changed frames."""
    names = [
      name
      for name in (*PLAIN, *OPERATIONS)
      if self.geometric or name not in GEOMETRIC
    ]
    strength = self.magnitude / 30
    for _ in range(self.num_ops):
      name, sign = names[int(rng.integers(len(names)))], rng.random()
      if name in PLAIN:
        value = _each(value, PLAIN[name])
        continue
      m = -strength if name in SIGNED and sign < 0.5 else strength
      value = _each(value, lambda x, op=OPERATIONS[name], m=m: op(x, m))
    return value

  def problem(self, stages: Sequence[tuple[str, ...]], size: int) -> str:
    """See `Transform`."""
    del size
    fixed = any(VIEW in of and COLOR not in of for of in stages)
    if self.geometric and fixed:
      return (
        "its geometric operations would move the colours against the maps "
        "beside them (depth, normals); set geometric=False."
      )
    return ""
