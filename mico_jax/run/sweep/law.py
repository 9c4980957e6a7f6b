"""Power laws: fitted on the small sizes, they must predict the largest.

    error(x) = E + A * x**-alpha        A > 0, alpha >= 0, 0 <= E < 1

x is a size (samples, parameters) and the error one minus the average of the
measured shares. E is fitted from four small sizes on; below that it is 0, as
three numbers would fit anything. The law is fitted anew to each draw of the
measurements, which gives the intervals of its numbers and of what it predicts;
the prediction holds if its interval has the measured value of the largest.

Source: scaling laws of CLIP models compared by fits on small scales,
arXiv:2506.04598.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mico_jax.run.sweep.draws import interval

FLOOR_FROM = 4  # small sizes from which on E is fitted
_MAX_ALPHA = 5.0


class Law(NamedTuple):
  """error(x) = floor + factor * (x / unit)**-alpha.

  Attributes:
    floor: E.
    factor: A in units of `unit`**alpha: the error above E of the smallest x.
    alpha: exponent.
    unit: the smallest x.
  """

  floor: float
  factor: float
  alpha: float
  unit: float

  def error(self, x: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """The error at sizes x."""
    return self.floor + self.factor * (x / self.unit) ** -self.alpha


class Fit(NamedTuple):
  """A law and how well it is known.

  Attributes:
    law: fitted to the means.
    alpha: 95% interval of its exponent.
    floor: 95% interval of E; None: not fitted.
    at: the size that it predicts, the largest.
    predicted: error there.
    interval: 95% interval of that prediction.
    measured: error there as it was measured.
    holds: whether `interval` has `measured`.
    draws: the law of each draw.
  """

  law: Law
  alpha: tuple[float, float]
  floor: tuple[float, float] | None
  at: float
  predicted: float
  interval: tuple[float, float]
  measured: float
  holds: bool
  draws: list[Law]


def fit_law(
  x: Float[np.ndarray, " P"],
  error: Float[np.ndarray, " P"],
  *,
  floor: bool,
  near: Law | None = None,
) -> Law:
  """The law of least squares.

  Args:
    x: sizes above 0, two or more that differ; three or more with `floor`.
    error: at each, above 0.
    floor: whether E is fitted; False: it is 0.
    near: a law to start from; None: from several.

  Raises:
    ValueError: for too few sizes, or sizes that are not positive.
  """
  from scipy.optimize import least_squares  # slow to import

  need = 3 if floor else 2
  if len(np.unique(x)) < need or (x <= 0).any():
    raise ValueError(
      f"sizes {x.tolist()}: a power law needs {need} different ones above 0."
    )
  unit = float(x.min())
  log_x = np.log(x / unit)
  bounds = ([-1e-9, -20.0, 0.0], [1.0, 5.0, _MAX_ALPHA])
  starts = _starts(log_x, error, floor)
  if near is not None:
    starts = [[near.floor, float(np.log(near.factor)), near.alpha]]
  residuals = lambda p: p[0] * floor + np.exp(p[1] - p[2] * log_x) - error
  found = [
    least_squares(
      residuals,
      np.clip(start, *np.add(bounds, [[1e-9], [-1e-9]])),
      bounds=bounds,
    )
    for start in starts
  ]
  best = min(found, key=lambda result: result.cost).x
  return Law(
    float(max(best[0], 0.0)) if floor else 0.0,
    float(np.exp(best[1])),
    float(best[2]),
    unit,
  )


def _starts(
  log_x: Float[np.ndarray, " P"], error: Float[np.ndarray, " P"], floor: bool
) -> list[list[float]]:
  """Lines in log-log above some floors: (E, log A, alpha) of each."""
  starts = []
  for part in (0.0, 0.5, 0.9) if floor else (0.0,):
    lowest = part * float(error.min())
    slope, height = np.polyfit(
      log_x, np.log(np.maximum(error - lowest, 1e-6)), 1
    )
    starts.append([lowest, float(height), float(-slope)])
  return starts


def predict_largest(
  x: Float[np.ndarray, " P"],
  error: Float[np.ndarray, " P"],
  draws: Float[np.ndarray, "R P"],
  *,
  most: int = 300,
) -> Fit:
  """Fits all sizes but the largest, and predicts that one.

  Args:
    x: sizes, each once.
    error: means at each.
    draws: of these means, see `draws.drawn_means`.
    most: draws that are fitted.

  Raises:
    ValueError: for fewer than three sizes.
  """
  order = np.argsort(x)
  x, error, draws = x[order], error[order], draws[:most, order]
  if len(x) < 3:
    raise ValueError(f"{len(x)} sizes: a law needs two and one to predict.")
  floor = len(x) - 1 >= FLOOR_FROM
  law = fit_law(x[:-1], error[:-1], floor=floor)
  laws = [fit_law(x[:-1], row[:-1], floor=floor, near=law) for row in draws]
  # What is measured at the largest is uncertain as well. A draw takes the same
  # items everywhere, so it is the spread of the difference that counts.
  noise = draws[:, -1] - draws[:, -1].mean()
  largest = x[-1:]
  predicted = np.concatenate([one.error(largest) for one in laws]) - noise
  low, high = interval(predicted)
  return Fit(
    law=law,
    alpha=interval(np.asarray([one.alpha for one in laws])),
    floor=interval(np.asarray([one.floor for one in laws])) if floor else None,
    at=float(x[-1]),
    predicted=float(law.error(largest)[0]),
    interval=(low, high),
    measured=float(error[-1]),
    holds=bool(low <= error[-1] <= high),
    draws=laws,
  )
