"""Training does not depend on the number of devices."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mico_jax.config import OptimizerConfig, ParallelConfig
from mico_jax.models import build
from mico_jax.objectives import compute
from mico_jax.parallel.mesh import make_mesh
from mico_jax.parallel.sharding import put_batch, rules_by_name
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train.state import init_state
from mico_jax.train.step import make_train_step

GROUPS = {
  "contrastive": ("tva",),
  "matching": ("tva",),
  "captioning": ("tv",),
}


MESHES = {
  "ddp": lambda n: {"data": n},
  "fsdp": lambda n: {"data": max(n // 4, 1), "fsdp": min(n, 4)},
  "fsdp_tp": lambda n: {"fsdp": max(n // 2, 1), "tensor": min(n, 2)},
  "fsdp_sp": lambda n: {"data": max(n // 2, 1), "sequence": min(n, 2)},
}


def curve(devices, steps, rules="ddp"):
  """Losses and mined indices of a run with every kind of randomness on."""
  model_config = dataclasses.replace(
    TINY_MODEL,
    text=dataclasses.replace(TINY_MODEL.text, dropout=0.1),
    vision=dataclasses.replace(TINY_MODEL.vision, drop_path_rate=0.1),
    matmul_precision="highest",
  )
  config = tiny_config(
    GROUPS, model=model_config, optimizer=OptimizerConfig(learning_rate=1e-3)
  )
  train = dataclasses.replace(config.train, steps=steps, patch_dropout=0.25)
  parallel = ParallelConfig(mesh=MESHES[rules](devices), rules=rules)
  config = dataclasses.replace(config, train=train, parallel=parallel)
  model = build(config.model)
  mesh = make_mesh(parallel, jax.devices()[:devices])
  row_rules = rules_by_name(rules)
  state = init_state(model, config, mesh)
  step = make_train_step(
    model, config, config.tasks["main"], TOKENIZER, mesh, return_aux=True
  )
  losses, indices = [], []
  for number in range(steps):
    batch = put_batch(fake_batch(("tv", "tva"), seed=number), mesh, row_rules)
    state, metrics, aux = step(state, batch)
    losses.append(float(compute(metrics["loss"])))
    indices.append(
      [np.asarray(aux[f"matching/tva/{k}_index"]) for k in ("context", "text")]
    )
  assert step._cache_size() == 1
  return np.array(losses), np.array(indices)


def check(counts, steps, rules=("ddp",)):
  losses, indices = curve(1, steps)
  assert np.isfinite(losses).all()
  assert len({tuple(i.ravel()) for i in indices}) > steps // 2
  for name in rules:
    for devices in counts:
      other, mined = curve(devices, steps, name)
      message = f"{name} on {devices} devices"
      np.testing.assert_allclose(other, losses, atol=1e-5, err_msg=message)
      np.testing.assert_array_equal(mined, indices, err_msg=message)


@pytest.mark.multidevice
def test_two_devices_give_the_same_curve():
  check((2,), 20)


@pytest.mark.multidevice
def test_split_parameters_give_the_same_curve():
  check((4,), 6, ("fsdp_tp",))


@pytest.mark.slow
@pytest.mark.multidevice
def test_many_devices_give_the_same_curve():
  check((2, 4, 8), 50, tuple(MESHES))


@pytest.mark.multidevice
def test_parameters_are_created_where_they_belong():
  parallel = ParallelConfig(mesh={"fsdp": 4, "tensor": 2}, rules="fsdp_tp")
  config = tiny_config(GROUPS)
  config = dataclasses.replace(config, parallel=parallel)
  state = init_state(build(config.model), config, make_mesh(parallel))
  kernel = state.params["vision"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.shape == (2, 16, 32)
  for array in (kernel, *_like(state.opt_state, kernel)):
    assert array.addressable_shards[0].data.shape == (2, 4, 16)


def _like(tree, array):
  """Arrays of the optimizer state with the shape and place of `array`."""
  found = [
    x
    for x in jax.tree.leaves(tree)
    if x.shape == array.shape and x.sharding == array.sharding
  ]
  assert len(found) >= 2  # both moments
  return found
