"""Curves of a run: which values of `metrics.jsonl` share axes, and their lines.

A panel appears when the run has values for it:

  loss                                the weighted sum, raw and smoothed
  loss/<objective>/<group>            a panel per objective, a line per group
  <curve>/<objective>/<group>         likewise, for the `curves` of an objective
  temperature, learning_rate, grad_norm, samples_per_second
  input_wait_share                    share of the time waiting for data
  mfu, goodput                        shares, see `meter`, `goodput`
  time/<part>, memory/<place>         parts of a step, high-water marks
  eval/<name>                         the cheap evaluation during training

Events (alarms, skipped steps) are marked in every panel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mico_jax.evaluation.evaluators import find_measure
from mico_jax.modalities import has_text
from mico_jax.modalities.wording import group_in_words, result_in_words
from mico_jax.objectives import OBJECTIVES

if TYPE_CHECKING:
  from matplotlib.axes import Axes

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
INK, GREY, FAINT, ALARM = "#222222", "#666666", "#d9d9d9", "#C00000"
_MAX_LINES = 8
_ALONE = 3  # lines from which a panel of an overview stands alone

EVALUATION = "evaluation while training"
LOSS = "loss (weighted sum)"
_SINGLE = {
  "learning_rate": "learning rate",
  "temperature": "temperature",
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
# Of an overview, small and below the others.
_SMALL = (
  LOSS,
  *(_SINGLE[k] for k in ("learning_rate", "temperature", "grad_norm")),
  _SINGLE["samples_per_second"],
)


@dataclass
class Panel:
  """One set of axes.

  Attributes:
    title: above the axes.
    curves: name -> (steps, values).
    smooth: draw raw values faintly under a running mean.
    log: logarithmic values.
    grouped: whether the names of the curves are groups, such as "tva".
  """

  title: str
  curves: dict[str, tuple[list[float], list[float]]] = field(
    default_factory=dict
  )
  smooth: bool = False
  log: bool = False
  grouped: bool = False


def _loss_title(objective: str) -> str:
  known = OBJECTIVES.get(objective)
  unit = f" ({known.unit})" if known and known.unit else ""
  return f"{objective.replace('_', ' ')} loss{unit}"


def _panel_of(name: str) -> tuple[str, str] | None:
  """Title of the panel a value belongs to and its label there."""
  if name.startswith("eval/"):
    result = name.removeprefix("eval/")
    measure = find_measure(result)
    if measure is not None and not measure.headline:
      return None  # the headline tells more, and the panel stays readable
    return EVALUATION, result_in_words(result)
  if name in _SINGLE:
    return _SINGLE[name], ""
  for prefix, title in _GROUPED.items():
    if name.startswith(prefix):
      return title, name.removeprefix(prefix)
  if name == "loss":
    return LOSS, ""
  kind, _, rest = name.partition("/")
  objective, _, group = rest.partition("/")
  if not group:
    return None
  if kind == "loss":
    return _loss_title(objective), group
  if objective in OBJECTIVES and kind in OBJECTIVES[objective].curves:
    title = f"{objective.replace('_', ' ')} {kind.replace('_', ' ')}"
    return title, group
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
  losses: dict[str, None] = {LOSS: None}
  losses.update(dict.fromkeys(map(_loss_title, OBJECTIVES)))
  for line in lines:
    for name, value in line.items():
      place = _panel_of(name)
      if place is None or isinstance(value, str | bool | list | dict):
        continue
      if value is None or not math.isfinite(value):
        continue
      title, label = place
      if title == LOSS and len(tasks) > 1:
        label = str(line.get("task", ""))
      elif name.startswith("loss/"):
        losses[title] = None  # also of objectives outside this table
      panel = panels.setdefault(title, Panel(title))
      panel.grouped = name.count("/") == 2 and not name.startswith("eval/")
      steps, values = panel.curves.setdefault(label, ([], []))
      steps.append(float(line["step"]))
      values.append(float(value))
  for title in losses:
    if title in panels:
      panels[title].smooth = True
  order = [
    *losses,
    *(
      f"{o.replace('_', ' ')} {curve.replace('_', ' ')}"
      for o, objective in OBJECTIVES.items()
      for curve in objective.curves
    ),
    EVALUATION,
    *_SINGLE.values(),
    *_GROUPED.values(),
  ]
  _set_scale(panels.get(_SINGLE["grad_norm"]))
  return [panels[title] for title in order if title in panels]


def _set_scale(norm: Panel | None) -> None:
  """Logarithms for a gradient norm that varies widely."""
  if norm is None:
    return
  values = [v for _, (_, vs) in norm.curves.items() for v in vs if v > 0]
  norm.log = bool(values) and max(values) > 30 * min(values)
  norm.smooth = True


def overview(panels: Sequence[Panel]) -> tuple[list[Panel], list[Panel]]:
  """The panels of a short report: those on learning, and a few small ones.

  Evaluations come first. Objectives of few groups share axes.

  Args:
    panels: from `collect`.

  Returns:
    Panels to draw large, and small.
  """
  small = [p for title in _SMALL for p in panels if p.title == title]
  learning = [p for p in panels if p.grouped]
  many = [p for p in learning if len(p.curves) >= _ALONE]
  few = [p for p in learning if len(p.curves) < _ALONE]
  large = [p for p in panels if p.title == EVALUATION] + many
  large += _merged([p for p in few if p.smooth], "other losses")
  large += _merged([p for p in few if not p.smooth], "other curves of batches")
  return large, small


def _merged(panels: Sequence[Panel], title: str) -> list[Panel]:
  """One panel of several; as it is if it is one."""
  if len(panels) < 2:
    return list(panels)
  curves = {
    f"{p.title}:\n{group_in_words(group)}": values
    for p in panels
    for group, values in p.curves.items()
  }
  return [Panel(title, curves, smooth=panels[0].smooth)]


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


def style(axes: Axes, title: str, *, size: float = 10) -> None:
  """The look that all axes of a report share."""
  axes.set_title(title, loc="left", fontsize=size, color=INK, pad=6)
  axes.grid(True, color=FAINT, linewidth=0.6)
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


def _labels(panel: Panel) -> tuple[list[str], str]:
  """Names of the lines, and what stands over them."""
  names = list(panel.curves)
  if not panel.grouped:
    return [name.replace("_", " ") for name in names], ""
  words = [group_in_words(name) for name in names]
  first = {text.partition(" against ")[0] for text in words}
  if len(first) == 1 and all(map(has_text, names)):
    shared = f"{first.pop()} against"
    if all(text.startswith(shared) for text in words):
      return [
        text.removeprefix(f"{shared} ") for text in words
      ], f"{shared} ..."
  return words, ""


def _is_share(panel: Panel, values: Sequence[float]) -> bool:
  named = "accuracy" in panel.title or panel.title == EVALUATION
  named = named or "curves" in panel.title
  return named and min(values) >= 0 and max(values) <= 1


def draw_panel(
  axes: Axes,
  panel: Panel,
  events: Sequence[float],
  last: float,
  *,
  size: float = 10,
  named: bool = True,
) -> None:
  """Draws a panel.

  Args:
    axes: to draw on.
    panel: its curves.
    events: steps to mark.
    last: step of the right edge.
    size: of the title in points.
    named: whether to name the lines; the axes before have the same ones.
  """
  style(axes, panel.title, size=size)
  curves = list(panel.curves.values())
  labels, heading = _labels(panel)
  for index, (steps, values) in enumerate(curves[:_MAX_LINES]):
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
      label=labels[index] or None,
    )
  if len(curves) > _MAX_LINES:
    more = f"+ {len(curves) - _MAX_LINES} more"
    axes.plot([], [], linestyle="none", label=more)
  if len(curves) == 1 and size >= 10:
    value = curves[0][1][-1]
    axes.set_title(
      f"{value:.4g} at the end", loc="right", fontsize=8, color="#777777"
    )
  for step in events:
    axes.axvline(step, color=ALARM, linewidth=0.8, alpha=0.6, linestyle=":")
  _set_limits(axes, panel, last)
  if any(labels) and named:
    if panel.smooth and len(curves) > 4 and not panel.log and size < 10:
      axes.set_ylim(top=1.5 * axes.get_ylim()[1])  # room for the names
    small = 6.5 if size < 10 else 7
    axes.legend(
      fontsize=small,
      title=heading,
      title_fontsize=small,
      handlelength=1.2,
      edgecolor="none",
      framealpha=0.7,
    )
  elif any(labels):
    note = "colours as on the left"
    axes.text(
      0.97,
      0.05,
      note,
      transform=axes.transAxes,
      ha="right",
      fontsize=7,
      color=GREY,
    )


def _set_limits(axes: Axes, panel: Panel, last: float) -> None:
  if panel.log:
    axes.set_yscale("log")
  if panel.title == _SINGLE["input_wait_share"]:
    axes.axhline(0.05, color="#888888", linewidth=0.8, linestyle="--")
  if panel.title in (
    _SINGLE["input_wait_share"],
    _SINGLE["samples_per_second"],
  ):
    axes.set_ylim(bottom=0)
  if _is_share(panel, [v for _, vs in panel.curves.values() for v in vs]):
    axes.set_ylim(0, 1.02)
  axes.set_xlim(0, max(last, 1.0))
  axes.set_xlabel("step", fontsize=8, color=GREY)
