"""A plan as a picture: memory and time of every task."""

from __future__ import annotations

import os

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


def _memory(axes: Axes, tasks: list[TaskPlan]) -> None:
  names = [t.name for t in tasks]
  left = [0.0] * len(tasks)
  for part, colour in _PARTS.items():
    sizes = [gib(t.parts.get(part, 0)) for t in tasks]
    if any(sizes):
      axes.barh(names, sizes, left=left, color=colour, label=part)
    left = [a + b for a, b in zip(left, sizes, strict=True)]
  limit = gib(tasks[0].limit)
  axes.axvline(limit, color="black", linestyle="--")
  axes.text(limit, -0.6, f"{limit:.2f} GiB", ha="right", va="bottom")
  axes.invert_yaxis()
  axes.set_xlabel("GiB of a device")
  axes.legend(loc="lower right", fontsize="small")


def _time(axes: Axes, tasks: list[TaskPlan]) -> None:
  names = [t.name for t in tasks]
  left = [0.0] * len(tasks)
  for part, colour in _TIMES.items():
    seconds = [
      t.time.shares().get(part, 0.0) * (t.seconds or 0.0) if t.time else 0.0
      for t in tasks
    ]
    if any(seconds):
      axes.barh(names, seconds, left=left, color=colour, label=part)
    left = [a + b for a, b in zip(left, seconds, strict=True)]
  axes.invert_yaxis()
  axes.set_xlabel("estimated seconds of a step")
  if any(left):
    axes.legend(loc="lower right", fontsize="small")


def draw(plan: Plan, path: str | os.PathLike[str]) -> None:
  """Writes the picture of a plan as PNG.

  Args:
    plan: with at least one compiled task.
    path: of the file.
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
