"""The runs of a sweep and what they show, as text."""

from __future__ import annotations

from collections.abc import Sequence

from mico_jax import files
from mico_jax.run.monitor.progress import format_seconds
from mico_jax.run.sweep.law import Fit
from mico_jax.run.sweep.plan import CONFIG_FILE, Plan, is_done
from mico_jax.run.sweep.results import Found, Panel, Point


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of aligned columns: the first to the left, others to the right."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    "  ".join(
      cell.rjust(width) if i else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  ]


def of_runs(plan: Plan, root: str) -> str:
  """The runs of a plan, their state, and the points that share them.

  Args:
    plan: of the sweep.
    root: its folder.
  """
  uses: dict[str, list[str]] = {name: [] for name in plan.runs}
  for (panel, point), names in plan.points.items():
    for name in names:
      uses[name].append(f"{panel}.{point}")
  rows = [["run", "steps", "state", "points"]]
  for name, run in plan.runs.items():
    state = "new"
    if is_done(run, root):
      state = "done"
    elif files.exists(files.place(root) / name / CONFIG_FILE):
      state = "to resume"
    steps = str(run.config.train.steps)
    rows.append([name, steps, state, ", ".join(uses[name])])
  total = sum(run.config.train.steps for run in plan.runs.values())
  return "\n".join(
    [*_columns(rows), f"{len(plan.runs)} runs of {total} steps in {root}"]
  )


def of_panels(found: Found) -> str:
  """The figures of all panels."""
  lines = []
  for panel in found.panels:
    lines += [*of_panel(panel), ""]
  lines.append(
    f"{found.steps} steps in {format_seconds(found.seconds)} of all runs "
    "together, compiling and evaluation included"
  )
  if found.missing:
    lines.append(f"without a result: {', '.join(found.missing)}")
  return "\n".join(lines)


def of_panel(panel: Panel) -> list[str]:
  """Lines of one panel."""
  short = [_short(name) for name in panel.metrics]
  header = ["point", "mean", "95% interval", "loss", *short]
  published = any(point.published for point in panel.points)
  if published:
    header.append("published")
  rows = [header]
  for point in panel.points:
    row = [
      _label(panel, point),
      f"{point.mean:.3f}",
      f"{point.interval[0]:.3f} .. {point.interval[1]:.3f}",
      "" if point.loss is None else f"{point.loss:.3f}",
      *(f"{value:.3f}" for value in point.metrics.values()),
    ]
    if published:
      row.append(f"{point.published:g}" if point.published else "")
    rows.append(row)
  lines = [f"{panel.name}: {panel.spec.title}", *_columns(rows)]
  lines += [_order(panel), *([] if panel.fit is None else [_law(panel.fit)])]
  for point in panel.points:
    if point.missing:
      missing, number = len(point.missing), len(point.runs)
      alone = "; the interval is over items alone"
      lines.append(
        f"{point.name}: {missing} of {number} seeds missing"
        f"{alone if number - missing == 1 else ''}"
      )
  return lines


def _short(metric: str) -> str:
  """A metric's name without the word before its first slash."""
  return metric.partition("/")[2] or metric


def _names(panel: Panel) -> set[str]:
  """Names of the points that have results."""
  return {point.name for point in panel.points}


def _label(panel: Panel, point: Point) -> str:
  if panel.spec.axis == "parameters":
    return f"{point.name} ({point.x:.3g} parameters)"
  return point.name


def _order(panel: Panel) -> str:
  """Whether the order is the expected one, and the ends are apart."""
  absent = [name for name in panel.spec.points if name not in _names(panel)]
  if absent:
    return f"order: not known yet, without {', '.join(absent)}"
  wrong = panel.inversions
  text = "order: as expected"
  if wrong:
    pairs = ", ".join(f"{worse} below {better}" for worse, better in wrong)
    text = f"order: not as expected ({pairs})"
  if panel.ends_apart is not None:
    apart = "do not overlap" if panel.ends_apart else "overlap"
    text += f"; the intervals of the ends {apart}"
  return text


def _law(fit: Fit) -> str:
  """The power law and its prediction."""
  law = fit.law
  floor = ""
  if fit.floor is not None:
    low, high = fit.floor
    floor = f"{law.floor:.3f} ({low:.3f} .. {high:.3f}) + "
  verdict = "has it" if fit.holds else "does NOT have it"
  return (
    f"1 - mean = {floor}{law.factor:.3f} (x / {law.unit:g})^-{law.alpha:.3f} "
    f"(exponent {fit.alpha[0]:.3f} .. {fit.alpha[1]:.3f}), fitted below "
    f"x = {fit.at:g}; predicts {fit.predicted:.3f} there "
    f"({fit.interval[0]:.3f} .. {fit.interval[1]:.3f}), measured "
    f"{fit.measured:.3f}: the interval {verdict}"
  )
