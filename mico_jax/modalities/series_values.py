"""Steps of decoding a series: shape, names, times, rate, dates, deviations."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from mico_jax.modalities.base import DecodeError

CALENDAR = 6  # columns: sine and cosine of the time of day, week and year
_SLOWEST, _FASTEST = 1 / 64, 1000  # a rate, in those it is resampled to
_DENOMINATOR = 1000  # of the ratio of two rates, which is exact to 0.1%
_JITTER = 0.25  # of the usual step, by which times may be off
_SAME_RATE = 1e-3  # relative difference of rates that agree
_FLAT = 1e-6  # deviation of a constant channel, in its largest value


def checked(values: Shaped[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Values as float64; NaN is a missing one.

  Raises:
    DecodeError: for no values, infinite ones, and those that are no numbers.
  """
  if values.dtype.kind not in "iuf":
    raise DecodeError(f"a series of {values.dtype}; expected numbers.")
  if values.ndim not in (1, 2) or 0 in values.shape:
    raise DecodeError(
      f"a series of shape {list(values.shape)}; expected [samples, channels]."
    )
  x = values.astype(np.float64)
  if np.isinf(x).any():
    raise DecodeError("a series with infinite values; a missing one is NaN.")
  return x


def agreed_names(
  read: tuple[str, ...], said: tuple[str, ...], key: str
) -> tuple[str, ...]:
  """Names of the channels that are read, in their order; (): unknown.

  Args:
    read: names of all columns, in the file.
    said: of those that are to be read; without `read`, of all.
    key: of the modality.

  Raises:
    DecodeError: if a column is missing.
  """
  if read and said and (missing := [n for n in said if n not in read]):
    raise DecodeError(
      f"this {key} has no column {', '.join(missing)[:80]}; it has "
      f"{', '.join(read)[:200]}."
    )
  return said or read


def upright(
  x: Float[np.ndarray, "..."], known: int
) -> Float[np.ndarray, "S C"]:
  """A series as [samples, channels].

  Args:
    x: [samples], [samples, channels] or, if the number of channels is known and
      no other axis has it, [channels, samples].
    known: number of channels; 0: unknown.

  Raises:
    DecodeError: for another number of channels.
  """
  if x.ndim == 1:
    x = x[:, None]
  elif known > 1 and x.shape[0] == known == x.shape[1]:
    raise DecodeError(
      f"a series of shape {list(x.shape)} may be [samples, channels] or "
      "[channels, samples]; give more samples."
    )
  elif known and x.shape[0] == known:
    x = x.T
  if known and x.shape[1] != known:
    raise DecodeError(
      f"a series of shape {list(x.shape)}; expected {known} channels, "
      f"[samples, {known}]. If it has others, state their names (channels)."
    )
  return x


def on_a_grid(
  x: Float[np.ndarray, "S C"], times: Float[np.ndarray, " S"] | None
) -> tuple[Float[np.ndarray, "R C"], Float[np.ndarray, " R"] | None]:
  """Samples at regular times, NaN where rows are missing, and those times.

  Raises:
    DecodeError: for times that do not increase, or have no regular step.
  """
  if times is None:
    return x, None
  if times.shape != (len(x),) or not np.isfinite(times).all():
    raise DecodeError(f"{times.size} times for {len(x)} samples, or NaN ones.")
  if len(x) < 2:
    return x, times
  steps = np.diff(times)
  usual = float(np.median(steps))
  if steps.min() <= 0:
    at = int(np.argmin(steps)) + 1
    raise DecodeError(f"times must increase; sample {at} does not.")
  count = np.rint(steps / usual)
  off = np.abs(steps / usual - count)
  if off.max() > _JITTER:
    at = int(np.argmax(off)) + 1
    raise DecodeError(
      f"times have no regular step: {usual:.6g} s is usual, but sample {at} "
      f"comes after {steps[at - 1]:.6g} s; resample the series before use."
    )
  places = np.concatenate([[0], np.cumsum(np.maximum(count, 1))]).astype(int)
  rows = places[-1] + 1
  if rows > 64 * len(x):
    raise DecodeError(f"{rows - len(x)} of {rows} samples are missing.")
  out = np.full((rows, x.shape[1]), np.nan)
  out[places] = x
  # The mean step: that of the median would drift.
  step = (times[-1] - times[0]) / places[-1]
  return out, times[0] + step * np.arange(rows)


def agreed_rate(
  read: float, said: float, times: Float[np.ndarray, " S"] | None
) -> float:
  """The rate in Hz; 0: nobody says it.

  Raises:
    DecodeError: if file, times and source do not agree.
  """
  rates = {"the file": read, "the source": said}
  if times is not None and len(times) > 1:
    rates["its times"] = (len(times) - 1) / (times[-1] - times[0])
  told = {name: rate for name, rate in rates.items() if rate}
  if not told:
    return 0.0
  if max(told.values()) > min(told.values()) * (1 + _SAME_RATE):
    text = ", ".join(f"{rate:.6g} Hz by {n}" for n, rate in told.items())
    raise DecodeError(f"rates that differ: {text}.")
  return next(iter(told.values()))


def resampled(
  x: Float[np.ndarray, "S C"], source: float, target: float
) -> Float[np.ndarray, "R C"]:
  """A series at another rate, with its gaps.

  Raises:
    DecodeError: if the rates are too far apart.
  """
  if not _SLOWEST <= source / target <= _FASTEST:
    raise DecodeError(
      f"a rate of {source:g} Hz; expected {target * _SLOWEST:g} to "
      f"{target * _FASTEST:g} Hz, which is resampled to {target:g} Hz."
    )
  ratio = Fraction(target / source).limit_denominator(_DENOMINATOR)
  up, down = ratio.numerator, ratio.denominator
  if up == down or len(x) < 2:
    return x
  from scipy.signal import resample_poly

  there = np.isfinite(x)
  at = np.arange(len(x))
  whole = np.zeros_like(x)  # gaps are bridged for the filter alone
  for c in np.flatnonzero(there.any(axis=0)):
    whole[:, c] = np.interp(at, at[there[:, c]], x[there[:, c], c])
  out = resample_poly(whole, up, down, axis=0, padtype="line")
  moments = np.arange(len(out)) * down / up
  reach = max(down / up, 1) / 2 - 0.5
  low = np.clip(np.floor(moments - reach), 0, len(x) - 1).astype(int)
  high = np.clip(np.ceil(moments + reach), 0, len(x) - 1).astype(int)
  total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(there, axis=0)])
  full = total[high + 1] - total[low] == (high + 1 - low)[:, None]
  return np.where(full, out, np.nan)


def standardised(x: Float[np.ndarray, "S C"]) -> Float[np.ndarray, "S C"]:
  """Each channel minus its mean, in its deviations; a constant one is 0."""
  x = x.astype(np.float64)
  there = np.isfinite(x)
  count = np.maximum(there.sum(axis=0), 1)
  mean = np.where(there, x, 0).sum(axis=0) / count
  moved = np.where(there, x - mean, 0)
  deviation = np.sqrt((moved**2).sum(axis=0) / count)
  most = np.abs(np.where(there, x, 0)).max(axis=0)
  flat = deviation <= _FLAT * most
  shaped = np.where(flat, 0, moved / np.where(flat, 1, deviation))
  return np.where(there, shaped, np.nan).astype(np.float32)


def calendar(
  times: Float[np.ndarray, " S"] | None, count: int
) -> Float[np.ndarray, "S 6"]:
  """Sine and cosine of the time of day, of the week and of the year.

  Args:
    times: in s since 1970, of the clock; None: unknown, so all are NaN.
    count: of samples.
  """
  if times is None:
    return np.full((count, CALENDAR), np.nan)
  days = times / 86400
  moments = np.floor(times).astype("datetime64[s]")
  start = moments.astype("datetime64[Y]").astype("datetime64[s]")
  year = (moments - start).astype(np.float64) / (365.25 * 86400)
  # The first day of 1970 was a Thursday; weeks begin on Mondays.
  phases = 2 * np.pi * np.stack([days % 1, (days + 3) % 7 / 7, year], axis=1)
  return np.concatenate([np.sin(phases), np.cos(phases)], axis=1)


def valid_tokens(
  frames: Any, *, xp: Any, columns: int, channels: int, window: int
) -> Bool[Any, "B L"]:
  """Tokens with a value of any channel; dates alone are none.

  Args:
    frames: [B, length, 2 columns], values and flags.
    xp: `numpy` or `jax.numpy`.
    columns: channels and columns of the calendar.
    channels: the first of the columns.
    window: samples of a token.
  """
  del xp
  there = frames[..., columns : columns + channels] > 0.5
  batch, length = frames.shape[:2]
  return there.reshape(batch, length // window, window * channels).any(axis=-1)
