"""Search for the largest batch that fits, and for the best of several plans.

Memory grows linearly with the rows of a device once their number is a multiple
of the compiler's padding, so a line through two compiled batches predicts the
largest batch; two more compilations verify it: it fits and the next one does
not. The compiler also reports the need of a program that does not fit, so such
points help to fit the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mico_jax import axes
from mico_jax.config import Config, ConfigError
from mico_jax.parallel.choice import Choice
from mico_jax.parallel.mesh import PIECES
from mico_jax.plan import topology
from mico_jax.plan.planner import Plan, Planner, Say
from mico_jax.plan.program import with_batch

# Batch -> (bytes needed, whether it fits).
Probe = Callable[[int], tuple[int, bool]]


def largest(
  probe: Probe, *, limit: int, granule: int, start: int, attempts: int = 12
) -> int:
  """The largest multiple of `granule` that fits; 0 if none does.

  Args:
    probe: compiles a batch.
    limit: usable bytes.
    granule: smallest number of rows that the devices can share.
    start: first guess, a multiple of `granule`.
    attempts: most calls of `probe`.

  Raises:
    ConfigError: if the attempts do not suffice.
  """
  seen: dict[int, tuple[int, bool]] = {}

  def look(batch: int) -> bool:
    if batch not in seen:
      if len(seen) >= attempts:
        raise ConfigError(
          f"no largest batch within {attempts} compiles; tried "
          f"{', '.join(str(b) for b in sorted(seen))}."
        )
      seen[batch] = probe(batch)
    return seen[batch][1]

  first = max(start // granule, 1) * granule
  look(first)
  look(
    max(first // granule // 2, 1) * granule if first > granule else 2 * first
  )
  while True:
    fits = [b for b, (_, ok) in seen.items() if ok]
    fails = [b for b, (_, ok) in seen.items() if not ok]
    low, high = max(fits, default=0), min(fails, default=0)
    if high and high - low <= granule:
      return low
    look(_guess(seen, limit, granule, low, high))


def _guess(
  seen: dict[int, tuple[int, bool]],
  limit: int,
  granule: int,
  low: int,
  high: int,
) -> int:
  """The next batch to try, where the line of memory meets the limit.

  Bisects after four probes: memory that grows in steps misleads the line.
  """
  if high and len(seen) >= 4:
    return (low + high) // 2 // granule * granule or granule
  batches = np.array(sorted(seen), np.float64)
  needed = np.array([seen[int(b)][0] for b in batches], np.float64)
  slope, fixed = np.polyfit(batches, needed, 1)
  guess = 2 * low
  if slope * batches[0] > 1e-6 * needed[0]:
    # Slightly above the limit, which the line may meet exactly.
    guess = int((limit * (1 + 1e-9) - fixed) / slope) // granule * granule
  if guess <= low:
    guess = low + granule
  if high and guess >= high:
    guess = high - granule
  return max(guess, granule)


def granule_of(planner: Planner) -> int:
  """Number of rows of which a batch must be a multiple."""
  over = dict(planner.programs.rules)[axes.BATCH] or ()
  names = (over,) if isinstance(over, str) else over
  shards = math.prod(planner.mesh[name] for name in names)
  group = planner.config.objectives.matching.group_rows or 1
  count = planner.config.train.micro_batches
  if count > 1:  # groups lie within the rows of a micro-batch on a device
    return shards * count * group
  return math.lcm(shards, group)


def largest_batch(
  config: Config, name: str, task: str, *, say: Say = print
) -> int:
  """The largest global batch of a task that fits a slice.

  Args:
    config: of the run.
    name: of the topology.
    task: of the config.
    say: called with a line about each program.

  Raises:
    ConfigError: for an unknown topology or a config that does not fit it.
  """
  where = topology.parse(name)
  start = Planner(config, where, say=say)
  granule = granule_of(start)

  def probe(batch: int) -> tuple[int, bool]:
    planner = Planner(with_batch(config, batch, task), where, say=say)
    plan = planner.task(task)
    say(f"batch {batch}: {'fits' if plan.fits else 'does not fit'}")
    return plan.needed, plan.fits

  return largest(
    probe,
    limit=where.usable,
    granule=granule,
    start=config.tasks[task].batch_size,
  )


# --------------------------------------------------------------------- sweep
# Rules -> meshes that a sweep tries.
MESHES: dict[str, tuple[dict[str, int], ...]] = {
  "ddp": ({axes.DATA: -1},),
  "fsdp": ({axes.FSDP: -1}, {axes.DATA: -1, axes.FSDP: PIECES}),
  "fsdp_tp": ({axes.FSDP: -1, axes.TENSOR: 4},),
  "fsdp_sp": ({axes.FSDP: -1, axes.SEQUENCE: 4},),
}


def choices(
  rules: Sequence[str], remats: Sequence[str], micro_batches: Sequence[int]
) -> list[Choice]:
  """All combinations, with the meshes that `MESHES` lists for the rules."""
  return [
    Choice(rule, mesh, remat, count)
    for rule in rules
    for mesh in MESHES[rule]
    for remat in remats
    for count in micro_batches
  ]


def sweep(
  config: Config,
  names: Sequence[str],
  choices: Sequence[Choice],
  *,
  task: str = "",
  say: Say = print,
) -> list[Plan]:
  """Plans one task over topologies and choices.

  A choice that does not suit the topology, or whose training state alone
  exceeds the memory, is not compiled.

  Args:
    config: of the run.
    names: of topologies.
    choices: to try on each topology.
    task: to compare by; "": the one with most steps.
    say: called with a line about each program.

  Returns:
    Plans, best first: those that fit by chip-hours, then the others by the
    memory that they lack.
  """
  task = task or max(config.tasks, key=lambda t: config.tasks[t].steps)
  plans = []
  for name in names:
    for choice in choices:
      plans.append(_one(choice.apply(config), name, task, say))
      jax.clear_caches()
  return sorted(plans, key=_rank)


def _one(config: Config, name: str, task: str, say: Say) -> Plan:
  where = topology.parse(name)
  try:
    planner = Planner(config, where, say=say)
  except ConfigError as error:
    mesh = dict(config.parallel.mesh)
    return Plan(config, where, mesh, tasks=[], problem=str(error))
  known: dict[str, Any] = dict(
    config=planner.config, where=where, mesh=planner.mesh
  )
  state = sum(planner.programs.memory(task).values())
  if state > where.usable:
    lacking = (state - where.usable) / topology.GIB
    return Plan(
      **known, tasks=[], problem=f"state alone lacks {lacking:.1f} GiB"
    )
  try:
    return Plan(**known, tasks=[planner.task(task)])
  except ConfigError as error:  # micro-batches that do not divide
    return Plan(**known, tasks=[], problem=str(error))


def _rank(plan: Plan) -> tuple[int, float]:
  if plan.fits:
    return 0, plan.chip_hours or float("inf")
  if not plan.tasks:
    return 2, 0.0
  return 1, max(t.needed - t.limit for t in plan.tasks)
