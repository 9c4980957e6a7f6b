"""Spectra of pixels: bands with wavelengths, and the pixels around.

A decoded sample is float32 [side, side, bands] around its pixel, in the order
of the wavelengths; NaN is missing, and so is what lies beyond the edge. What is
sent is [T, slots, 3 side^2 + 1], a row for each band: values, the same
standardised over the sample, 1 where there is a value, and the wavelength in
micrometres. A token is a group of neighbouring bands.

Rules, since a number has one meaning only:

- Bands are named by their wavelengths in nm (`data.sources.*.channels`), as
  many and in the order of the arrays; all sources of a run name the same, and
  no other number of bands is read. A file that holds them must agree.
- Arrays have the bands last: [bands], or [Y, X, bands] around a pixel in the
  middle, so that Y and X are odd. More pixels than needed are left out, up to
  15 x 15; a larger array is a scene, which does not say which pixel is meant.
- Reflectance is linear, -1..1 for 0..1; counts and radiance have no scale that
  sensors share, so their logarithms are taken.

Where a config has no source of spectra, bands have no wavelengths, and tokens
no places.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities.base import (
  ArraySpec,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Mode,
)
from mico_jax.modalities.spatial import modes
from mico_jax.modalities.spectra_file import read_cube

# Unit -> what values are multiplied by, or largest value on a logarithmic scale
# from 0, and largest value that there can be.
LINEAR = {"reflectance": 1.0, "reflectance,10000": 1e-4}
LOGARITHMIC = {"counts": 65535.0, "W/m2/sr/um": 1000.0}
# Unit -> mode; units of one mode differ by a factor that decoding takes out.
NATIVE = {
  **dict.fromkeys(LINEAR, "linear"),
  "counts": "logarithmic",
  "W/m2/sr/um": "radiance",
}
_MODES = {
  "linear": "0..1 as -1..1",
  "logarithmic": "logarithms of counts of 16 bits as -1..1",
  "radiance": "logarithms of up to 1000 W/m2/sr/um as -1..1",
}
_MOST_SHARE = 2.0  # of light that is reflected, glints included
_SHORTEST, _LONGEST = 100.0, 20_000.0  # nm
_AGREE = 0.5  # nm
_LARGEST = 15  # pixels of a side of a patch, as `arrays.window` cuts it
_GAIN = 0.1  # of `jitter`
_MOST = 20.0  # deviations


def valid_groups(frames: Any, *, xp: Any, side: int, group: int) -> Any:
  """Groups with a value, bool [B, slots / group]."""
  del xp
  pixels = side * side
  there = frames[:, :, 2 * pixels : 3 * pixels] > 0.5
  batch, slots = frames.shape[:2]
  return there.reshape(batch, slots // group, group * pixels).any(axis=-1)


@dataclasses.dataclass(frozen=True)
class Spectra:
  """What a record says of its spectra.

  Attributes:
    key: of the modality, for messages.
    slots: most bands.
    group: neighbouring bands of a token; divides `slots`.
    side: pixels around the middle and itself, along a side; odd.
  """

  key: str
  slots: int = 256
  group: int = 4
  side: int = 7

  @property
  def spec(self) -> ArraySpec:
    """The array that is sent."""
    unit = "share or logarithm -1..1, deviations, flags, micrometres"
    return ArraySpec(("T", "S", "C"), "float16", unit, (-_MOST, _MOST))

  @property
  def stated(self) -> dict[str, Any]:
    """Fields of the record: what sources state of their spectra."""
    return {
      "units": (*LINEAR, *LOGARITHMIC),
      "native_modes": NATIVE,
      "named": True,
      "needs_channels": (*LINEAR, *LOGARITHMIC),
    }

  @property
  def embedding(self) -> CustomEmbedding:
    """Tokens of groups of bands, see `mico_jax.layers.band_embed`."""
    shape = {"side": self.side, "group": self.group}
    return CustomEmbedding(
      "mico_jax.layers.band_embed:BandEmbed",
      frame=(self.slots, 3 * self.side**2 + 1),
      tokens=self.slots // self.group,
      torch="mico_jax.interop.torch_template.band_embed:BandEmbed",
      options={"group": self.group},
      valid=functools.partial(valid_groups, **shape),
    )

  def wavelengths(self, geometry: Geometry) -> Float[np.ndarray, " L"]:
    """Those that are stated, in nm; none if nothing is.

    Raises:
      DecodeError: for names that are no wavelengths, and too many.
    """
    names = geometry.channels
    try:
      found = np.array([float(name) for name in names])
    except ValueError as error:
      raise DecodeError(
        f"bands of {self.key} are named by their wavelengths in nm: {error}."
      ) from error
    inside = (found >= _SHORTEST) & (found <= _LONGEST)
    if not inside.all():
      raise DecodeError(
        f"a wavelength of {found[~inside][0]:g} nm; expected {_SHORTEST:g} to "
        f"{_LONGEST:g} (micrometres times 1000)."
      )
    if len(found) > self.slots or len(np.unique(found)) < len(found):
      raise DecodeError(
        f"{len(found)} bands; expected at most {self.slots}, of different "
        "wavelengths."
      )
    return found

  def decode(self, raw: Any, geometry: Geometry) -> Float[np.ndarray, "Y X L"]:
    """A spectrum and those around it, by increasing wavelengths.

    Args:
      raw: content of a file, or an array [bands] or [Y, X, bands].
      geometry: with the unit and wavelengths that are stated.

    Raises:
      DecodeError: for what cannot be read, is not stated, or does not fit.
    """
    bands = self.wavelengths(geometry)
    cube, told = read_cube(raw)
    x = self._around(self._bands_last(cube, len(bands)))
    if told is not None and (
      told.shape != bands.shape or np.abs(told - bands).max() > _AGREE
    ):
      raise DecodeError(
        f"the file has {told.size} bands of {_span(told)}; stated are "
        f"{len(bands)} of {_span(bands)}."
      )
    if np.isinf(x).any():
      raise DecodeError("infinite values; a missing one is NaN.")
    if not np.isfinite(x).any():
      raise DecodeError(f"this {self.key} has no value, only gaps.")
    x = self._checked(x * LINEAR.get(geometry.unit, 1.0), geometry.unit)
    order = np.argsort(bands) if len(bands) else np.arange(x.shape[2])
    return x[..., order].astype(np.float32)

  def _bands_last(
    self, cube: Shaped[np.ndarray, "..."], count: int
  ) -> Float[np.ndarray, "Y X L"]:
    """Values [Y, X, bands], checked."""
    shape = list(cube.shape)
    if cube.dtype.kind not in "iuf" or cube.ndim not in (1, 3) or 0 in shape:
      raise DecodeError(
        f"a spectrum of {cube.dtype}, shape {shape}; expected numbers, [bands] "
        "or [Y, X, bands]."
      )
    if shape[-1] > self.slots or count not in (0, shape[-1]):
      raise DecodeError(
        f"{shape[-1]} bands, the last axis of {shape}; expected "
        f"{count or f'at most {self.slots}'}, as in training."
      )
    cube = cube.reshape(1, 1, -1) if cube.ndim == 1 else cube
    if any(n % 2 == 0 or n > _LARGEST for n in cube.shape[:2]):
      raise DecodeError(
        f"a patch of shape {shape}; expected a pixel in the middle, odd "
        f"numbers of rows and columns up to {_LARGEST} (in manifests: "
        "file.npz:name@ROW,COLUMN)."
      )
    return cube.astype(np.float64)

  def _around(
    self, cube: Float[np.ndarray, "Y X L"]
  ) -> Float[np.ndarray, "side side L"]:
    """The pixels around the middle; those that there are none of are NaN."""
    out = np.full((self.side, self.side, cube.shape[2]), np.nan)
    rows, columns = (
      np.arange(min(n, self.side)) - min(n, self.side) // 2
      for n in cube.shape[:2]
    )
    half = self.side // 2
    out[np.ix_(rows + half, columns + half)] = cube[
      np.ix_(rows + cube.shape[0] // 2, columns + cube.shape[1] // 2)
    ]
    return out

  def _checked(
    self, x: Float[np.ndarray, "Y X L"], unit: str
  ) -> Float[np.ndarray, "Y X L"]:
    """Values that can be in the unit.

    Raises:
      DecodeError: for others, and for an unknown unit.
    """
    known = (*LINEAR, *LOGARITHMIC)
    if unit not in known:
      raise DecodeError(
        f"{self.key} {f'in unit {unit!r}' if unit else 'without a unit'}; "
        f"state it in data.sources.*.units. Known: {' | '.join(known)}."
      )
    low, high = np.nanmin(x), np.nanmax(x)
    least = -_MOST_SHARE if unit in LINEAR else 0.0
    most = _MOST_SHARE if unit in LINEAR else LOGARITHMIC[unit]
    if low < least or high > most:
      raise DecodeError(
        f"values of {low:.4g} to {high:.4g} cannot be {unit}, {least:g} to "
        f"{most:g}; is that the unit?"
      )
    return x

  def example(
    self, geometry: Geometry, seed: int
  ) -> Float[np.ndarray, "Y X L"]:
    """A smooth spectrum and its neighbours, with the bands that are stated."""
    count = len(geometry.channels) or 30
    y, x, band = np.mgrid[: self.side, : self.side, :count]
    wave = np.sin(0.2 * (seed % 5 + 1) * band + 0.1 * y - 0.2 * x)
    return (0.4 + 0.3 * wave).astype(np.float32)

  def modes(self) -> dict[str, Mode]:
    """The modes that every spectrum has; each has units of one scale."""
    turned = "turned, mirrored and up to 10% brighter or darker"
    table = []
    for name, about in _MODES.items():
      units = tuple(unit for unit, mode in NATIVE.items() if mode == name)
      table += [
        self._mode(name, about, units),
        self._mode(
          f"{name}_jitter", f"{name}; {turned}", units, eval_mode=name
        ),
      ]
    return modes(*table)

  def _mode(
    self, name: str, about: str, units: tuple[str, ...], *, eval_mode: str = ""
  ) -> Mode:
    def host(
      x: Float[np.ndarray, "Y X L"],
      geometry: Geometry,
      rng: np.random.Generator | None = None,
    ) -> Shaped[np.ndarray, "T S C"]:
      if geometry.unit and geometry.unit not in units:
        raise DecodeError(
          f"mode {name!r} takes {' or '.join(units)}, not {geometry.unit}; "
          f"choose another in data.inputs.{self.key}.mode."
        )
      if eval_mode and rng is not None:
        x = np.rot90(x, int(rng.integers(4)))
        x = x[:: rng.choice([-1, 1])] * rng.uniform(1 - _GAIN, 1 + _GAIN)
      if units[0] in LINEAR:
        shown = 2 * x - 1
      else:
        most = LOGARITHMIC[units[0]]
        shown = 2 * np.log1p(np.clip(x, 0, None)) / math.log1p(most) - 1
      frame = self._frame(shown, self.wavelengths(geometry))
      return np.repeat(frame[None], geometry.frames, axis=0)

    def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
      del geometry
      return array.astype(xp.float32)

    return Mode(name, host, to_pixels, eval_mode, about, unit=units[0])

  def _frame(
    self, x: Float[np.ndarray, "Y X L"], bands: Float[np.ndarray, " N"]
  ) -> Float[np.ndarray, "S C"]:
    """Values, deviations, flags and wavelengths."""
    count, pixels = x.shape[2], self.side**2
    x = x.reshape(pixels, count).T.astype(np.float64)
    there = np.isfinite(x)
    mean = x[there].mean()
    deviation = x[there].std()
    shaped = (x - mean) / (deviation if deviation > 1e-6 else np.inf)
    out = np.zeros((self.slots, 3 * pixels + 1), np.float16)
    out[:count, :pixels] = np.where(there, np.clip(x, -_MOST, _MOST), 0)
    out[:count, pixels : 2 * pixels] = np.where(
      there, np.clip(shaped, -_MOST, _MOST), 0
    )
    out[:count, 2 * pixels : -1] = there
    if len(bands):
      out[:count, -1] = np.sort(bands) / 1000
    return out

  def draw(self, frame: Shaped[np.ndarray, "S C"]) -> np.ndarray:
    """A picture: a row for each pixel, wavelengths to the right."""
    pixels = self.side**2
    there = frame[:, 2 * pixels : 3 * pixels] > 0
    some = frame[:, :pixels][there.any(axis=1)][:, there.any(axis=0)]
    return some.T.astype(np.float32)


def _span(bands: Float[np.ndarray, "..."]) -> str:
  """First and last wavelength, for messages."""
  return f"{bands.min():g} to {bands.max():g} nm" if bands.size else "no nm"
