"""Which values of `metrics.jsonl` share axes.

A panel appears when the run has values for it:

  loss                                the weighted sum, raw and smoothed
  loss/<objective>/<group>            a panel per objective, a line per group
  <curve>/<objective>/<group>         likewise, for the `curves` of an objective
  temperature, learning_rate, grad_norm, samples_per_second
  input_wait_share                    share of the time waiting for data
  mfu, goodput                        shares, see `meter`, `goodput`
  time/<part>, memory/<place>         parts of a step, high-water marks
  eval/<name>                         the cheap evaluation during training
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mico_jax.evaluation.evaluators import find_measure
from mico_jax.modalities.wording import group_in_words
from mico_jax.objectives import OBJECTIVES

_ALONE = 3  # lines from which a panel of an overview stands alone

EVALUATION = "evaluation while training"
LOSS = "loss (weighted sum)"
INPUT_WAIT = "input wait (share of the time)"
SAMPLES_PER_SECOND = "samples per second"
_SINGLE = {
  "learning_rate": "learning rate",
  "temperature": "temperature",
  "grad_norm": "gradient norm",
  "samples_per_second": SAMPLES_PER_SECOND,
  "input_wait_share": INPUT_WAIT,
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
  SAMPLES_PER_SECOND,
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
    return EVALUATION, result
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
