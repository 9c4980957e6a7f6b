"""The picture of a sweep: a column for each panel, the loss below its figures.

Categories are lines of dots, sizes are on a logarithmic axis with the power law
of the small ones and the band of its draws. Bars are 95% intervals over seeds
and items, small dots single seeds.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from mico_jax.run.monitor.curves import COLORS
from mico_jax.run.sweep.results import Found, Panel

if TYPE_CHECKING:
  from matplotlib.axes import Axes

_WIDTH, _HEIGHT, _DPI = 3.6, 5.6, 90


def draw(found: Found) -> bytes:
  """The picture of all panels, as PNG.

  Args:
    found: one panel or more.
  """
  from matplotlib.figure import Figure  # slow to import

  number = len(found.panels)
  figure = Figure(figsize=(_WIDTH * number, _HEIGHT), layout="constrained")
  axes = figure.subplots(
    2, number, squeeze=False, height_ratios=(2, 1), sharex="col"
  )
  for column, panel in enumerate(found.panels):
    upper, lower = axes[0, column], axes[1, column]
    _figures(upper, panel)
    _losses(lower, panel)
    if column == 0:
      lower.set_ylabel("loss of the last part")
    _label_points(lower, panel)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=_DPI)
  return buffer.getvalue()


def _places(panel: Panel) -> Any:
  """Where the points lie along x."""
  if panel.spec.axis:
    return np.asarray([point.x for point in panel.points])
  return np.arange(len(panel.points), dtype=np.float64)


def _figures(axes: Axes, panel: Panel) -> None:
  """Averages with intervals, single seeds and the power law."""
  places = _places(panel)
  means = np.asarray([point.mean for point in panel.points])
  lows, highs = np.transpose([point.interval for point in panel.points])
  line = "-" if panel.spec.axis and panel.fit is None else ""
  axes.errorbar(
    places,
    means,
    # A percentile interval may lie beside the mean.
    yerr=np.maximum([means - lows, highs - means], 0.0),
    fmt=f"o{line}",
    color=COLORS[0],
    capsize=3,
    zorder=3,
  )
  for place, point in zip(places, panel.points, strict=True):
    axes.plot(
      [place] * len(point.seeds),
      point.seeds,
      ".",
      color=COLORS[7],
      markersize=4,
      alpha=0.6,
      zorder=4,
    )
  if panel.fit is not None:
    _law(axes, panel, places)
  names = {_measure(name) for name in panel.metrics}
  axes.set_title(panel.spec.title or panel.name)
  axes.set_ylabel(f"mean {' and '.join(sorted(names))} of the tasks")
  axes.grid(alpha=0.3)


def _measure(metric: str) -> str:
  return metric.rpartition("/")[2]


def _law(axes: Axes, panel: Panel, places: Any) -> None:
  """The law of the small sizes, dashed beyond them, and its draws."""
  fit = panel.fit
  assert fit is not None
  x = np.geomspace(places.min(), places.max(), 60)
  draws = np.stack([1.0 - law.error(x) for law in fit.draws])
  low, high = np.percentile(draws, [2.5, 97.5], axis=0)
  axes.fill_between(x, low, high, color=COLORS[1], alpha=0.15, linewidth=0)
  fitted = x <= np.sort(places)[-2] * 1.0001
  curve = 1.0 - fit.law.error(x)
  axes.plot(x[fitted], curve[fitted], color=COLORS[1])
  axes.plot(x, curve, "--", color=COLORS[1])
  verdict = "predicts" if fit.holds else "does not predict"
  axes.set_xlabel("")
  axes.text(
    0.03,
    0.97,
    f"exponent {fit.law.alpha:.2f}\n{verdict} the largest",
    transform=axes.transAxes,
    va="top",
    fontsize=8,
    color=COLORS[1],
  )


def _losses(axes: Axes, panel: Panel) -> None:
  """Mean loss of the last part of each point's training."""
  places = _places(panel)
  losses = [np.nan if p.loss is None else p.loss for p in panel.points]
  axes.plot(places, np.asarray(losses), "D", color=COLORS[2])
  axes.grid(alpha=0.3)


def _label_points(axes: Axes, panel: Panel) -> None:
  """Names, or sizes on a logarithmic axis."""
  if panel.spec.axis:
    places = _places(panel)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(places, [_short(float(x)) for x in places], fontsize=8)
    axes.set_xlabel(panel.spec.axis_label or panel.spec.axis)
    return
  names = [point.name for point in panel.points]
  axes.set_xticks(_places(panel), names, rotation=35, ha="right", fontsize=8)
  axes.margins(x=0.1)


def _short(size: float) -> str:
  """A size in three digits: 64, 4.1k, 182k."""
  for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if size >= factor:
      return f"{size / factor:.3g}{suffix}"
  return f"{size:.3g}"
