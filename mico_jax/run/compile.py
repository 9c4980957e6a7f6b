"""Compiles the step of every task before the first one runs."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from mico_jax import models
from mico_jax.data.pipeline import batch_spec
from mico_jax.parallel import sharding
from mico_jax.run.instruments import release_memory
from mico_jax.run.setup import Session
from mico_jax.train.flops import count_flops, trace_model
from mico_jax.train.state import TrainState
from mico_jax.train.step import make_train_step

# Tasks compiled at a time: each takes some 600 MB on CPU, and XLA itself uses
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


def compile_steps(session: Session, state: TrainState) -> dict[str, Any]:
  """Compiles the step of every task that has any, ahead, in threads."""
  config = session.config
  rules = sharding.rules_by_name(config.parallel.rules)
  rows = sharding.batch_sharding(session.mesh, rules)

  info = session.tokenizer.info
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state.params
  )

  def compile_task(name: str) -> CompiledStep:
    step = make_train_step(
      models.build(config.model),
      config,
      config.tasks[name],
      info,
      session.mesh,
      optimizer=session.optimizer,
    )
    batch = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows),
      batch_spec(config, name),
      is_leaf=lambda s: hasattr(s, "dtype"),
    )
    compiled = step.trace(state, batch).lower().compile()
    jaxpr = trace_model(
      config,
      config.tasks[name],
      info,
      optimizer=session.optimizer,
      params=params,
      batch=jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch
      ),
    )
    release_memory()
    return CompiledStep(compiled, count_flops(jaxpr))

  names = [name for name, task in config.tasks.items() if task.steps]
  with ThreadPoolExecutor(max_workers=COMPILE_THREADS) as pool:
    return dict(zip(names, pool.map(compile_task, names), strict=True))
