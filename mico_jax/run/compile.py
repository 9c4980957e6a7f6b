"""Compiles the steps of all tasks before the first one runs.

Tasks are traced one after the other, as Linen changes fields of module classes
while it makes modules, which another thread may be reading. Compilation, which
takes most of the time, runs in parallel.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from mico_jax.config import Config, ObjectivesConfig, to_json
from mico_jax.data.pipeline import batch_spec
from mico_jax.kernels.compiler import step_options
from mico_jax.memory import release_memory
from mico_jax.objectives import select
from mico_jax.parallel import sharding
from mico_jax.run.setup import Session
from mico_jax.train.flops import count_flops, is_plain, trace_model
from mico_jax.train.state import TrainState
from mico_jax.train.step import Program, make_train_step

Name = TypeVar("Name")

# Steps compiled at a time: each takes some 600 MB on CPU, and XLA itself uses
# all cores.
COMPILE_THREADS = 2


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """The compiled step of a task.

  Attributes:
    run: (state, batch) -> (state, metrics).
    flops: model FLOPs of the step on all devices together.
  """

  run: Any
  flops: float

  def __call__(self, state: TrainState, batch: Any) -> Any:
    """Runs the step."""
    return self.run(state, batch)


def counts_as_model(config: Config, jaxpr: Any) -> bool:
  """Whether a traced step has exactly the matrix products of the model.

  Its FLOPs are then the model FLOPs, without another trace of the model alone.

  Args:
    config: of the run.
    jaxpr: of the step.
  """
  embeds_twice = config.train.micro_batches > 1
  multiplies_gradients = config.optimizer.name == "muon"
  return not embeds_twice and not multiplies_gradients and is_plain(jaxpr)


def programs_of(session: Session, start: int = 0) -> dict[Program, Session]:
  """The programs of the steps from `start` on, and whose config each has."""
  found = {}
  for stage, part in session.stages:
    order = part.order()
    for name, task in part.config.tasks.items():
      if task.steps and stage.end > start:
        for length in order.lengths(name):
          found[Program(stage.name, name, length)] = part
  return found


def compile_steps(
  session: Session, state: TrainState
) -> dict[Program, CompiledStep]:
  """Compiles all that the steps from a state on run, ahead, in threads.

  Programs of several stages that are the same are compiled once.
  """
  programs = programs_of(session, int(state.step))
  first: dict[str, Program] = {}
  same = {
    program: first.setdefault(_content(part.config, program), program)
    for program, part in programs.items()
  }
  compiled = compile_all(
    list(first.values()),
    lambda program: _lower(programs[program], program, state),
  )
  return {program: compiled[other] for program, other in same.items()}


def _content(config: Config, program: Program) -> str:
  """Text of all fields that a program depends on; equal ones are the same.

  Left out are objectives of other tasks, and what tells only which batches are
  read and when.
  """
  task = config.tasks[program.task]
  rest = dataclasses.replace(
    config, stages={}, tasks={}, objectives=ObjectivesConfig()
  )
  order = {"steps": 0, "sources": {}, "temperature": 0.0, "mixture": {}}
  return repr(
    (
      program.length,
      to_json(rest),
      dataclasses.replace(task, **order),
      select(config.objectives, task),
    )
  )


def _lower(
  session: Session, program: Program, state: TrainState
) -> tuple[Any, float]:
  """The lowered step of a task and its model FLOPs."""
  config = session.config
  rules = sharding.rules_by_name(config.parallel.rules)
  rows = sharding.batch_sharding(session.mesh, rules)
  info = session.tokenizer.info
  shapes_of = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree
  )

  task = config.tasks[program.task]
  step = make_train_step(
    session.model,
    config,
    task,
    info,
    session.mesh,
    optimizer=session.optimizer,
  )
  batch = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows),
    batch_spec(config, program.task, text_length=program.length),
    is_leaf=lambda s: hasattr(s, "dtype"),
  )
  traced = step.trace(state, batch)
  jaxpr = traced.jaxpr
  if not counts_as_model(config, jaxpr):
    jaxpr = trace_model(
      config,
      task,
      info,
      optimizer=session.optimizer,
      params=shapes_of(state.params),
      batch=shapes_of(batch),
    )
  return traced.lower(), count_flops(jaxpr)


def compile_all(
  names: Sequence[Name], lower: Callable[[Name], tuple[Any, float]]
) -> dict[Name, CompiledStep]:
  """Compiles steps in threads.

  Args:
    names: of the steps.
    lower: name -> the lowered step and its model FLOPs; called by one thread
      at a time.
  """
  tracing = threading.Lock()
  options = step_options()

  def compile_one(name: Name) -> CompiledStep:
    with tracing:
      lowered, flops = lower(name)
    compiled = lowered.compile(compiler_options=options)
    release_memory()
    return CompiledStep(compiled, flops)

  with ThreadPoolExecutor(max_workers=COMPILE_THREADS) as pool:
    return dict(zip(names, pool.map(compile_one, names), strict=True))
