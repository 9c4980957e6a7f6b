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

  def error(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The error at sizes x."""
    return self.floor + self.factor * (np.asarray(x) / self.unit) ** -self.alpha


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
  x: Float[np.ndarray, " P"], error: Float[np.ndarray, " P"], *, floor: bool
) -> Law:
  """The law of least squares.

  Args:
    x: sizes above 0, two or more that differ; three or more with `floor`.
    error: at each, above 0.
    floor: whether E is fitted; False: it is 0.

  Raises:
    ValueError: for too few sizes, or sizes that are not positive.
  """
  from scipy.optimize import least_squares  # slow to import

  x, error = np.asarray(x, np.float64), np.asarray(error, np.float64)
  need = 3 if floor else 2
  if len(np.unique(x)) < need or (x <= 0).any():
    raise ValueError(
      f"sizes {x.tolist()}: a power law needs {need} different ones above 0."
    )
  unit = float(x.min())
  log_x = np.log(x / unit)

  def residuals(p: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " P"]:
    return p[0] * floor + np.exp(p[1] - p[2] * log_x) - error

  lowest = float(error.min())
  found = []
  for part in (0.0, 0.5, 0.9) if floor else (0.0,):
    above = np.maximum(error - part * lowest, 1e-6)
    slope, start = np.polyfit(log_x, np.log(above), 1)
    first = [part * lowest, start, np.clip(-slope, 1e-3, _MAX_ALPHA - 1e-3)]
    bounds = ([-1e-9, -20.0, 0.0], [1.0, 5.0, _MAX_ALPHA])
    found.append(least_squares(residuals, first, bounds=bounds))
  best = min(found, key=lambda result: result.cost).x
  return Law(
    float(max(best[0], 0.0)) if floor else 0.0,
    float(np.exp(best[1])),
    float(best[2]),
    unit,
  )


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
  laws = [fit_law(x[:-1], row[:-1], floor=floor) for row in draws]
  # What is measured at the largest is uncertain as well.
  noise = draws[:, -1] - draws[:, -1].mean()
  predicted = np.asarray([one.error(x[-1]) for one in laws]) + noise
  low, high = interval(predicted)
  return Fit(
    law=law,
    alpha=interval(np.asarray([one.alpha for one in laws])),
    floor=interval(np.asarray([one.floor for one in laws])) if floor else None,
    at=float(x[-1]),
    predicted=float(law.error(x[-1])),
    interval=(low, high),
    measured=float(error[-1]),
    holds=bool(low <= error[-1] <= high),
    draws=laws,
  )
