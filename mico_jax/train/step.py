"""One step function for every task.

  batch -> encode once -> objectives -> loss -> gradient -> update

A step whose loss or gradient norm is not finite changes nothing but the step
number and the counters of skipped steps; it costs no host synchronisation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from mico_jax import rng
from mico_jax.aliases import Batch, Params, SpecialIds
from mico_jax.config import Config, TaskConfig
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.models import MiCo
from mico_jax.objectives import Mean, select, total_loss
from mico_jax.objectives.base import scalar
from mico_jax.parallel import sharding
from mico_jax.train import encode, grad_cache, lora
from mico_jax.train.layout import kernels_on, row_partition
from mico_jax.train.optimizer import Optimizer, make_optimizer
from mico_jax.train.state import (
  TrainState,
  abstract_params,
  create_state,
  on_device,
  state_shardings,
)

Loss = Callable[
  ..., tuple[Float[Array, ""], tuple[dict[str, Mean], dict[str, Array]]]
]
Step = jax.stages.Wrapped


class Program(NamedTuple):
  """What a step runs: one of the compiled programs of a run.

  Attributes:
    stage: of the run, by name.
    task: of the step.
    length: of the texts in its batch, see `mico_jax.data.order`.
  """

  stage: str
  task: str
  length: int


def make_loss(
  model: MiCo,
  config: Config,
  task: TaskConfig,
  tokenizer: SpecialIds,
  *,
  partition: BatchSharding | None = None,
) -> Loss:
  """The loss of a task as a pure function.

  Args:
    model: from `mico_jax.models.build`.
    config: of the run.
    task: one of config.tasks.
    tokenizer: special ids (`Tokenizer.info`).
    partition: how the rows lie on the mesh, from `layout.row_partition`.

  Returns:
    loss(params, batch, *, step, train=True) -> (loss, (metrics, aux)), see
    `mico_jax.objectives.total_loss`. `step` and config.seed key every draw.

  Raises:
    ConfigError: for objectives, groups or a mining group that do not fit.
  """
  selected = select(config.objectives, task)
  plan = encode.make_plan(selected, task)
  for objective, _ in selected.values():
    objective.check_rows(task.batch_size)

  def loss(
    params: Params, batch: Batch, *, step: Int[Array, ""], train: bool = True
  ) -> tuple[Float[Array, ""], tuple[dict[str, Mean], dict[str, Array]]]:
    params = lora.merge(params, alpha=config.optimizer.lora_alpha)
    inputs = encode.prepare(
      model,
      config,
      params,
      batch,
      plan,
      tokenizer=tokenizer,
      row_keys=rng.row_keys(config.seed, step, batch["row"]),
      train=train,
      partition=partition,
    )
    value, metrics, aux = total_loss(selected, inputs)
    metrics |= encode.temperatures(model, params, plan)
    return value, (metrics, aux)

  return loss


def _averaged(
  ema: Params, params: Params, step: Int[Array, ""], decay: float
) -> Params:
  """Moving average; early on it forgets faster, so that it starts unbiased."""
  done = step.astype(jnp.float32)
  rate = jnp.minimum(jnp.float32(decay), (1 + done) / (10 + done))
  return jax.tree.map(
    lambda a, p: rate.astype(p.dtype) * a + (1 - rate).astype(p.dtype) * p,
    ema,
    params,
  )


def _floor_temperature(params: Params, floor: float) -> Params:
  """Keeps the temperature at its floor, where its gradient still lives."""
  if not floor or "temperature" not in params:
    return params
  value = jnp.maximum(params["temperature"], floor)
  least = jnp.log(floor / value)  # so does the product with a head's factor
  logs = {
    name: jnp.maximum(log, least)
    for name, log in params.get("temperature_log", {}).items()
  }
  more = {"temperature_log": logs} if logs else {}
  return {**params, "temperature": value, **more}


def direct_gradient(loss: Loss, freeze: Any) -> grad_cache.Gradient:
  """The gradient of a loss, the whole batch at once."""

  def gradient(params: Params, batch: Batch, *, step: Int[Array, ""]) -> Any:
    objective = lambda p: loss(freeze(p), batch, step=step)
    return jax.value_and_grad(objective, has_aux=True)(params)

  return gradient


def update_state(
  state: TrainState,
  gradient: grad_cache.Gradient,
  batch: Batch,
  *,
  optimizer: Optimizer,
  config: Config,
) -> tuple[TrainState, dict[str, Mean], dict[str, Array]]:
  """One step as a pure function, to be jitted.

  Returns:
    (new state, metrics, aux arrays of the objectives).
  """
  (value, (metrics, aux)), grads = gradient(
    state.params, batch, step=state.step
  )
  norm = optimizer.norm(grads)
  finite = jnp.isfinite(value) & jnp.isfinite(norm)
  params, opt_state = optimizer.update(
    grads, state.opt_state, state.params, step=state.step, norm=norm
  )
  if jax.tree.all(optimizer.mask) or optimizer.mask.get("temperature"):
    params = _floor_temperature(params, config.model.temperature_min)
  ema = state.ema
  if ema is not None:
    ema = _averaged(ema, params, state.step, config.optimizer.ema)
  kept = (state.params, state.opt_state, state.ema)
  params, opt_state, ema = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (params, opt_state, ema),
    kept,
  )
  bad = (~finite).astype(jnp.int32)
  new = TrainState(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    ema=ema,
    skipped=(state.skipped + 1) * bad,
    total_skipped=state.total_skipped + bad,
  )
  metrics = {
    **metrics,
    "grad_norm": scalar(norm),
    "learning_rate": scalar(optimizer.schedule(state.step)),
    "skipped": scalar(bad.astype(jnp.float32)),
  }
  return new, metrics, aux


def of_task(optimizer: Optimizer, task: TaskConfig) -> Optimizer:
  """The optimizer of a run with the clipping of a task's steps."""
  if task.clip_norm < 0:
    return optimizer
  return dataclasses.replace(optimizer, clip_norm=task.clip_norm)


def make_train_step(
  model: MiCo,
  config: Config,
  task: TaskConfig,
  tokenizer: SpecialIds,
  mesh: Mesh,
  *,
  optimizer: Optimizer | None = None,
  return_aux: bool = False,
  donate: bool = True,
) -> Step:
  """The jitted training step of a task.

  Args:
    model: see `make_loss`.
    config: see `make_loss`.
    task: see `make_loss`.
    tokenizer: see `make_loss`.
    mesh: from `mico_jax.parallel.mesh.make_mesh`.
    optimizer: shared by the tasks of a run; None: made from the config.
    return_aux: also return the objectives' aux arrays (mined indices).
    donate: reuse the buffers of the old state, which is then gone.

  Returns:
    step(state, batch) -> (state, metrics), or with aux as third. `batch` comes
    from `parallel.sharding.put_batch`; metrics go to a
    `train.metrics.Aggregator`.

  Raises:
    ConfigError: for options that do not fit together.
  """
  abstract = abstract_params(model, config)
  if optimizer is None:
    optimizer = make_optimizer(config.optimizer, abstract, config.train.steps)
  optimizer = of_task(optimizer, task)
  rules = sharding.rules_by_name(config.parallel.rules)
  gradient = _make_gradient(
    model, config, task, tokenizer, optimizer, row_partition(mesh, rules)
  )
  create = functools.partial(create_state, ema=config.optimizer.ema > 0)
  shapes = jax.eval_shape(lambda p: create(p, optimizer), abstract)
  shardings = state_shardings(
    mesh, model, shapes, rules, offload=config.parallel.offload
  )

  def step(state: TrainState, batch: Batch) -> Any:
    with kernels_on(mesh, rules):
      state = on_device(state, shardings)
      outputs = update_state(
        state, gradient, batch, optimizer=optimizer, config=config
      )
    return outputs if return_aux else outputs[:2]

  alone = sharding.replicated(mesh)
  return jax.jit(
    step,
    in_shardings=(shardings, sharding.batch_sharding(mesh, rules)),
    out_shardings=(shardings, *([alone] * (1 + return_aux))),
    donate_argnums=(0,) if donate else (),
  )


def _make_gradient(
  model: MiCo,
  config: Config,
  task: TaskConfig,
  tokenizer: SpecialIds,
  optimizer: Optimizer,
  partition: BatchSharding | None,
) -> grad_cache.Gradient:
  """The gradient of a task, at once or in micro-batches."""
  if config.train.micro_batches > 1:
    return grad_cache.make_gradient(
      model,
      config,
      task,
      tokenizer,
      partition=partition,
      freeze=optimizer.freeze,
    )
  loss = make_loss(model, config, task, tokenizer, partition=partition)
  return direct_gradient(loss, optimizer.freeze)
