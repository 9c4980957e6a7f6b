"""Formats plans as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mico_jax.plan import estimate
from mico_jax.plan.planner import Plan, TaskPlan, gib


def _row(task: TaskPlan, plan: Plan) -> list[str]:
  free = gib(task.limit - task.needed)
  state = "fits" if task.fits else "NO"
  share = task.share_of_peak(plan.where)
  images = task.rate(task.views.images)
  return [
    task.name,
    str(task.batch),
    f"{state} ({free:+.2f})",
    *(
      f"{gib(task.parts.get(name, 0)):.2f}"
      for name in ("parameters", "optimizer", "batch", "temporaries")
    ),
    f"{math.fsum(task.flops.values()) / 1e15:.3f}" if task.flops else "-",
    _number(task.seconds, 3),
    f"{share:.1%}" if share is not None else "-",
    _number(images, 0),
    _number(task.rate(task.views.tokens), 0),
  ]


HEADER = (
  "task",
  "batch",
  "memory (free GiB)",
  "params",
  "optimizer",
  "batch GiB",
  "temporaries",
  "PFLOP",
  "step s",
  "of peak",
  "images/s",
  "tokens/s",
)


def _number(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:,.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return "\n".join(
    "  ".join(
      cell.rjust(w) if i else cell.ljust(w)
      for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in rows
  )


def title(plan: Plan) -> str:
  """One line about config, devices, mesh and rules."""
  c, where = plan.config, plan.where
  mesh = " x ".join(f"{a} {n}" for a, n in plan.mesh.items() if n > 1)
  count = c.train.micro_batches
  micro = f"{count} micro-batches, " if count > 1 else ""
  return (
    f"{c.name} on {where.name} ({where.num_chips} "
    f"{'GPUs' if where.is_gpu else 'chips'}): mesh {mesh or 'of one'}, rules "
    f"{c.parallel.rules}, remat {c.model.remat}, {micro}{c.model.dtype}"
  )


def _time(task: TaskPlan) -> str:
  time = task.time
  if time is None:
    return f"  {task.name}: no time, it does not fit"
  shares = ", ".join(f"{name} {x:.1%}" for name, x in time.shares().items())
  return (
    f"  {task.name}: compute {_number(time.compute, 3)} s (kernels "
    f"{_number(time.kernels, 3)} s), collectives {time.collectives:.3f} s "
    f"({time.hidden:.3f} s of them hidden); nothing overlapped "
    f"{_number(time.apart, 3)} s, everything {_number(time.overlapped, 3)} s; "
    f"{shares or 'no shares'}"
  )


def _collectives(task: TaskPlan) -> list[str]:
  return [
    f"  {task.name}: {c['count']} {c['kind']} over {c['axes']} "
    f"({c['devices']} devices): {gib(c['bytes']):.3f} GiB a device and step, "
    f"{c['seconds']:.4f} s"
    for c in task.collectives
  ]


def _shares(task: TaskPlan) -> str:
  total = math.fsum(task.flops.values()) or 1.0
  parts = ", ".join(f"{k} {v / total:.1%}" for k, v in task.flops.items())
  return f"  {task.name}: {total / 1e15:.3f} PFLOP a step: {parts}"


def _assumed(plan: Plan) -> str:
  """Note about tasks whose length is assumed; "" without such tasks."""
  names = ", ".join(plan.assumed)
  return f" (assumes steps of the same length for {names})" if names else ""


def to_text(plan: Plan) -> str:
  """Formats a plan as a page of text."""
  if plan.problem:
    return f"{title(plan)}\nnot compiled: {plan.problem}"
  tasks = plan.compiled
  lines = [title(plan), "", _aligned([HEADER, *(_row(t, plan) for t in tasks)])]
  lines += ["", "model FLOPs (recomputation not counted):"]
  lines += [_shares(t) for t in plan.tasks]
  lines += ["time of a step (estimated):", *map(_time, tasks)]
  if plan.state:
    lines.append(
      f"state, as created or restored: {gib(plan.state['all']):.2f} GiB, a "
      f"device {gib(plan.state['device']):.2f} GiB, of these "
      f"{gib(plan.state['alike']):.2f} GiB alike on all"
    )
  moved = [line for t in tasks for line in _collectives(t)]
  lines += ["collectives:", *(moved or ["  none"])]
  if plan.largest:
    lines.append("largest batch that fits:")
    lines += [f"  {name}: {size}" for name, size in plan.largest.items()]
  if plan.days is not None and plan.chip_hours is not None:
    lines.append(
      f"whole recipe, {plan.config.train.steps:,} steps: {plan.days:.2f} days, "
      f"{plan.chip_hours:,.0f} chip-hours{_assumed(plan)}"
    )
  lines.append(f"method: {estimate.METHODS[plan.where.platform]}.")
  if not plan.fits:
    lines.append(
      "It does not fit: lower the batch, raise model.remat, take more "
      "micro-batches, or shard more (parallel.rules); --sweep tries them."
    )
  return "\n".join(lines)


def _verdict(plan: Plan) -> str:
  """Whether a plan fits, and how much memory is free."""
  if not plan.tasks:
    return "no"
  free = min(t.limit - t.needed for t in plan.tasks)
  return f"{'yes' if plan.fits else 'no'} ({gib(free):+.2f} GiB)"


def sweep_text(plans: Sequence[Plan]) -> str:
  """Formats several plans as a table, in their order."""
  rows: list[list[Any]] = [
    [
      "topology",
      "mesh",
      "rules",
      "remat",
      "micro",
      "fits",
      "step s",
      "of peak",
      "days",
      "chip-hours",
    ]
  ]
  for plan in plans:
    c = plan.config
    shares = [t.share_of_peak(plan.where) for t in plan.tasks]
    known = [s for s in shares if s is not None]
    seconds = plan.seconds
    rows.append(
      [
        plan.where.name,
        " ".join(f"{a} {n}" for a, n in plan.mesh.items() if n != 1),
        c.parallel.rules,
        c.model.remat,
        str(c.train.micro_batches),
        _verdict(plan),
        _number(seconds / c.train.steps if seconds else None, 3),
        f"{math.fsum(known) / len(known):.1%}" if known else "-",
        _number(plan.days, 2),
        _number(plan.chip_hours, 0),
      ]
    )
  lines = [_aligned(rows)]
  lines += dict.fromkeys(
    f"days and chip-hours{_assumed(p)}" for p in plans if p.tasks and p.assumed
  )
  # Reasons why plans were not compiled, each once.
  lines += dict.fromkeys(
    f"not compiled: {p.problem}" for p in plans if p.problem
  )
  return "\n".join(lines)
