"""Series of sensors: channels over time, in frames of windows, gaps masked.

A decoded series is float32 [samples, columns] in the unit, rate and order of
channels of its record; NaN is a missing value, and so is a channel that was not
measured. Channels are standardised over the whole recording. What is sent is
[T, length, 2 columns]: values, 0 where missing, and flags, 1 where there is a
value. A token is a window of time; it is valid if any value in it is there.

Rules, since a shape or number has one meaning only:

- Unit, rate and names of channels come from the file or are stated by the
  source; if both say them, they must agree. What a record needs and nobody says
  is refused.
- Arrays are [samples, channels]; [channels, samples] is read where the number
  of channels is known and only the first axis has it. [samples] is one channel.
- Without names, the channels are all of the record's, in its order. Where a
  record names none, the source says which named columns are read; arrays have
  theirs in their order.
- Other rates are resampled by a polyphase filter (`scipy.signal`); a sample of
  which the filter's centre lies at a gap is a gap.
- Times must be regular; rows that are missing are a gap.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities import series_values
from mico_jax.modalities.base import (
  ArraySpec,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Mode,
)
from mico_jax.modalities.sampling import choose_slices
from mico_jax.modalities.series_file import read_columns
from mico_jax.modalities.spatial import modes

MOST = 20.0  # deviations; standardised values beyond are clipped
RANGE = 256.0  # of values that are sent in 16 bits
_GAIN, _SHIFT = 0.1, 0.125  # of `jitter`: of the values, of a frame
TORCH = "mico_jax.interop.torch_template.series_embed:SeriesEmbed"


@dataclasses.dataclass(frozen=True)
class Series:
  """What a record says of its series.

  Attributes:
    key: of the modality, for messages.
    slots: channels of a frame.
    length: samples of a frame.
    window: samples of a token; divides `length`.
    names: of the channels, as many as `slots`; (): those that a source names.
    aliases: other names of channels, in lower case.
    rate: in Hz, to which series are resampled; 0: any is taken as it is.
    units: unit -> what its values are multiplied by, one number or one for each
      channel; {}: there is no unit.
    unit_names: other names of units, in files.
    limits: largest magnitude of each channel in the unit of factor 1; (): any.
    scale: of each channel in mode `plain`; (): 1.
    calendar: whether dates become columns, see `series_values.calendar`.
  """

  key: str
  slots: int
  length: int
  window: int
  names: tuple[str, ...] = ()
  aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
  rate: float = 0.0
  units: Mapping[str, float | tuple[float, ...]] = dataclasses.field(
    default_factory=dict
  )
  unit_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
  limits: tuple[float, ...] = ()
  scale: tuple[float, ...] = ()
  calendar: bool = False

  @property
  def columns(self) -> int:
    """Channels, and columns of the calendar."""
    return self.slots + (series_values.CALENDAR if self.calendar else 0)

  def spec(self, unit: str) -> ArraySpec:
    """The array that is sent."""
    return ArraySpec(("T", "S", "C"), "float16", unit, (-RANGE, RANGE))

  @property
  def stated(self) -> dict[str, Any]:
    """Fields of the record: what sources state of their series."""
    return {
      "units": tuple(self.units),
      "unit_names": self.unit_names,
      "rate": self.rate,
      "channels": self.names,
      "named": True,
      "in_file": True,
      "rated": True,
    }

  @property
  def embedding(self) -> CustomEmbedding:
    """Tokens of windows, see `mico_jax.layers.series_embed`."""
    shape = {"columns": self.columns, "window": self.window}
    return CustomEmbedding(
      "mico_jax.layers.series_embed:SeriesEmbed",
      frame=(self.length, 2 * self.columns),
      tokens=self.length // self.window,
      torch=TORCH,
      options={**shape, "channels": self.slots},
      valid=functools.partial(
        series_values.valid_tokens, **shape, channels=self.slots
      ),
    )

  def decode(self, raw: Any, geometry: Geometry) -> Float[np.ndarray, "S C"]:
    """A series in the record's unit, rate and order of channels.

    Args:
      raw: content of a file, an array, or (array, rate in Hz).
      geometry: with what is stated of it.

    Raises:
      DecodeError: for what cannot be read, is not stated, or does not fit.
    """
    read = read_columns(raw)
    x = series_values.checked(read.values)
    names = series_values.agreed_names(
      read.channels, geometry.channels, self.key
    )
    if read.channels and not (geometry.channels or self.names):
      raise DecodeError(
        f"columns {', '.join(read.channels)[:200]}; state which of them are "
        f"read, in their order: {self.key}:@@NAME,NAME:FILE, or "
        f"data.sources.*.channels={{{self.key!r}: 'NAME,NAME'}}."
      )
    known = len(read.channels or geometry.channels or self.names)
    x = series_values.upright(x, known)
    if read.channels:
      x = x[:, [read.channels.index(name) for name in names]]
    if x.shape[1] > self.slots:
      raise DecodeError(
        f"a series of shape {list(x.shape)}; expected [samples, channels] with "
        f"at most {self.slots} channels: name those to read (channels)."
      )
    x, times = series_values.on_a_grid(x, read.times)
    x = self._placed(x, names) * self._factor(read.unit, geometry.unit)
    self._check_limits(x)
    rate = series_values.agreed_rate(read.rate, geometry.rate, times)
    if self.rate:
      if not rate:
        raise DecodeError(
          f"{self.key} without a rate; state it in Hz: {self.key}:UNIT@RATE:"
          f"FILE, or data.sources.*.rates={{{self.key!r}: HZ}}."
        )
      x = series_values.resampled(x, rate, self.rate)
    if len(x) < self.window:
      at = f" at {self.rate:g} Hz" if self.rate else ""
      raise DecodeError(
        f"a series of {len(x)} samples{at} is too short; a token needs "
        f"{self.window}."
      )
    if not np.isfinite(x).any():
      raise DecodeError("the series has no value, only gaps.")
    if self.calendar:
      dates = times if read.dated else None
      x = np.concatenate([x, series_values.calendar(dates, len(x))], axis=1)
    return x.astype(np.float32)

  def _placed(
    self, x: Float[np.ndarray, "S c"], names: tuple[str, ...]
  ) -> Float[np.ndarray, "S C"]:
    """Channels at the places that the record has for them."""
    places = list(range(x.shape[1]))
    if self.names:
      known = {name.lower(): i for i, name in enumerate(self.names)}
      known |= {other: known[n.lower()] for other, n in self.aliases.items()}
      found = [known.get(self._plain(name)) for name in names]
      if unknown := [n for n, i in zip(names, found, strict=True) if i is None]:
        raise DecodeError(
          f"{self.key} has no channel {', '.join(unknown)[:80]}; known: "
          f"{', '.join(self.names)}. State which columns are read (channels)."
        )
      places = [i for i in found if i is not None] or places
      if len(set(places)) < len(places):
        raise DecodeError(f"a channel is there twice: {', '.join(names)}.")
    out = np.full((len(x), self.slots), np.nan)
    out[:, places] = x
    return out

  def _plain(self, name: str) -> str:
    """A name without the kind of signal that EDF labels begin with."""
    name = name.strip().lower()
    return name.removeprefix("ecg ").removeprefix("eeg ").strip()

  def _factor(self, read: str, said: str) -> Float[np.ndarray, " C"]:
    """What values are multiplied by."""
    if not self.units:
      return np.ones(self.slots)
    unit = self.unit_names.get(read, read)
    if unit and said and unit != said:
      raise DecodeError(
        f"the file is in {unit!r}, but its source states {said!r}; remove one."
      )
    unit = unit or said
    if unit not in self.units:
      state = f"write {self.key}:UNIT@RATE:FILE, or state it in "
      raise DecodeError(
        f"{self.key} {f'in unit {unit!r}' if unit else 'without a unit'}; "
        f"{state}data.sources.*.units. Known: {' | '.join(self.units)}."
      )
    factor = np.asarray(self.units[unit], np.float64)
    return np.broadcast_to(factor, (self.slots,))

  def _check_limits(self, x: Float[np.ndarray, "S C"]) -> None:
    """Raises DecodeError for values that cannot be in the stated unit."""
    if not self.limits:
      return
    most = np.max(np.abs(np.nan_to_num(x)), axis=0)
    beyond = np.flatnonzero(most > np.asarray(self.limits))
    if len(beyond):
      i = int(beyond[0])
      raise DecodeError(
        f"{self.names[i]} reaches {most[i]:.4g}, beyond {self.limits[i]:g} "
        f"({next(iter(self.units))}); is the stated unit right?"
      )

  def example(self, geometry: Geometry, seed: int) -> Float[np.ndarray, "S C"]:
    """Waves of several frequencies, shorter than the frames."""
    count = len(geometry.channels)  # those of the source; 0: all
    time = np.arange(geometry.frames * self.length - self.length // 3)[:, None]
    pitch = 0.02 * (seed % 7 + 1) * np.arange(1, (count or self.slots) + 1)
    return (0.7 * np.sin(pitch * time + seed) + 0.1).astype(np.float32)

  def draw(self, frame: Shaped[np.ndarray, "L D"]) -> np.ndarray:
    """A picture: a row for each channel, time to the right."""
    there = frame[:, self.columns : self.columns + self.slots] > 0
    values = np.where(there, frame[:, : self.slots], 0)
    if not there.any():
      return values.T
    end = np.flatnonzero(there.any(axis=1))[-1] + 1  # the rest is padding
    return values[:end, there.any(axis=0)].T

  def modes(self, *own: Mode, plain: str) -> dict[str, Mode]:
    """The modes that every series has.

    Args:
      own: further modes.
      plain: what `plain` sends, one line; "": there is no `plain`.
    """
    unit = next(iter(self.units), "")
    mode = functools.partial(self._mode, unit=unit)
    shaped = f"each channel standardised, up to {MOST:g} deviations"
    varied = "after a shift by up to 1/8 of a frame and a gain of up to 10%"
    table = [
      mode("standardised", shaped, standardise=True),
      mode(
        *("standardised_jitter", f"standardised {varied}"),
        standardise=True,
        eval_mode="standardised",
      ),
    ]
    if plain:
      table = [
        mode("plain", plain),
        mode("jitter", f"plain {varied}", eval_mode="plain"),
        *table,
      ]
    return modes(*table, *own)

  def _mode(
    self,
    name: str,
    about: str,
    *,
    unit: str,
    standardise: bool = False,
    eval_mode: str = "",
  ) -> Mode:
    def host(
      x: Float[np.ndarray, "S C"],
      geometry: Geometry,
      rng: np.random.Generator | None = None,
    ) -> Shaped[np.ndarray, "T L D"]:
      x = self._scaled(x, standardise=standardise)
      if eval_mode and rng is not None:
        x[:, : self.slots] *= rng.uniform(1 - _GAIN, 1 + _GAIN)
        reach = int(_SHIFT * self.length)
        shift = int(rng.integers(-reach, reach + 1))
        if shift > 0:
          x = np.pad(x, ((shift, 0), (0, 0)), constant_values=np.nan)
        elif len(x) + shift >= self.window:
          x = x[-shift:]
      return self._frames(x, geometry, rng)

    def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
      del geometry
      return array.astype(xp.float32)

    return Mode(
      name, host, to_pixels, eval_mode, about, unit=unit, whole=standardise
    )

  def _scaled(
    self, x: Float[np.ndarray, "S c"], *, standardise: bool
  ) -> Float[np.ndarray, "S C"]:
    """All columns of the frames; the calendar stays as it is."""
    more = self.columns - x.shape[1]
    x = np.pad(x, ((0, 0), (0, more)), constant_values=np.nan).astype("f4")
    if standardise:
      shaped = series_values.standardised(x[:, : self.slots])
      x[:, : self.slots] = np.clip(shaped, -MOST, MOST)
    elif self.scale:
      x[:, : self.slots] *= np.asarray(self.scale, np.float32)
    return x

  def _frames(
    self,
    x: Float[np.ndarray, "S C"],
    geometry: Geometry,
    rng: np.random.Generator | None,
  ) -> Shaped[np.ndarray, "T L D"]:
    """T frames of values and flags."""
    count = -(-len(x) // self.length)
    padding = ((0, count * self.length - len(x)), (0, 0))
    x = np.pad(x, padding, constant_values=np.nan)
    chosen = choose_slices(count, geometry, rng)
    frames = x.reshape(count, self.length, self.columns)[chosen]
    there = np.isfinite(frames)
    values = np.where(there, np.clip(frames, -RANGE, RANGE), 0)
    return np.concatenate([values, there], axis=-1).astype(np.float16)
