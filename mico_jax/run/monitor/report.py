"""The picture of a run: `<workdir>/report.png`, curves and final numbers.

Drawn from `metrics.jsonl` and, where present, `evaluation.json`. A panel
appears when the run has values for it:

  loss                                the weighted sum, raw and smoothed
  loss/<objective>/<group>            a panel per objective, a line per group
  <curve>/<objective>/<group>         likewise, for the `curves` of an objective
  temperature, learning_rate, grad_norm, samples_per_second
  input_wait_share                    share of the time waiting for data
  mfu, goodput                        shares, see `meter`, `goodput`
  time/<part>, memory/<place>         parts of a step, high-water marks
  eval/<name>                         the cheap evaluation during training

Events (alarms, skipped steps) are marked in every panel. `evaluation.json` is
what `mico_jax.evaluation.report` writes; shares in [0, 1] are drawn as bars
with interval, chance and ceiling.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath
from jaxtyping import Float

from mico_jax import files
from mico_jax.evaluation.evaluator import SHARE
from mico_jax.evaluation.evaluators import find_measure
from mico_jax.objectives import OBJECTIVES
from mico_jax.run.monitor import metric_log

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

REPORT_FILE = "report.png"
EVALUATION_FILE = "evaluation.json"

# Readable side by side, also without colour vision (Okabe and Ito's set).
COLORS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#E69F00",
  "#56B4E9",
  "#7A5195",
  "#4D4D4D",
)
_INK, _FAINT, _ALARM = "#222222", "#d9d9d9", "#C00000"
_COLUMNS = 3
_MAX_LINES = 8
_BAR_NAME_WIDTH = 42

_SINGLE = {
  "temperature": "temperature",
  "learning_rate": "learning rate",
  "grad_norm": "gradient norm",
  "samples_per_second": "samples per second",
  "input_wait_share": "input wait (share of the time)",
  "mfu": "MFU (model FLOPs, share of the peak)",
  "goodput": "goodput (share of the time)",
}
# Prefix -> panel with a line for each name behind it.
_GROUPED = {
  "temperature/": "temperature of a context",
  "time/": "time of a step (ms)",
  "memory/": "memory, high-water mark (GB)",
}


@dataclass(frozen=True)
class Bar:
  """One bar of the final evaluation.

  Attributes:
    name: what was measured.
    value: in [0, 1].
    low: lower end of the 95% interval.
    high: upper end of the 95% interval.
    chance: of guessing.
    ceiling: best possible value.
  """

  name: str
  value: float
  low: float | None = None
  high: float | None = None
  chance: float | None = None
  ceiling: float | None = None


@dataclass
class Panel:
  """One set of axes.

  Attributes:
    title: above the axes.
    curves: name -> (steps, values).
    smooth: draw raw values faintly under a running mean.
    log: logarithmic values.
  """

  title: str
  curves: dict[str, tuple[list[float], list[float]]] = field(
    default_factory=dict
  )
  smooth: bool = False
  log: bool = False


def _panel_of(name: str) -> tuple[str, str] | None:
  """Title of the panel a value belongs to and its label there."""
  if name.startswith("eval/"):
    result = name.removeprefix("eval/")
    measure = find_measure(result)
    if measure is not None and not measure.headline:
      return None  # the headline tells more, and the panel stays readable
    return "evaluation while training", result
  if name in _SINGLE:
    return _SINGLE[name], ""
  for prefix, title in _GROUPED.items():
    if name.startswith(prefix):
      return title, name.removeprefix(prefix)
  if name == "loss":
    return "loss", ""
  kind, _, rest = name.partition("/")
  objective, _, group = rest.partition("/")
  if not group:
    return None
  title = objective.replace("_", " ")
  if kind == "loss":
    return f"{title} loss", group
  if objective in OBJECTIVES and kind in OBJECTIVES[objective].curves:
    return f"{title} {kind.replace('_', ' ')}", group
  return None


def collect(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
  """Sorts the values of `metrics.jsonl` into panels.

  Args:
    lines: as `mico_jax.run.monitor.metric_log.read_metrics` returns them.

  Returns:
    Panels that have at least one finite value, in the order they are drawn.
  """
  panels: dict[str, Panel] = {}
  tasks = {line["task"] for line in lines if line.get("task")}
  for line in lines:
    for name, value in line.items():
      place = _panel_of(name)
      if place is None or isinstance(value, str | bool | list | dict):
        continue
      if value is None or not math.isfinite(value):
        continue
      title, label = place
      if title == "loss" and len(tasks) > 1:
        label = str(line.get("task", ""))
      panel = panels.setdefault(title, Panel(title))
      steps, values = panel.curves.setdefault(label, ([], []))
      steps.append(float(line["step"]))
      values.append(float(value))
  losses = [f"{o.replace('_', ' ')} loss" for o in OBJECTIVES]
  # Such as those of an objective that only the run's process had.
  losses += [t for t in panels if t.endswith(" loss") and t not in losses]
  first = ["loss", *losses]
  for title in first:
    if title in panels:
      panels[title].smooth = True
  order = [
    *first,
    *(
      f"{o.replace('_', ' ')} {curve.replace('_', ' ')}"
      for o, objective in OBJECTIVES.items()
      for curve in objective.curves
    ),
    "evaluation while training",
    *_SINGLE.values(),
    *_GROUPED.values(),
  ]
  if "gradient norm" in panels:
    values = [
      v
      for _, (_, vs) in panels["gradient norm"].curves.items()
      for v in vs
      if v > 0
    ]
    panels["gradient norm"].log = bool(values) and max(values) > 30 * min(
      values
    )
    panels["gradient norm"].smooth = True
  return [panels[title] for title in order if title in panels]


def bars(evaluation: Mapping[str, Any], *, limit: int = 28) -> list[Bar]:
  """The shares of an `evaluation.json`.

  Args:
    evaluation: the parsed file.
    limit: most bars returned; with more results, those that are no headline
      are left out first.

  Returns:
    Results whose evaluators say that they are shares, in the file's order.
  """
  rows: list[tuple[Bar, bool]] = []
  for row in evaluation.get("results", ()):
    value, name = row.get("value"), str(row.get("name", ""))
    measure = find_measure(name)
    if value is None or measure is None or measure.unit != SHARE:
      continue
    low, high = row.get("interval") or (None, None)
    bar = Bar(name, value, low, high, row.get("baseline"), row.get("ceiling"))
    rows.append((bar, measure.headline))
  if len(rows) > limit:
    rows = [(bar, headline) for bar, headline in rows if headline]
  return [bar for bar, _ in rows[:limit]]


def smooth(
  values: Sequence[float] | Float[np.ndarray, " N"],
) -> Float[np.ndarray, " N"]:
  """Running mean over about a twentieth of the curve, without lag at the start.

  Args:
    values: of a curve.

  Returns:
    As many values.
  """
  array = np.asarray(values, np.float64)
  width = max(1, len(array) // 20)
  sums = np.concatenate([[0.0], np.cumsum(array)])
  index = np.arange(len(array))
  low, high = (
    np.maximum(index - width, 0),
    np.minimum(index + width + 1, len(array)),
  )
  return (sums[high] - sums[low]) / (high - low)


def _style(axes: Axes, title: str) -> None:
  axes.set_title(title, loc="left", fontsize=10, color=_INK, pad=6)
  axes.grid(True, color=_FAINT, linewidth=0.6)
  axes.set_axisbelow(True)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  for side in ("left", "bottom"):
    axes.spines[side].set_color("#888888")
  axes.tick_params(labelsize=8, colors="#555555")


def _smooth_for(panel: Panel, values: Sequence[float]) -> list[float]:
  if panel.log and min(values) > 0:
    return np.exp(smooth(np.log(values))).tolist()
  return smooth(values).tolist()


def _draw_panel(
  axes: Axes, panel: Panel, events: Sequence[float], last: float
) -> None:
  _style(axes, panel.title)
  labelled = False
  curves = list(panel.curves.items())
  for index, (label, (steps, values)) in enumerate(curves[:_MAX_LINES]):
    color = COLORS[index % len(COLORS)]
    marker = "o" if len(values) < 12 else ""
    if panel.smooth and len(values) >= 20:
      axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
      values = _smooth_for(panel, values)
    axes.plot(
      steps,
      values,
      color=color,
      linewidth=1.6,
      marker=marker,
      markersize=3,
      label=label or None,
    )
    labelled = labelled or bool(label)
  if len(curves) > _MAX_LINES:
    more = f"+ {len(curves) - _MAX_LINES} more"
    axes.plot([], [], linestyle="none", label=more)
  if len(curves) == 1:
    value = curves[0][1][1][-1]
    axes.set_title(
      f"{value:.4g} at the end", loc="right", fontsize=8, color="#777777"
    )
  for step in events:
    axes.axvline(step, color=_ALARM, linewidth=0.8, alpha=0.6, linestyle=":")
  if panel.log:
    axes.set_yscale("log")
  if panel.title == _SINGLE["input_wait_share"]:
    axes.axhline(0.05, color="#888888", linewidth=0.8, linestyle="--")
  if panel.title in (
    _SINGLE["input_wait_share"],
    _SINGLE["samples_per_second"],
  ):
    axes.set_ylim(bottom=0)
  if "accuracy" in panel.title or panel.title.startswith("evaluation"):
    top = max(v for _, (_, vs) in curves for v in vs)
    axes.set_ylim(0, 1.02 if top <= 1 else None)
  axes.set_xlim(0, max(last, 1.0))
  if labelled:
    axes.legend(fontsize=7, frameon=False, ncols=1 + (len(curves) > 4))


def _draw_bars(axes: Axes, shown: Sequence[Bar]) -> None:
  _style(axes, "final evaluation")
  axes.grid(False, axis="y")
  places = np.arange(len(shown))[::-1]
  axes.barh(places, [b.value for b in shown], height=0.66, color=COLORS[0])
  for place, bar in zip(places, shown, strict=True):
    if bar.low is not None and bar.high is not None:
      axes.plot([bar.low, bar.high], [place, place], color=_INK, linewidth=1.2)
    for value, color in ((bar.chance, "#888888"), (bar.ceiling, COLORS[1])):
      if value is not None:
        axes.plot(
          [value, value], [place - 0.4, place + 0.4], color=color, linewidth=2
        )
    axes.text(
      1.02, place, f"{bar.value:.3f}", va="center", fontsize=8, color=_INK
    )
  names = [
    b.name
    if len(b.name) <= _BAR_NAME_WIDTH
    else "..." + b.name[3 - _BAR_NAME_WIDTH :]
    for b in shown
  ]
  axes.set_yticks(places, names)
  axes.set_xlim(0, 1)
  axes.set_ylim(-0.7, len(shown) - 0.3)
  notes = (
    ["line: 95% interval"] if any(b.low is not None for b in shown) else []
  )
  if any(b.chance is not None for b in shown):
    notes.append("grey: chance")
  if any(b.ceiling is not None for b in shown):
    notes.append("orange: ceiling")
  if notes:
    axes.set_xlabel(", ".join(notes), fontsize=8, color="#777777")


def draw(
  lines: Sequence[Mapping[str, Any]],
  *,
  evaluation: Any = None,
  title: str = "",
) -> Figure:
  """Draws the report.

  Args:
    lines: of `metrics.jsonl`.
    evaluation: parsed `evaluation.json`, if there is one.
    title: over everything.

  Returns:
    The figure.

  Raises:
    ValueError: if there is nothing to draw.
  """
  from matplotlib.figure import Figure

  panels = collect(lines)
  shown = bars(evaluation) if evaluation is not None else []
  if not panels and not shown:
    raise ValueError(
      "nothing to draw: no values in metrics.jsonl and no evaluation.json."
    )
  events = [float(x["step"]) for x in lines if x.get("event")]
  last = max((float(x["step"]) for x in lines), default=1.0)
  rows = math.ceil(len(panels) / _COLUMNS)
  heights = [2.5 * rows] if panels else []
  if shown:
    heights.append(0.8 + 0.26 * len(shown))
  figure = Figure(figsize=(13, 0.7 + sum(heights)), layout="constrained")
  # Separate layouts, so that long names of bars do not narrow the curves.
  parts = figure.subfigures(
    len(heights), 1, height_ratios=heights, squeeze=False
  )[:, 0]
  for index, panel in enumerate(panels):
    axes = parts[0].add_subplot(rows, _COLUMNS, index + 1)
    _draw_panel(axes, panel, events, last)
  if shown:
    _draw_bars(parts[-1].add_subplot(), shown)
  figure.suptitle(
    title or "run", x=0.01, ha="left", fontsize=13, color=_INK, weight="bold"
  )
  return figure


def _headline(workdir: Any, lines: Sequence[Mapping[str, Any]]) -> str:
  text = workdir.name
  timed = [x for x in lines if "time" in x]
  if timed:
    minutes = (timed[-1]["time"] - timed[0]["time"]) / 60
    text += (
      f"   {int(max(x['step'] for x in timed)) + 1} steps in {minutes:.1f} min"
    )
  count = sum(1 for x in lines if x.get("event"))
  if count:
    text += f"   {count} event{'s' * (count > 1)} (dotted red)"
  return text


def write_report(workdir: epath.PathLike) -> Any:
  """Draws `<workdir>/report.png`.

  Args:
    workdir: folder of a run.

  Returns:
    Path (`etils.epath`) of the picture.

  Raises:
    ValueError: if the folder has neither metrics nor an evaluation.
  """
  folder = epath.Path(workdir)
  lines = metric_log.read_metrics(folder)
  evaluation = None
  with contextlib.suppress(FileNotFoundError):
    evaluation = json.loads(files.read_text(folder / EVALUATION_FILE))
  figure = draw(lines, evaluation=evaluation, title=_headline(folder, lines))
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  path = folder / REPORT_FILE
  files.write_bytes(path, buffer.getvalue())
  return path
