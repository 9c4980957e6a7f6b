"""What the runs of `sensor_transfer` show: gains with intervals, and a picture.

The gain of an arm is by how much it is better than the arm from scratch, on the
same items and seeds; also where less is better it is positive for the better
one. Its interval is drawn as those of sweeps (`mico_jax.run.sweep.draws`), over
items and seeds. Where few items are answered differently, draws spread too
little: then it is as wide as the exact interval of so few, too.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

import mico_jax
from mico_jax import files, json_text
from mico_jax.config import ConfigError
from mico_jax.docs.markdown import markdown_table
from mico_jax.evaluation.evaluators import find_measure
from mico_jax.evaluation.metrics import FEW, exact_interval
from mico_jax.run.monitor.curves import COLORS
from mico_jax.run.monitor.progress import format_seconds
from mico_jax.run.sweep.draws import Values, drawn_means, interval
from mico_jax.run.sweep.plan import RESULT_FILE, Plan
from mico_jax.run.sweep.results import Found

NAME = "sensor_transfer"  # of the files


@dataclasses.dataclass(frozen=True)
class Row:
  """An arm on a set.

  Attributes:
    arm: its name.
    about: what it does.
    rate: learning rate that validation chose.
    validation: what it had there.
    mean: over seeds and items.
    interval: 95% of it.
    seeds: of each seed.
    loss: of training, mean of the last quarter of the steps.
    gain: over the first arm, positive where this one is better.
    gain_interval: 95% of it; None: it is the first arm.
  """

  arm: str
  about: str
  rate: float
  validation: float
  mean: float
  interval: tuple[float, float]
  seeds: tuple[float, ...]
  loss: float | None
  gain: float = 0.0
  gain_interval: tuple[float, float] | None = None

  @property
  def verdict(self) -> str:
    """What the interval of the gain says."""
    if self.gain_interval is None:
      return ""
    low, high = self.gain_interval
    return "better" if low > 0 else "worse" if high < 0 else "not told apart"


@dataclasses.dataclass(frozen=True)
class Set:
  """All arms on a set.

  Attributes:
    name: of the set.
    result: that is compared.
    lower_is_better: of it.
    items: number that it is measured on.
    steps: of each run.
    rows: the first one is from scratch.
  """

  name: str
  result: str
  lower_is_better: bool
  items: int
  steps: int
  rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What was found.

  Attributes:
    sets: each with its arms.
    seconds: of all runs, from compiling to the end of their evaluations.
    command: that made it.
  """

  sets: tuple[Set, ...]
  seconds: float
  command: str = ""

  def text(self) -> str:
    """The table, as Markdown."""
    header = ("set, result (items)", "arm", "learning rate", "validation")
    header += ("test", "95% interval", "seeds", "loss", "gain", "verdict")
    rows = [_cells(s, row) for s in self.sets for row in s.rows]
    return (
      f"{markdown_table(header, rows)}\n"
      f"{format_seconds(self.seconds)} of all runs together\n"
    )

  def as_dict(self) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {"version": mico_jax.__version__, **dataclasses.asdict(self)}


def _cells(of: Set, row: Row) -> list[str]:
  """A line of the table."""
  sign = "lower is better, " if of.lower_is_better else ""
  first = row.gain_interval is None
  title = f"{of.name}, {of.result} ({sign}{of.items}), {of.steps} steps"
  gain = ""
  if row.gain_interval is not None:
    low, high = row.gain_interval
    gain = f"{row.gain:+.3f} ({low:+.3f} .. {high:+.3f})"
  return [
    title if first else "",
    row.about,
    f"{row.rate:g}",
    f"{row.validation:.3f}",
    f"{row.mean:.3f}",
    f"{row.interval[0]:.3f} .. {row.interval[1]:.3f}",
    ", ".join(f"{value:.3f}" for value in row.seeds),
    "" if row.loss is None else f"{row.loss:.3f}",
    gain,
    row.verdict,
  ]


def gain_of(
  first: Float[np.ndarray, "S N"],
  other: Float[np.ndarray, "s n"],
  *,
  share: bool,
) -> tuple[float, tuple[float, float]]:
  """By how much the mean of `other` is above that of `first`, 95% interval.

  Args:
    first: value of each seed and item.
    other: of the same seeds and items.
    share: whether values are in [0, 1], of which few may differ.

  Raises:
    ValueError: for unequal shapes.
  """
  if first.shape != other.shape:
    raise ValueError(
      f"cannot pair values of shape {first.shape} and {other.shape}."
    )
  apart = other - first
  items = np.arange(apart.shape[1])
  low, high = interval(drawn_means([[Values(row, items)] for row in apart]))
  if share:
    number = len(items)
    mean = apart.mean(axis=0)  # of an item over seeds
    up, down = (float(np.maximum(s * mean, 0).sum()) for s in (1, -1))
    if up + down < FEW:
      better, worse = (exact_interval(x, number) for x in (up, down))
      low = min(low, better.low - worse.high)
      high = max(high, better.high - worse.low)
  return float(apart.mean()), (low, high)


def _values(
  root: str, runs: Sequence[str], result: str
) -> Float[np.ndarray, "S N"]:
  """Value of each seed and item.

  Raises:
    ConfigError: if seeds measured other items.
  """
  rows, items = [], []
  for run in runs:
    text = files.read_text(files.place(root) / run / RESULT_FILE)
    measured = json.loads(text)["results"][result]
    rows.append(measured["values"])
    items.append(measured["items"])
  if any(len(row) != len(rows[0]) for row in rows) or any(
    own != items[0] for own in items
  ):
    raise ConfigError(f"{result}: the runs {', '.join(runs)} differ in items.")
  return np.asarray(rows, np.float64)


def compared(
  plan: Plan,
  found: Found,
  tried: Found,
  root: str,
  *,
  rates: Mapping[str, Mapping[str, float]],
  about: Mapping[str, str],
  command: str = "",
) -> Comparison:
  """Compares the arms of each set with the first one.

  Args:
    plan: of the measured runs.
    found: what they show.
    tried: what the runs on validation parts show.
    root: folder of all.
    rates: set -> arm -> learning rate that was chosen.
    about: arm -> what it does.
    command: stored with it.
  """
  validation = {
    (panel.name, point.name): point.mean
    for panel in tried.panels
    for point in panel.points
  }
  sets = []
  for panel, chosen in zip(found.panels, tried.panels, strict=True):
    (result,) = panel.metrics
    measure = find_measure(result)
    assert measure is not None  # a sweep averages results of evaluators
    sign = -1.0 if measure.lower_is_better else 1.0
    values = {p.name: _values(root, p.runs, result) for p in panel.points}
    base, rows = next(iter(values.values())), []
    for i, point in enumerate(panel.points):
      rate = rates[panel.name][point.name]
      row = Row(
        arm=point.name,
        about=about[point.name],
        rate=rate,
        validation=validation[chosen.name, f"{point.name}-{rate:g}"],
        mean=point.mean,
        interval=point.interval,
        seeds=point.seeds,
        loss=point.loss,
      )
      if i:
        gain, ends = gain_of(
          sign * base, sign * values[point.name], share=measure.is_share
        )
        row = dataclasses.replace(row, gain=gain, gain_interval=ends)
      rows.append(row)
    steps = plan.runs[panel.points[0].runs[0]].config.train.steps
    sets.append(
      Set(
        name=panel.name,
        result=result,
        lower_is_better=measure.lower_is_better,
        items=base.shape[1],
        steps=steps,
        rows=tuple(rows),
      )
    )
  return Comparison(tuple(sets), found.seconds + tried.seconds, command)


def draw(comparison: Comparison) -> bytes:
  """A column for each set: means, intervals and seeds, as PNG."""
  from matplotlib.figure import Figure  # slow to import

  number = len(comparison.sets)
  figure = Figure(figsize=(3.2 * number, 3.6), layout="constrained")
  axes = figure.subplots(1, number, squeeze=False)
  for axis, of in zip(axes[0], comparison.sets, strict=True):
    axis.axhline(of.rows[0].mean, color="#888888", linewidth=0.8, zorder=1)
    for x, row in enumerate(of.rows):
      low, high = row.interval
      # A percentile interval may lie beside the mean.
      bars = np.maximum([[row.mean - low], [high - row.mean]], 0.0)
      axis.errorbar(
        x, row.mean, yerr=bars, fmt="o", color=COLORS[x % 7], capsize=3
      )
      axis.plot([x] * len(row.seeds), row.seeds, ".", color=COLORS[7], ms=4)
    names = [row.about.replace(", ", ",\n") for row in of.rows]
    axis.set_xticks(range(len(names)), names, rotation=50, ha="right", size=7)
    better = "lower is better" if of.lower_is_better else f"{of.items} items"
    axis.set_title(f"{of.name}\n{of.result}, {better}", size=9)
    axis.margins(x=0.15)
    axis.grid(axis="y", alpha=0.3)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=90)
  return buffer.getvalue()


def write(comparison: Comparison, root: str) -> None:
  """Writes sensor_transfer.json, .md and .png into the folder of the runs."""
  folder = files.place(root)
  text = json_text.dumps(comparison.as_dict(), indent=1)
  files.write_text(folder / f"{NAME}.json", f"{text}\n")
  files.write_text(folder / f"{NAME}.md", comparison.text())
  files.write_bytes(folder / f"{NAME}.png", draw(comparison))
