"""Plans a config: the step of every task, the evaluation, state creation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.sharding import SingleDeviceSharding

from mico_jax.config import Config, ConfigError
from mico_jax.kernels import target
from mico_jax.kernels.compiler import Options, step_options
from mico_jax.plan import estimate, flops, topology
from mico_jax.plan.compiled import Facts, compile_facts
from mico_jax.plan.program import (
  CREATE,
  EVALUATION,
  Programs,
  Views,
  views_of,
  with_batch,
)
from mico_jax.plan.topology import GIB, Topology

Say = Callable[[str], None]
DAY = 86400.0


@dataclass(frozen=True)
class TaskPlan:
  """One compiled program: a training step, the evaluation, or state creation.

  Attributes:
    name: of the task.
    batch: global rows.
    share: share of the task in all steps.
    fits: whether it fits the device's memory.
    needed: peak bytes of a device.
    limit: usable bytes of a device.
    parts: bytes by kind: parameters, optimizer, average, batch, temporaries
      (activations, gradients and buffers).
    flops: model FLOPs of the global batch by part of the model; only of
      training steps.
    time: estimate; None if it does not fit.
    collectives: kind, axes, devices, count, bytes and seconds of each.
    costliest: (cycles, name) of XLA's costliest operations.
    views: encoder inputs per row.
    compile_seconds: of lowering and compiling, when it was done.
    cached: whether the compiler's figures come from the cache.
  """

  name: str
  batch: int
  share: float
  fits: bool
  needed: int
  limit: int
  parts: dict[str, int]
  flops: dict[str, float]
  time: estimate.Time | None
  collectives: list[dict[str, Any]]
  costliest: list[tuple[int, str]]
  views: Views
  compile_seconds: float
  cached: bool

  @property
  def seconds(self) -> float | None:
    """Estimated seconds of a step, see `estimate.Time.step`."""
    return self.time.step if self.time else None

  def rate(self, per_row: float) -> float | None:
    """Items per second of something counted per row."""
    return self.batch * per_row / self.seconds if self.seconds else None

  def share_of_peak(self, where: Topology) -> float | None:
    """Model FLOPs as a share of the peak (MFU)."""
    if not self.seconds or not self.flops:
      return None
    peak = where.peak * where.num_devices
    return math.fsum(self.flops.values()) / self.seconds / peak


@dataclass(frozen=True)
class Plan:
  """A config on devices.

  Attributes:
    config: as planned.
    where: the devices.
    mesh: axis -> size.
    tasks: training steps.
    others: the forward pass of the evaluation and the program that creates the
      state, if planned.
    problem: why nothing was compiled; "" if it was.
    largest: task -> the largest batch that fits, where it was searched.
    state: bytes of the training state, see `Programs.state_bytes`; a restore
      reads and places these without a program.
    rest: task that was not compiled -> share of all steps, model FLOPs.
  """

  config: Config
  where: Topology
  mesh: dict[str, int]
  tasks: list[TaskPlan]
  others: list[TaskPlan] = field(default_factory=list)
  problem: str = ""
  largest: dict[str, int] = field(default_factory=dict)
  state: dict[str, int] = field(default_factory=dict)
  rest: dict[str, tuple[float, float]] = field(default_factory=dict)

  @property
  def compiled(self) -> list[TaskPlan]:
    """All compiled programs."""
    return [*self.tasks, *self.others]

  @property
  def fits(self) -> bool:
    """Whether all compiled programs fit."""
    return not self.problem and all(t.fits for t in self.compiled)

  @property
  def seconds(self) -> float | None:
    """Estimated seconds of all steps of the run.

    Tasks that were not compiled are assumed to take as long per FLOP as those
    that were; where their FLOPs are unknown, as long per step.
    """
    parts = [(t.share, t.seconds) for t in self.tasks]
    if any(s is None for _, s in parts) or not parts:
      return None
    mean = math.fsum(share * s for share, s in parts if s)
    shares = math.fsum(share for share, _ in parts)
    done = math.fsum(t.share * math.fsum(t.flops.values()) for t in self.tasks)
    speed = mean / done if done else 0.0  # seconds per FLOP
    for share, amount in self.rest.values():
      mean += share * amount * speed
      shares += share
    return self.config.train.steps * mean / shares

  @property
  def assumed(self) -> list[str]:
    """Tasks whose steps are assumed to take as long as those of the others."""
    known = {t.name for t in self.tasks} | set(self.rest)
    return [name for name in self.config.tasks if name not in known]

  @property
  def days(self) -> float | None:
    """Estimated days of the run."""
    return self.seconds / DAY if self.seconds else None

  @property
  def chip_hours(self) -> float | None:
    """Estimated chip-hours of the run."""
    return self.seconds * self.where.num_chips / 3600 if self.seconds else None

  def as_dict(self) -> dict[str, Any]:
    """The plan in JSON types."""
    return {
      "config": self.config.name,
      "topology": self.where.name,
      "chips": self.where.num_chips,
      "devices": self.where.num_devices,
      "mesh": self.mesh,
      "rules": self.config.parallel.rules,
      "remat": self.config.model.remat,
      "micro_batches": self.config.train.micro_batches,
      "dtype": self.config.model.dtype,
      "fits": self.fits,
      "problem": self.problem,
      "tasks": [_task_dict(t, self.where) for t in self.tasks],
      "others": [_task_dict(t, self.where) for t in self.others],
      "largest_batch": self.largest,
      "state_bytes": self.state,
      "steps": self.config.train.steps,
      "days": self.days,
      "chip_hours": self.chip_hours,
      "assumed": self.assumed,
      "method": estimate.METHODS[self.where.platform],
    }


def _task_dict(task: TaskPlan, where: Topology) -> dict[str, Any]:
  return {
    **dataclasses.asdict(task),
    "seconds": task.seconds,
    "seconds_apart": task.time and task.time.apart,
    "seconds_overlapped": task.time and task.time.overlapped,
    "shares": task.time.shares() if task.time else {},
    "mfu": task.share_of_peak(where),
    "images_per_second": task.rate(task.views.images),
    "tokens_per_second": task.rate(task.views.tokens),
    "free": task.limit - task.needed,
  }


def _collectives(
  facts: Facts, where: Topology, places: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
  program = facts.program
  return [
    {
      "kind": c.kind,
      "axes": c.axes,
      "devices": len(c.group),
      "count": c.count,
      "bytes": c.bytes,
      "seconds": estimate.collective_seconds(c, where, places),
    }
    for c in (program.collectives if program else [])
  ]


class Planner:
  """Plans a config on devices, one program at a time.

  Attributes:
    config: of the run.
    where: the devices.
    programs: the programs to compile.
  """

  def __init__(self, config: Config, where: Topology, *, say: Say = print):
    """Checks the config against the devices.

    Args:
      config: of the run.
      where: the devices.
      say: called with a line about each program before it is compiled.

    Raises:
      ConfigError: for a config that does not fit the devices, or if the
        compiler is missing.
    """
    self.where = where
    self.programs = Programs.of(config, where.devices())
    self.config = self.programs.config
    self._say = say
    self._places = where.places(list(self.programs.mesh.devices.flat))

  @property
  def mesh(self) -> dict[str, int]:
    """Axis -> size."""
    return dict(self.programs.mesh.shape)

  def state_bytes(self) -> dict[str, int]:
    """Bytes of the training state, see `Plan.state`."""
    return self.programs.state_bytes()

  def _plan(
    self,
    name: str,
    function: Any,
    args: Any,
    *,
    options: Options | None = None,
    **known: Any,
  ) -> TaskPlan:
    self._say(f"compiling {name} for {self.where.name}")
    with target.use(self.where.target):
      traced = function.trace(*args)
    facts = compile_facts(traced, self.where, self.mesh, options)
    moved = _collectives(facts, self.where, self._places)
    jaxpr = traced.jaxpr.jaxpr
    parts = known.pop("parts")
    return TaskPlan(
      name=name,
      fits=facts.fits,
      needed=facts.needed,
      limit=facts.limit or self.where.usable,
      parts={**parts, "temporaries": facts.temporaries},
      time=estimate.estimate(
        facts,
        self.where,
        communication=math.fsum(c["seconds"] for c in moved),
        hidden=estimate.hidden_seconds(facts.program, self.where, self._places),
        known=estimate.kernels(jaxpr),
        executed=flops.count(jaxpr) if self.where.is_gpu else None,
      ),
      collectives=moved,
      costliest=facts.program.costliest if facts.program else [],
      compile_seconds=facts.seconds,
      cached=facts.cached,
      **known,
    )

  def _step_options(self) -> Options | None:
    """Compiler options of a training run's steps."""
    device = self.programs.mesh.devices.flat[0]
    with target.use(self.where.target):
      return step_options(SingleDeviceSharding(device))

  def task(self, name: str) -> TaskPlan:
    """Plans the training step of a task.

    Raises:
      ConfigError: for an unknown task, listing the tasks.
    """
    if name not in self.config.tasks:
      raise ConfigError(
        f"no task {name!r}; the config has {', '.join(self.config.tasks)}."
      )
    function, args = self.programs.train(name)
    return self._plan(
      name,
      function,
      args,
      options=self._step_options(),
      batch=self.config.tasks[name].batch_size,
      share=self.programs.share(name),
      parts=self.programs.memory(name),
      flops=self.programs.flops(name),
      views=views_of(self.config, self.config.tasks[name]),
    )

  def evaluation(self) -> TaskPlan:
    """Plans the forward pass of the evaluation."""
    function, args = self.programs.evaluate()
    first = next(iter(self.config.tasks))
    contexts = self.programs.contexts()
    task = dataclasses.replace(
      self.config.tasks[first],
      objectives={"contrastive": tuple(f"t{c}" for c in contexts)},
    )
    return self._plan(
      EVALUATION,
      function,
      args,
      batch=self.config.evaluation.batch_size,
      share=0.0,
      parts={"parameters": self.programs.memory(first)["parameters"]},
      flops={},
      views=views_of(self.config, task),
    )

  def create(self) -> TaskPlan:
    """Plans the program that creates the sharded training state."""
    parts = self.programs.memory(next(iter(self.config.tasks)))
    del parts["batch"]
    return self._plan(
      CREATE,
      *self.programs.create(),
      batch=0,
      share=0.0,
      parts=parts,
      flops={},
      views=Views(0, 0),
    )


def make_plan(
  config: Config,
  name: str,
  *,
  batch: int = 0,
  tasks: Sequence[str] = (),
  others: bool = True,
  count_rest: bool = False,
  say: Say = print,
) -> Plan:
  """Plans a config on devices.

  Args:
    config: of the run.
    name: of the topology, such as "v5e:16x16".
    batch: global rows of every task; 0: those of the config.
    tasks: to plan; empty: all.
    others: whether to plan the forward pass of the evaluation and the creation
      of the state as well.
    count_rest: count the FLOPs of tasks that are not planned, so that the
      length of the whole run includes them.
    say: called with a line about each program.

  Raises:
    ConfigError: for an unknown topology, or a config that does not fit it.
  """
  if batch:
    config = with_batch(config, batch)
  planner = Planner(config, topology.parse(name), say=say)
  plans = [planner.task(t) for t in tasks or planner.config.tasks]
  programs, rest = planner.programs, {}
  for task in planner.config.tasks if count_rest else ():
    if tasks and task not in tasks:
      amount = math.fsum(programs.flops(task).values())
      rest[task] = (programs.share(task), amount)
  return Plan(
    config=planner.config,
    where=planner.where,
    mesh=planner.mesh,
    tasks=plans,
    others=[planner.evaluation(), planner.create()] if others else [],
    state=planner.state_bytes(),
    rest=rest,
  )


def gib(size: float) -> float:
  """Bytes in GiB."""
  return size / GIB
