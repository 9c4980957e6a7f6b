"""Curves of a run, drawn; `panels` says which values share axes.

Events (alarms, skipped steps) are marked in every panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mico_jax.modalities import has_text
from mico_jax.modalities.wording import group_in_words, result_in_words
from mico_jax.run.monitor.panels import (
  EVALUATION,
  INPUT_WAIT,
  SAMPLES_PER_SECOND,
  Panel,
)

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
  if panel.title == EVALUATION:
    return [result_in_words(name) for name in names], ""
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
  if panel.title == INPUT_WAIT:
    axes.axhline(0.05, color="#888888", linewidth=0.8, linestyle="--")
  if panel.title in (
    INPUT_WAIT,
    SAMPLES_PER_SECOND,
  ):
    axes.set_ylim(bottom=0)
  if _is_share(panel, [v for _, vs in panel.curves.values() for v in vs]):
    axes.set_ylim(0, 1.02)
  axes.set_xlim(0, max(last, 1.0))
  axes.set_xlabel("step", fontsize=8, color=GREY)
