"""Draws a plan: memory and time of every task."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mico_jax.plan.planner import Plan, TaskPlan, gib
from mico_jax.plan.report import title

_PARTS = {
  "parameters": "#4c72b0",
  "optimizer": "#8172b3",
  "average": "#937860",
  "batch": "#ccb974",
  "temporaries": "#dd8452",
}
_TIMES = {
  "vision": "#4c72b0",
  "text": "#55a868",
  "loss": "#dd8452",
  "rest": "#937860",
  "memory": "#ccb974",
  "communication": "#c44e52",
}


def _stack(
  axes: Axes,
  tasks: list[TaskPlan],
  colours: Mapping[str, str],
  size: Callable[[TaskPlan, str], float],
) -> bool:
  """Draws a stacked bar per task; returns whether anything was drawn."""
  names = [t.name for t in tasks]
  left = [0.0] * len(tasks)
  for part, colour in colours.items():
    sizes = [size(t, part) for t in tasks]
    if any(sizes):
      axes.barh(names, sizes, left=left, color=colour, label=part)
    left = [a + b for a, b in zip(left, sizes, strict=True)]
  axes.invert_yaxis()
  return any(left)


def _memory(axes: Axes, tasks: list[TaskPlan]) -> None:
  limit = gib(tasks[0].limit)
  _stack(axes, tasks, _PARTS, lambda t, part: gib(t.parts.get(part, 0)))
  axes.axvline(limit, color="black", linestyle="--")
  axes.text(limit, -0.6, f"{limit:.2f} GiB", ha="right", va="bottom")
  axes.set_xlabel("GiB of a device")
  axes.legend(loc="lower right", fontsize="small")


def _time(axes: Axes, tasks: list[TaskPlan]) -> None:
  def seconds(task: TaskPlan, part: str) -> float:
    if task.time is None:
      return 0.0
    return task.time.shares().get(part, 0.0) * (task.seconds or 0.0)

  drawn = _stack(axes, tasks, _TIMES, seconds)
  axes.set_xlabel("estimated seconds of a step")
  if drawn:
    axes.legend(loc="lower right", fontsize="small")


def draw(plan: Plan, path: str | os.PathLike[str]) -> None:
  """Draws a plan into a PNG file.

  Args:
    plan: with at least one compiled task.
    path: of the file to write.
  """
  tasks = plan.compiled
  figure = Figure(figsize=(11, 1.6 + 0.55 * len(tasks)), layout="constrained")
  FigureCanvasAgg(figure)
  left, right = figure.subplots(1, 2)
  _memory(left, tasks)
  _time(right, tasks)
  days = f"; {plan.days:.1f} days" if plan.days is not None else ""
  figure.suptitle(f"{title(plan)}{days}", fontsize="medium")
  figure.savefig(path, dpi=110, format="png")
