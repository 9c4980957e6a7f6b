"""The state that a run carries from step to step.

The parameter tree holds the model's parameters, plus "objective" for what
objectives bring themselves and "lora" for low-rank deltas, if any.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from mico_jax import axes
from mico_jax.aliases import Params, PyTree
from mico_jax.config import Config
from mico_jax.models import MiCo
from mico_jax.objectives import OBJECTIVES, make_objective
from mico_jax.parallel import sharding
from mico_jax.train import lora
from mico_jax.train.optimizer import Optimizer, make_optimizer


@flax.struct.dataclass
class TrainState:
  """The state of a run, a pytree.

  Attributes:
    step: int32 scalar: steps done; also the state of the data.
    params: float32 parameters.
    opt_state: of the optimizer; frozen leaves have none.
    ema: averaged parameters, or None.
    skipped: int32 scalar: steps skipped in a row because of a non-finite loss
      or gradient.
    total_skipped: int32 scalar: steps skipped in the run.

  The same structure also carries shapes or shardings in place of arrays, so
  the fields have no array types.
  """

  step: Any
  params: PyTree
  opt_state: PyTree
  ema: Any  # Params or None; a sharding tree while jit resolves it
  skipped: Any
  total_skipped: Any


def used_objectives(config: Config) -> tuple[str, ...]:
  """Objectives that any task of the config uses, in the table's order."""
  used = {n for task in config.tasks.values() for n in task.objectives}
  return tuple(name for name in OBJECTIVES if name in used)


def init_params(model: MiCo, config: Config, key: Key[Array, ""]) -> Params:
  """New parameters of a run: model, objectives, deltas."""
  return _completed(model.init(key), config, key)


def _completed(params: Params, config: Config, key: Key[Array, ""]) -> Params:
  """A model's parameters with those of objectives, and deltas."""
  params = dict(params)
  extra = {}
  for index, name in enumerate(used_objectives(config)):
    objective = make_objective(config.objectives, name)
    tensors = objective.init(jax.random.fold_in(key, index + 1), config.model)
    if tensors:
      extra[name] = tensors
  if extra:
    params["objective"] = extra
  if config.optimizer.lora_rank > 0:
    params[lora.KEY] = lora.init(
      jax.random.fold_in(key, 0), params, config.optimizer
    )
  return params


def abstract_params(model: MiCo, config: Config) -> PyTree:
  """Shapes and dtypes of `init_params`, without allocating them."""
  return jax.eval_shape(  # of the model they are known: it is slow to trace
    lambda params, key: _completed(params, config, key),
    model.abstract_params(),
    jax.random.key(0),
  )


@runtime_checkable
class HasAxes(Protocol):
  """A model, or another object that knows the axes of its parameters."""

  def logical_axes(self) -> PyTree:
    """The names of each parameter's axes."""
    ...


def logical_axes(model: HasAxes, params: Params) -> PyTree:
  """Logical axes of a run's parameters; those outside the model have none."""
  known = model.logical_axes()
  extra: Iterable[str] = (k for k in params if k not in known)
  return {
    **known,
    **{
      k: jax.tree.map(lambda leaf: (axes.UNSHARDED,) * leaf.ndim, params[k])
      for k in extra
    },
  }


def create_state(
  params: Params, optimizer: Optimizer, *, ema: bool = False
) -> TrainState:
  """The state at step 0 of a run with given parameters."""
  # Distinct buffers: a donated state may not hold one array twice.
  number = lambda: jnp.zeros((), jnp.int32)
  return TrainState(
    step=number(),
    params=params,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, params) if ema else None,
    skipped=number(),
    total_skipped=number(),
  )


OFFLOADABLE = ("opt_state", "ema")
HOST = "pinned_host"  # memory kind


def state_shardings(
  mesh: Mesh,
  model: HasAxes,
  abstract: TrainState,
  rules: sharding.Rules,
  *,
  offload: Sequence[str] = (),
) -> TrainState:
  """A tree of shardings for a state: parameters by their logical axes.

  Args:
    mesh: of the run.
    model: from `mico_jax.models.build`.
    abstract: the state or its shapes.
    rules: logical axis -> mesh axes.
    offload: parts of `OFFLOADABLE` that live in the host's memory.
  """
  logical = logical_axes(model, abstract.params)
  params = sharding.param_shardings(
    mesh, logical, rules, shapes=abstract.params
  )
  alone = sharding.replicated(mesh)
  places = TrainState(
    step=alone,
    params=params,
    opt_state=sharding.like_params(
      mesh, abstract.opt_state, abstract.params, params
    ),
    ema=None if abstract.ema is None else params,
    skipped=alone,
    total_skipped=alone,
  )
  on_host = {
    name: jax.tree.map(
      lambda leaf, place: place.with_memory_kind(HOST) if leaf.ndim else place,
      getattr(abstract, name),
      getattr(places, name),
    )
    for name in offload
  }
  return dataclasses.replace(places, **on_host)


def on_device(state: TrainState, places: TrainState) -> TrainState:
  """The state with its parts on the host moved to the devices.

  Args:
    state: inside a jitted function.
    places: from `state_shardings`.
  """

  def fetch(leaf: Any, place: Any) -> Any:
    if place.memory_kind != HOST:
      return leaf
    return jax.device_put(leaf, place.with_memory_kind("device"))

  return jax.tree.map(fetch, state, places)


def _creation(
  model: MiCo,
  config: Config,
  mesh: Mesh,
  seed: int | None,
  optimizer: Optimizer | None,
) -> tuple[Callable[[], TrainState], TrainState, TrainState]:
  """The function that creates a state, its shapes and its shardings."""
  seed = config.seed if seed is None else seed
  shapes = abstract_params(model, config)
  if optimizer is None:
    optimizer = make_optimizer(config.optimizer, shapes, config.train.steps)
  of_params = functools.partial(
    create_state, optimizer=optimizer, ema=config.optimizer.ema > 0
  )

  def create() -> TrainState:
    return of_params(init_params(model, config, jax.random.key(seed)))

  abstract = jax.eval_shape(of_params, shapes)
  rules = sharding.rules_by_name(config.parallel.rules)
  offload = config.parallel.offload
  places = state_shardings(mesh, model, abstract, rules, offload=offload)
  return create, abstract, places


def abstract_state(
  model: MiCo,
  config: Config,
  mesh: Mesh,
  *,
  optimizer: Optimizer | None = None,
) -> TrainState:
  """Shapes, dtypes and shardings of `init_state`; nothing is allocated."""
  _, shapes, places = _creation(model, config, mesh, None, optimizer)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    places,
  )


def init_state(
  model: MiCo,
  config: Config,
  mesh: Mesh,
  *,
  seed: int | None = None,
  optimizer: Optimizer | None = None,
) -> TrainState:
  """Creates a new state, each leaf directly where it belongs.

  Args:
    model: from `mico_jax.models.build`.
    config: of the run.
    mesh: from `mico_jax.parallel.mesh.make_mesh`.
    seed: of the parameters; None: config.seed.
    optimizer: None: `make_optimizer` of the config.
  """
  create, _, places = _creation(model, config, mesh, seed, optimizer)
  return jax.jit(create, out_shardings=places)()
