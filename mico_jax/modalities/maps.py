"""Maps of one measured value per pixel: thermal pictures, X-rays.

A decoded map is float32 [T, Y, X]: a measured value in the record's unit, or a
share of the full range in [0, 1]; NaN is a pixel without a reading. What is
sent is the same in 16 bits, `ABSENT` where there is no reading. On the device a
map becomes three channels: its level in -1..1, and twice the same standardised
within the map, which shows what a level hides.

Integers of a unit with a full range are counts of it, floats are shares in
[0, 1]. Depth has rules of its own (`mico_jax.modalities.depth`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities import map_values
from mico_jax.modalities.arrays import as_maps
from mico_jax.modalities.augmentation import VIEW, Augmentation
from mico_jax.modalities.base import ArraySpec, DecodeError, Geometry, Mode
from mico_jax.modalities.map_values import ABSENT, resize_values
from mico_jax.modalities.placing import DRAWING
from mico_jax.modalities.spatial import (
  ArrayClip,
  Clip,
  Place,
  augmented_clip,
  crop_flip,
  squash,
)


@dataclasses.dataclass(frozen=True)
class Unit:
  """How values in a unit become those of the record.

  Attributes:
    factor: that they are multiplied by.
    offset: that is added then.
    full: integers of the full range, 2^bits - 1; 0: there is none.
    inverted: whether the largest value of the full range is dark.
    spread: whether the unit says nothing, so that each map is spread over its
      own range.
  """

  factor: float = 1.0
  offset: float = 0.0
  full: int = 0
  inverted: bool = False
  spread: bool = False

  @property
  def relative(self) -> bool:
    """Whether the values are shares of a range."""
    return self.spread or self.full > 0


@dataclasses.dataclass(frozen=True)
class Maps:
  """What a record says of its maps.

  Attributes:
    key: of the modality, for messages.
    units: by name; the first is that of examples.
    span: values of the level -1 and 1, of units that are not relative.
    limits: least and largest value that can be measured.
    reader: reads files that say their unit, None: it is none of those; else
      (values with NaN, unit, name of the unit).
  """

  key: str
  units: Mapping[str, Unit]
  span: tuple[float, float] = (0.0, 1.0)
  limits: tuple[float, float] = (0.0, 1.0)
  reader: Callable[[Any], tuple[np.ndarray, Unit, str] | None] | None = None

  def spec(self, unit: str) -> ArraySpec:
    """The array that is sent."""
    return ArraySpec(("T", "Y", "X"), "float16", unit, (ABSENT, self.limits[1]))

  def decode(self, raw: Any, geometry: Geometry) -> Clip:
    """Maps of a file, a Pillow image, an array, or a list of frames.

    Raises:
      DecodeError: for what cannot be read, has colours, has no unit, or cannot
        be in it.
    """
    if isinstance(raw, (list, tuple)):
      return self._frames(raw, geometry)
    told = self.reader(raw) if self.reader else None
    if told is not None:
      array, unit, name = told
      if geometry.unit not in ("", name):
        raise DecodeError(
          f"the file says {name!r}, but its source states {geometry.unit!r}; "
          "remove one."
        )
    else:
      if geometry.unit not in self.units:
        raise DecodeError(
          f"{self.key} without a unit ({geometry.unit!r}); write {self.key}:"
          f"UNIT:FILE, or set data.sources.*.units={{{self.key!r}: UNIT}}. "
          f"Known: {' | '.join(self.units)}."
        )
      unit = self.units[geometry.unit]
      array = map_values.read_map(raw, geometry, self.key)
    array = as_maps(array)
    if array.dtype.kind not in "iuf":
      raise DecodeError(f"{self.key} of {array.dtype}; expected numbers.")
    if array.dtype.kind == "f" and np.isinf(array).any():
      raise DecodeError(f"{self.key} holds infinite values.")
    if not np.isfinite(array).any():
      raise DecodeError(f"{self.key} without any reading.")
    x = self._values(array, unit, geometry.unit)
    return ArrayClip(x.astype(np.float32))

  def _frames(self, raw: Any, geometry: Geometry) -> Clip:
    """A list of single maps of one size."""
    if not raw:
      raise DecodeError(f"the list of {self.key} frames is empty.")
    clips = [self.decode(r, geometry) for r in raw]
    frames = [clip.take(range(len(clip))) for clip in clips]
    if len(shapes := {f.shape for f in frames}) > 1 or frames[0].shape[0] > 1:
      raise DecodeError(
        f"frames of a list must be single maps of one size, got "
        f"{sorted(shapes)}."
      )
    return ArrayClip(np.concatenate(frames))

  def _values(
    self, array: Shaped[np.ndarray, "T Y X"], unit: Unit, name: str
  ) -> Float[np.ndarray, "T Y X"]:
    """Values of the record; NaN: no reading."""
    x = array.astype(np.float64)
    if unit.spread:
      return np.stack([map_values.spread(frame) for frame in x])
    if unit.full:
      most = unit.full if array.dtype.kind in "iu" else 1
      if np.nanmin(x) < 0 or np.nanmax(x) > most:
        raise DecodeError(
          f"{self.key} of {array.dtype} from {np.nanmin(x):g} to "
          f"{np.nanmax(x):g}; {name or 'the file'} says 0 to {most}."
        )
      return 1 - x / most if unit.inverted else x / most
    if array.dtype == np.uint8:
      raise DecodeError(
        f"8-bit {self.key} in {name}; a picture's grey is no measured value: "
        f"state its unit, such as {self._relative()}."
      )
    x = x * unit.factor + unit.offset
    low, high = self.limits
    beyond = np.nanmin(x) < low or np.nanmax(x) > high
    if beyond or np.nanmin(x) > self.span[1]:
      raise DecodeError(
        f"{self.key} in {name} from {np.nanmin(array):.6g} to "
        f"{np.nanmax(array):.6g}, which is beyond what is measured; is that "
        f"the unit? Known: {' | '.join(self.units)}."
      )
    return x

  def _relative(self) -> str:
    return " or ".join(n for n, unit in self.units.items() if unit.relative)

  def example(self, geometry: Geometry, seed: int) -> Clip:
    """A warm blob that moves over a ramp, in the record's values."""
    size = geometry.size
    t, y, x = np.mgrid[0 : geometry.frames, 0:size, 0:size] / size
    moved = x - 0.3 - t - 0.05 * (seed % 5)
    blob = np.exp(-20 * (moved**2 + (y - 0.5) ** 2))
    shown = 0.2 + 0.2 * y + 0.5 * blob  # of the span
    unit = self.units.get(geometry.unit)
    low, high = (0.0, 1.0) if unit is None or unit.relative else self.span
    return ArrayClip((low + (high - low) * shown).astype(np.float32))

  def mode(
    self, name: str, place: Place, about: str, *, unit: str, eval_mode: str = ""
  ) -> Mode:
    """A mode for relative units, or for the others, as `unit` is one.

    Args:
      name: of the mode.
      place: crops and resizes.
      about: one line for tables.
      unit: of bare arrays of floats.
      eval_mode: deterministic mode for evaluation; "": itself.
    """
    relative, seen = self.units[unit].relative, place not in DRAWING
    low, high = (0.0, 1.0) if relative else self.span

    def host(
      clip: Clip,
      geometry: Geometry,
      rng: np.random.Generator | None = None,
      *,
      augment: Augmentation | None = None,
    ) -> Shaped[np.ndarray, "T Y X"]:
      said = self.units.get(geometry.unit)
      if said is not None and said.relative != relative:
        raise ValueError(
          f"{self.key} mode {name!r} does not fit a source in "
          f"{geometry.unit!r}; set data.inputs.{self.key}.mode."
        )
      frames, view = augmented_clip(
        *(
          clip,
          geometry,
          rng,
          place,
          resize_values,
          augment if seen else None,
        )
      )
      frames = view.hide(frames, np.nan)
      return np.where(np.isfinite(frames), frames, ABSENT).astype(np.float16)

    def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
      del geometry
      return map_values.channels_of(array, low, high, xp)

    recipe = {
      "kind": "map",
      "place": place.__name__,
      "resize": resize_values.__name__,
      "span": (low, high),
    }
    return Mode(
      *(name, host, to_pixels, eval_mode, about),
      recipe=recipe,
      unit=unit,
      stages=(VIEW,) * seen,
    )

  def placed(self, name: str, level: str, unit: str) -> tuple[Mode, Mode]:
    """Modes `name`, of whole maps, and `name`_crop_flip."""
    about = f"{level}, and standardised per map"
    return (
      self.mode(name, squash, about, unit=unit),
      self.mode(
        f"{name}_crop_flip", crop_flip, f"{about}; crop_flip", unit=unit
      ),
    )

  def by_kind(self, measured: str, relative: str) -> dict[str, str]:
    """Unit -> the mode that suits it."""
    return {
      name: relative if unit.relative else measured
      for name, unit in self.units.items()
    }
