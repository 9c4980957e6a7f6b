"""Optimizer state in bfloat16, and state that waits on the host."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mico_jax.config import ConfigError, OptimizerConfig, ParallelConfig
from mico_jax.models import build
from mico_jax.objectives import compute
from mico_jax.parallel.mesh import make_mesh
from mico_jax.parallel.sharding import put_batch
from mico_jax.testing.objective_contract import (
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train.optimizer import OPTIMIZERS, make_optimizer
from mico_jax.train.state import abstract_state, init_state
from mico_jax.train.step import make_train_step
from mico_jax.train.stochastic_rounding import narrow, round_at_random

STEPS = 200


def test_rounding_is_right_on_average():
  x = jnp.float32(1 + 2**-9)  # a quarter of the way to the next bfloat16
  found = round_at_random(jnp.full((40_000,), x), jax.random.key(0))
  assert set(np.asarray(found, np.float64)) == {1.0, 1 + 2**-7}
  np.testing.assert_allclose(
    np.asarray(found, np.float64).mean(), x, atol=2**-7 / 100
  )
  kept = jnp.asarray([0.0, -1.5, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
  found = round_at_random(kept, jax.random.key(1)).astype(jnp.float32)
  np.testing.assert_array_equal(found, kept)


def moment(transform):
  """Mean of the second moment after many equal gradients of 1."""
  params = {"w": jnp.zeros((512,))}
  state = transform.init(params)
  update = jax.jit(lambda s: transform.update({"w": jnp.ones((512,))}, s)[1])
  with jax.numpy_dtype_promotion("standard"):
    for _ in range(STEPS):
      state = update(state)
  return state


def test_moments_move_where_rounding_to_nearest_would_stand_still():
  state = moment(narrow(optax.scale_by_adam(b1=0.9, b2=0.999)))
  assert state.inner.nu["w"].dtype == jnp.bfloat16
  mean = np.asarray(state.inner.nu["w"], np.float64).mean()
  np.testing.assert_allclose(mean, 1 - 0.999**STEPS, rtol=0.02)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_keeps_narrow_arrays(name):
  params = {"vision": {"blocks": {"fc": {"kernel": jnp.ones((2, 64, 64))}}}}
  config = OptimizerConfig(name=name, no_decay=(), state_dtype="bfloat16")
  optimizer = make_optimizer(config, params, 3)
  state = optimizer.init(params)
  # Factored moments are rows and columns; the others have whole kernels.
  arrays = [x for x in jax.tree.leaves(state) if x.ndim]
  assert {x.dtype.name for x in arrays} == {"bfloat16"}
  moved, after = optimizer.update(params, state, params, step=jnp.int32(0))
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert np.isfinite(moved["vision"]["blocks"]["fc"]["kernel"]).all()


def test_adafactor_keeps_factors_alone():
  params = {"vision": {"blocks": {"fc": {"kernel": jnp.ones((2, 64, 64))}}}}
  config = OptimizerConfig(name="adafactor", no_decay=())
  state = make_optimizer(config, params, 3).init(params)
  assert sum(x.size for x in jax.tree.leaves(state)) < 2 * 64 * 4


def test_unknown_dtype_is_named():
  config = OptimizerConfig(state_dtype="float8", no_decay=())
  with pytest.raises(ConfigError, match="known: float32, bfloat16"):
    make_optimizer(config, {"w": jnp.ones(3)}, 3)


def updated(mesh, **parallel):
  """Loss and state after two steps with averaged weights."""
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup=0.0, ema=0.9)
  config = tiny_config({"contrastive": ("tv",)}, optimizer=optimizer)
  config = dataclasses.replace(config, parallel=ParallelConfig(**parallel))
  model = build(config.model)
  state = init_state(model, config, mesh)
  like = abstract_state(model, config, mesh)
  places = jax.tree.map(lambda x: x.sharding, state)
  assert places == jax.tree.map(lambda x: x.sharding, like)
  step = make_train_step(model, config, config.tasks["main"], TOKENIZER, mesh)
  batch = put_batch(fake_batch(("tv",)), mesh)
  for _ in range(2):
    state, metrics = step(state, batch)
  assert places == jax.tree.map(lambda x: x.sharding, state)
  return float(compute(metrics["loss"])), state


@pytest.mark.multidevice
def test_state_on_the_host_gives_the_same_step():
  mesh = make_mesh(ParallelConfig(), jax.devices()[:2])
  wanted, state = updated(mesh)
  loss, other = updated(mesh, offload=("opt_state", "ema"))
  kinds = lambda tree: {
    x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim
  }
  assert kinds(other.params) == {"device"}
  assert kinds(other.opt_state) == kinds(other.ema) == {"pinned_host"}
  assert loss == wanted
  jax.tree.map(np.testing.assert_array_equal, state, other)
