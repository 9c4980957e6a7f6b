"""What the runs of a sweep show together: averages, orders, power laws.

The figure of a point is the mean over its seeds of the average over the
panel's metrics. A panel lists its points in the order in which they should get
better; its ends are apart if their 95% intervals do not overlap.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

import mico_jax
from mico_jax import files
from mico_jax.config import ConfigError, stages_of
from mico_jax.run.sweep.draws import Values, drawn_means, interval
from mico_jax.run.sweep.law import Fit, predict_largest
from mico_jax.run.sweep.plan import (
  RESULT_FILE,
  PanelConfig,
  Plan,
  PointConfig,
  Run,
  is_done,
)


@dataclasses.dataclass(frozen=True)
class Point:
  """A point of a panel, over its seeds.

  Attributes:
    name: in the panel.
    mean: average over seeds and metrics.
    interval: 95%, over seeds and items.
    seeds: average over the metrics of each seed.
    metrics: result -> mean over seeds.
    losses: part of the training -> "loss" and its terms -> mean over seeds.
    x: size; 0: none.
    published: figure of the source in percent; 0: none.
    seconds: of its runs together.
    runs: their folders.
    missing: runs without a result.
    draws: of `mean`; not written.
  """

  name: str
  mean: float
  interval: tuple[float, float]
  seeds: tuple[float, ...]
  metrics: Mapping[str, float]
  losses: Mapping[str, Mapping[str, float]]
  x: float
  published: float
  seconds: float
  runs: tuple[str, ...]
  missing: tuple[str, ...]
  draws: Float[np.ndarray, " R"]

  @property
  def loss(self) -> float | None:
    """Of the last part of the training, as its metrics; None: not logged."""
    parts = list(self.losses.values())
    return parts[-1].get("loss") if parts else None


@dataclasses.dataclass(frozen=True)
class Panel:
  """A panel with the points that have results.

  Attributes:
    name: in the sweep.
    spec: its description.
    metrics: results that are averaged.
    points: in the order of the description.
    fit: power law of its sizes; None: none, or too few sizes.
  """

  name: str
  spec: PanelConfig
  metrics: tuple[str, ...]
  points: tuple[Point, ...]
  fit: Fit | None

  @property
  def inversions(self) -> list[tuple[str, str]]:
    """Pairs of points (worse, better) that were expected the other way round.

    Where all points have published figures these say what is expected, else
    the order of the points does. Equal published figures expect nothing.
    """
    ranked = list(enumerate(self.points))
    known = all(point.published for point in self.points)
    out = []
    for (i, a), (j, b) in itertools.combinations(ranked, 2):
      rises = b.published > a.published if known else j > i
      if rises and b.mean < a.mean:
        out.append((b.name, a.name))
    return out

  @property
  def ends_apart(self) -> bool | None:
    """Whether the intervals of the first and last point do not overlap."""
    if len(self.points) < 2:
      return None
    first, last = self.points[0].interval, self.points[-1].interval
    return last[0] > first[1] or first[0] > last[1]


@dataclasses.dataclass(frozen=True)
class Found:
  """All panels of a sweep.

  Attributes:
    panels: that have results.
    missing: runs without a result.
    seconds: of all runs together, each counted once.
    steps: of all runs together.
    command: that made it.
  """

  panels: tuple[Panel, ...]
  missing: tuple[str, ...]
  seconds: float
  steps: int
  command: str = ""

  def as_dict(self) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {
      "command": self.command,
      "version": mico_jax.__version__,
      "seconds": round(self.seconds, 1),
      "steps": self.steps,
      "missing": list(self.missing),
      "panels": {panel.name: _panel_dict(panel) for panel in self.panels},
    }


def _panel_dict(panel: Panel) -> dict[str, Any]:
  points = {}
  for point in panel.points:
    fields = {
      f.name: getattr(point, f.name)
      for f in dataclasses.fields(point)
      if f.name not in ("name", "draws")
    }
    points[point.name] = fields
  fit = panel.fit
  return {
    "title": panel.spec.title,
    "metrics": list(panel.metrics),
    "ends_apart": panel.ends_apart,
    "inversions": panel.inversions,
    "points": points,
    "power_law": None
    if fit is None
    else {**fit._asdict(), "law": fit.law._asdict(), "draws": len(fit.draws)},
  }


def gather(plan: Plan, root: str, *, command: str = "") -> Found:
  """Reads the results of a plan's runs and averages them.

  Args:
    plan: of the sweep.
    root: its folder.
    command: stored with what is found.

  Raises:
    ConfigError: for a metric that a run did not measure, and runs of one point
      that measured different items.
  """
  results = {}
  for run in plan.runs.values():
    if is_done(run, root):
      results[run.name] = _read(run, root)
  panels = []
  for name, spec in plan.sweep.panels.items():
    metrics = spec.metrics or plan.sweep.metrics
    points = []
    for point, setting in spec.points.items():
      runs = plan.points[name, point]
      found = [results[r] for r in runs if r in results]
      if found:
        points.append(_point(spec, point, setting, runs, results, metrics))
    if points:
      fit = _fit(spec, points)
      panels.append(Panel(name, spec, tuple(metrics), tuple(points), fit))
  missing = tuple(name for name in plan.runs if name not in results)
  steps = sum(plan.runs[name].config.train.steps for name in results)
  seconds = sum(map(_seconds, results.values()))
  return Found(tuple(panels), missing, seconds, steps, command)


def _read(run: Run, root: str) -> dict[str, Any]:
  text = files.read_text(files.place(root) / run.name / RESULT_FILE)
  result = json.loads(text)
  stages = [stage.name or "train" for stage in stages_of(run.config)]
  losses = result["losses"]  # JSON does not keep that order by promise
  result["losses"] = {name: losses[name] for name in stages if name in losses}
  return result


def _seconds(result: Mapping[str, Any]) -> float:
  """Time of a run, from compiling to the end of its evaluation."""
  parts = ("compile", "train", "evaluate")
  return sum(float(result["seconds"][part]) for part in parts)


def _values(
  result: Mapping[str, Any], metrics: Sequence[str], run: str
) -> list[Values]:
  """The values of the metrics of a run."""
  out = []
  for name in metrics:
    measured = result["results"]
    if name not in measured:
      raise ConfigError(
        f"run {run} did not measure {name!r}; its results: "
        f"{', '.join(measured)}."
      )
    if not measured[name].get("values"):
      raise ConfigError(
        f"{name!r} is no mean over items, which intervals are drawn from; "
        "average another result."
      )
    values = np.asarray(measured[name]["values"], np.float64)
    items = measured[name]["items"]
    items = np.arange(len(values)) if items is None else np.asarray(items)
    out.append(Values(values, items))
  return out


def _point(
  spec: PanelConfig,
  name: str,
  setting: PointConfig,
  runs: tuple[str, ...],
  results: Mapping[str, Mapping[str, Any]],
  metrics: Sequence[str],
) -> Point:
  """The figures of a point."""
  found = {run: results[run] for run in runs if run in results}
  values = {run: _values(result, metrics, run) for run, result in found.items()}
  first = next(iter(values.values()))
  for run, own in values.items():
    if any(
      not np.array_equal(a.items, b.items)
      for a, b in zip(first, own, strict=True)
    ):
      raise ConfigError(f"run {run} measured other items than other seeds did.")
  each = [np.mean([v.values.mean() for v in own]) for own in values.values()]
  draws = drawn_means(list(values.values()))
  counted = spec.axis == "parameters"
  return Point(
    name=name,
    mean=float(np.mean(each)),
    interval=_interval(draws, list(values.values()), metrics),
    seeds=tuple(map(float, each)),
    metrics={
      metric: float(np.mean([own[i].values.mean() for own in values.values()]))
      for i, metric in enumerate(metrics)
    },
    losses=_mean_losses(list(found.values())),
    x=float(next(iter(found.values()))["parameters"]) if counted else setting.x,
    published=setting.published,
    seconds=sum(map(_seconds, found.values())),
    runs=runs,
    missing=tuple(run for run in runs if run not in found),
    draws=draws,
  )


def _interval(
  draws: Float[np.ndarray, " R"],
  runs: Sequence[Sequence[Values]],
  metrics: Sequence[str],
) -> tuple[float, float]:
  """The interval of a point; that of shares stays in [0, 1].

  Where few items are right or wrong the draws spread too little, and not at all
  where none is: then it is as wide as the exact one of as many items, too.
  """
  from mico_jax.evaluation.evaluators import is_share  # slow to import
  from mico_jax.evaluation.metrics import FEW, exact_interval

  low, high = interval(draws)
  if not all(map(is_share, metrics)):
    return low, high
  low, high = max(low, 0.0), min(high, 1.0)
  items = len(np.unique(np.concatenate([v.items for v in runs[0]])))
  share = float(np.mean([v.values.mean() for run in runs for v in run]))
  if items * min(share, 1 - share) < FEW:
    exact = exact_interval(items * share, items)
    low, high = min(low, exact.low), max(high, exact.high)
  return low, high


def _mean_losses(
  results: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
  """Losses of each part of the training, averaged over seeds."""
  first = results[0]["losses"]
  return {
    part: {
      term: float(np.mean([r["losses"][part][term] for r in results]))
      for term in terms
      if all(term in r["losses"].get(part, {}) for r in results)
    }
    for part, terms in first.items()
  }


def _fit(spec: PanelConfig, points: Sequence[Point]) -> Fit | None:
  """The power law of a panel's sizes, as `law` says."""
  sizes = {point.x for point in points if point.x > 0}
  if not spec.axis or len(sizes) < 3 or len(sizes) < len(points):
    return None
  return predict_largest(
    np.asarray([point.x for point in points], np.float64),
    np.asarray([1.0 - point.mean for point in points]),
    np.stack([1.0 - point.draws for point in points], axis=1),
  )
