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
from mico_jax.parallel.sharding import put_batch
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


def curve(devices, steps):
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
  config = dataclasses.replace(config, train=train)
  model = build(config.model)
  mesh = make_mesh(ParallelConfig(), jax.devices()[:devices])
  state = init_state(model, config, mesh)
  step = make_train_step(
    model, config, config.tasks["main"], TOKENIZER, mesh, return_aux=True
  )
  losses, indices = [], []
  for number in range(steps):
    batch = put_batch(fake_batch(("tv", "tva"), seed=number), mesh)
    state, metrics, aux = step(state, batch)
    losses.append(float(compute(metrics["loss"])))
    indices.append(
      [np.asarray(aux[f"matching/tva/{k}_index"]) for k in ("context", "text")]
    )
  assert step._cache_size() == 1
  return np.array(losses), np.array(indices)


def check(counts, steps):
  losses, indices = curve(1, steps)
  assert np.isfinite(losses).all()
  assert len({tuple(i.ravel()) for i in indices}) > steps // 2
  for devices in counts:
    other, mined = curve(devices, steps)
    np.testing.assert_allclose(other, losses, atol=1e-5)
    np.testing.assert_array_equal(mined, indices)


@pytest.mark.multidevice
def test_two_devices_give_the_same_curve():
  check((2,), 20)


@pytest.mark.slow
@pytest.mark.multidevice
def test_many_devices_give_the_same_curve():
  check((2, 4, 8), 50)
