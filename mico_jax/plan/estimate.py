"""Estimates of seconds from the compiler's figures.

TPU: XLA's static cycles of its operations, including memory time, divided by
the clock. A Pallas call takes, per grid step, the bundles that the compiler
scheduled for it (one cycle each) and 0.35 us, divided by the cores that share
the grid, or the bytes it declares at HBM speed if that is longer; without
bundles, the products it declares at `KERNEL_SHARE` of the peak. GPU: products
at `PRODUCT_SHARE` of the peak, including recomputation, and all other
operations by their bytes at HBM speed. A loop of unknown trip count counts
once.

A collective takes the bytes that a device receives, over the links of its
group. If XLA:TPU runs it asynchronously, it is hidden by the operations
scheduled until its end, except Pallas calls; no other collective overlaps
(`Time.step`). `apart` assumes no overlap and `overlapped` full overlap, so the
true time lies between. Nothing is measured; real steps of other models took 1.2
to 2 times as long as such sums.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mico_jax import aot
from mico_jax.aot.collectives import Collective
from mico_jax.aot.kernels import pallas_calls
from mico_jax.plan.compiled import Facts
from mico_jax.plan.parts import Summary, part_of
from mico_jax.plan.topology import Topology
from mico_jax.train.flops import repeats

GRID_STEP = 0.35e-6  # seconds per grid step on v5e, unknown to the compiler
# Share of the peak of a kernel without bundles: that of attention kernels of 64
# to 88 lanes whose bundles are known.
KERNEL_SHARE = 0.3
PRODUCT_SHARE = 0.6  # of the peak that matrix products reach on GPUs

METHODS = {
  "tpu": (
    "XLA's static cycles over the clock, Pallas calls by their bundles and "
    f"0.35 us a grid step (where bundles are not known, by {KERNEL_SHARE:.0%} "
    "of the peak), loops of unknown length once, collectives as bytes over ICI "
    "bandwidth, less what the compiler scheduled beside them; compiler's "
    "figures, not measured"
  ),
  "cuda": (
    f"matrix products at {PRODUCT_SHARE:.0%} of the peak, everything else as "
    "bytes at HBM speed, loops of unknown length once, collectives as bytes "
    "over NVLink or network, nothing overlapped; not measured"
  ),
}


@dataclass(frozen=True)
class Time:
  """Estimated seconds of a step on each device.

  Attributes:
    parts: computation (XLA's operations and Pallas calls) by part of the step;
      None where the clock is unpublished.
    kernels: share of `parts` in Pallas calls.
    collectives: communication.
    hidden: share of `collectives` during which other operations run.
  """

  parts: dict[str, float] | None
  kernels: float
  collectives: float
  hidden: float = 0.0

  @property
  def compute(self) -> float | None:
    """Time of everything except communication."""
    return None if self.parts is None else math.fsum(self.parts.values())

  @property
  def step(self) -> float | None:
    """Time as scheduled: hidden communication takes no time."""
    return None if self.apart is None else self.apart - self.hidden

  @property
  def apart(self) -> float | None:
    """Time if nothing overlaps."""
    return None if self.compute is None else self.compute + self.collectives

  @property
  def overlapped(self) -> float | None:
    """Time if communication and computation overlap completely."""
    if self.compute is None:
      return None
    return max(self.compute, self.collectives)

  def shares(self) -> dict[str, float]:
    """Shares of the step by part, with visible communication; they sum to 1."""
    if not self.step or self.parts is None:
      return {}
    parts = {**self.parts, "communication": self.collectives - self.hidden}
    return {name: seconds / self.step for name, seconds in parts.items()}


@dataclass(frozen=True)
class Kernel:
  """A Pallas kernel as it is called at one shape.

  Attributes:
    name: of the kernel.
    shapes: of its results, such as "bf16[8,16] f32[8]".
    steps: number of grid steps.
    flops: in its cost estimate.
    bytes: accessed, in its cost estimate.
  """

  name: str
  shapes: str
  steps: int
  flops: float
  bytes: float


def kernels(jaxpr: Any) -> list[Kernel]:
  """The Pallas kernels of a jaxpr; each pair of name and shapes once."""
  kernels = [_kernel(eqn) for eqn in pallas_calls(jaxpr)]
  return list({(k.name, k.shapes): k for k in kernels}.values())


def _kernel(eqn: Any) -> Kernel:
  cost = eqn.params.get("cost_estimate")
  return Kernel(
    name=str(eqn.params["name"]),
    shapes=aot.result_shapes([v.aval for v in eqn.outvars]),
    steps=repeats(eqn),
    flops=float(cost.flops) if cost else 0.0,
    bytes=float(cost.bytes_accessed) if cost else 0.0,
  )


def kernel_seconds(
  facts: Facts, known: Sequence[Kernel], where: Topology
) -> dict[str, float]:
  """Estimated seconds of Pallas calls by part of the step.

  Args:
    facts: of the program.
    known: kernels of its jaxpr.
    where: the topology.

  Raises:
    KeyError: for a call of a kernel that is not in `known`.
  """
  seconds: dict[str, float] = defaultdict(float)
  for call in facts.program.calls if facts.program else ():
    kernel = _called(call, known)
    steps = kernel.steps / where.cores
    bundles = facts.bundles.get(call.label)
    if bundles and where.clock:
      busy = bundles * steps / where.clock
    else:
      busy = kernel.flops / (where.peak * KERNEL_SHARE)
    busy = max(busy, kernel.bytes / where.hbm) + steps * GRID_STEP
    seconds[part_of(call.scope)] += call.count * busy
  return dict(seconds)


def _called(call: aot.Call, known: Sequence[Kernel]) -> Kernel:
  """The kernel of a call, by its name and the shapes of its results."""
  fitting = [k for k in known if k.name == aot.kernel_name(call.label)]
  fitting = fitting or [k for k in known if k.name in call.label]
  if not fitting:
    raise KeyError(
      f"call {call.label} of {call.shapes}: no Pallas kernel of the step has "
      f"that name; known: {', '.join(k.name for k in known) or 'none'}."
    )
  exact = [k for k in fitting if k.shapes == call.shapes]
  return (exact or fitting)[0]


def collective_seconds(
  collective: Collective, where: Topology, places: Sequence[Sequence[int]]
) -> float:
  """Estimated seconds of collectives of one kind and axes.

  Args:
    collective: of the program.
    where: the topology.
    places: coordinates of each device of the mesh, in its order.
  """
  group = [places[i] for i in collective.group]
  return collective.bytes / where.bandwidth(group)


def hidden_seconds(
  program: Summary | None, where: Topology, places: Sequence[Sequence[int]]
) -> float:
  """Estimated seconds of communication during which other operations run.

  Args:
    program: compiled for the topology; None: it does not fit.
    where: the topology.
    places: coordinates of each device of the mesh, in its order.
  """
  if program is None or where.clock is None:
    return 0.0
  return math.fsum(
    min(collective_seconds(x.collective, where, places), x.cycles / where.clock)
    for x in program.asynchronous
  )


def estimate(
  facts: Facts,
  where: Topology,
  *,
  communication: float,
  hidden: float = 0.0,
  known: Sequence[Kernel] = (),
  executed: Mapping[str, float] | None = None,
) -> Time | None:
  """Estimated time of a compiled program; None if it does not fit.

  Args:
    facts: of the program.
    where: the topology.
    communication: seconds of its collectives.
    hidden: see `hidden_seconds`; unknown for GPUs.
    known: Pallas kernels of its jaxpr.
    executed: FLOPs of its products on all devices by part of the step,
      including recomputation; needed for GPUs.
  """
  if facts.program is None:
    return None
  if where.is_gpu:
    speed = where.peak * PRODUCT_SHARE * where.num_devices
    parts = {name: n / speed for name, n in (executed or {}).items()}
    parts["memory"] = facts.traffic / where.hbm
    return Time(parts, 0.0, communication)
  called = kernel_seconds(facts, known, where)
  if where.clock is None:
    return Time(None, math.fsum(called.values()), communication, hidden)
  parts = {n: c / where.clock for n, c in facts.program.cycles.items()}
  for name, seconds in called.items():
    parts[name] = parts.get(name, 0.0) + seconds
  return Time(parts, math.fsum(called.values()), communication, hidden)
