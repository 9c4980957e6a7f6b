"""Global temperature: 3,850 stations, hourly, 2019 and 2020, in Celsius.

The official task is to forecast the next 24 hours of all stations from the 48
before. Here each station is a series of its own: what others measure, and where
they stand, is not read. Published numbers are of windows that begin at every
hour; here they begin at every 24th (`every`), since a window is a line of the
manifest. Errors are in Celsius, not standardised, as published: their squares
average about 7.7.

The three parts follow each other, from 2019-01-01 00:00 on.

Source: Wu et al., Corrformer, Nature Machine Intelligence 5, 2023.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Shaped

from mico_jax.config.fields import Range
from mico_jax.data.build.sets.base import Copy, OfficialSet

CONTEXT, HORIZON = 48, 24  # hours
COLUMN = "temperature"
_START = np.datetime64("2019-01-01T00:00")
_PARTS = ("train", "val", "test")
_LIMITS = (-100.0, 70.0)  # Celsius, of any place on Earth


@dataclasses.dataclass(frozen=True)
class GlobalTemperature(OfficialSet):
  """Windows of the temperature of stations."""

  every: Annotated[int, Range(1, 10_000, "hours")] = 24

  title: ClassVar = "Global temperature, 48 hours to the next 24"
  source: ClassVar = "https://github.com/thuml/Corrformer"
  layout: ClassVar = tuple(
    f"temp_global_hourly_{part}.npy   [hours, stations, 1], Celsius"
    for part in _PARTS
  )
  steps: ClassVar = ("download global_temp as the page of the source tells",)
  note: ClassVar = (
    "each station by itself; windows at every 24th hour (--set "
    "global_temperature.every=1: all); MSE and MAE, as 7.834 is called an MAE "
    "beside an MSE of others"
  )

  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """See `OfficialSet`; a .csv of each station is written."""
    parts = [self._part(copy, part) for part in _PARTS]
    stations = {x.shape[1] for x in parts}
    if len(stations) > 1:
      raise copy.wrong(f"parts of {sorted(stations)} stations.")
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    starts = [
      (part, first)
      for part, begin, end in zip(_PARTS, ends, ends[1:], strict=False)
      for first in range(begin, end - CONTEXT - HORIZON + 1, self.every)
    ]
    (count,) = stations
    copy.total = count * len(starts)
    hours = _START + 60 * np.arange(ends[-1])  # in minutes
    dates = np.datetime_as_string(hours).tolist()
    for station in range(count):
      name = f"stations/{station:05d}.csv"
      series = np.concatenate([x[:, station] for x in parts]).tolist()
      with open(copy.place(name), "w", encoding="utf-8") as file:
        file.write(f"date,{COLUMN}\n")
        for date, value in zip(dates, series, strict=True):
          file.write(f"{date},{value:.7g}\n")  # "nan" is a missing value
      for part, first in starts:
        rows = f"{name}:rows[{first}:{first + CONTEXT + HORIZON}]"
        yield {
          "id": f"{station}/{first}",
          "split": part,
          "timeseries": rows,
          "station": station,
        }

  def _part(self, copy: Copy, part: str) -> Shaped[np.ndarray, "T N"]:
    """The temperatures of a part."""
    name = f"temp_global_hourly_{part}.npy"
    try:
      array = np.load(copy.index(name), allow_pickle=False)
    except (ValueError, OSError) as error:
      raise copy.wrong(f"{name} is not readable: {error}.") from error
    if array.ndim != 3 or array.shape[2] != 1 or array.dtype.kind != "f":
      raise copy.wrong(f"{name} is {array.dtype} {list(array.shape)}.")
    if len(array) < CONTEXT + HORIZON:
      raise copy.wrong(f"{name} has {len(array)} hours, less than a window.")
    low, high = np.nanmin(array), np.nanmax(array)
    if low < _LIMITS[0] or high > _LIMITS[1]:
      raise copy.wrong(f"{name} goes from {low:g} to {high:g}: not Celsius.")
    return array[..., 0]
