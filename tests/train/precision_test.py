"""A whole step in low precision: float32 parameters, narrow compute."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import ParallelConfig
from mico_jax.models import build
from mico_jax.objectives import compute
from mico_jax.parallel.mesh import make_mesh
from mico_jax.parallel.sharding import put_batch
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train.state import init_state
from mico_jax.train.step import make_train_step

GROUPS = ("tva",)
OBJECTIVES = ("contrastive", "matching", "captioning")


@functools.cache
def one_step(dtype, objectives):
  """Metrics and new parameters after a step."""
  config = tiny_config(
    dict.fromkeys(objectives, GROUPS),
    model=dataclasses.replace(TINY_MODEL, dtype=dtype),
  )
  mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
  model = build(config.model)
  state = init_state(model, config, mesh)
  step = make_train_step(model, config, config.tasks["main"], TOKENIZER, mesh)
  state, metrics = step(state, put_batch(fake_batch(GROUPS), mesh))
  return {k: float(compute(v)) for k, v in metrics.items()}, state.params


@pytest.mark.parametrize(
  ("dtype", "objectives", "relative"),
  [
    ("bfloat16", OBJECTIVES, 2e-2),
    pytest.param("float16", OBJECTIVES, 4e-3, marks=pytest.mark.slow),
  ],
)
def test_a_step_stays_close_to_float32(dtype, objectives, relative):
  want, _ = one_step("float32", objectives)
  metrics, params = one_step(dtype, objectives)
  assert set(metrics) == set(want)
  assert metrics["skipped"] == 0
  for name, value in metrics.items():
    if "loss" in name:
      np.testing.assert_allclose(value, want[name], rtol=relative, err_msg=name)
  for leaf in jax.tree.leaves(params):
    assert leaf.dtype == jnp.float32
    assert bool(jnp.isfinite(leaf).all())
