"""Training does not depend on the number of devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from mico_jax.config import ParallelConfig
from mico_jax.models import build
from mico_jax.parallel.mesh import make_mesh
from mico_jax.testing.endurance.curves import GROUPS, MESHES, curve
from mico_jax.testing.objective_contract import tiny_config
from mico_jax.train.state import init_state

# Towers of curves; "": BERT.
TOWERS = {"": {}, "causal": {"encoder": "causal", "kv_heads": 2}}


@functools.cache
def on_one_device(steps, tower, options):
  """The curve to be met, once for all tests that ask for it."""
  return curve(1, steps, text=TOWERS[tower], **dict(options))


def check(counts, steps, rules=("ddp",), *, parts=(1,), tower="", **options):
  losses, indices = on_one_device(steps, tower, tuple(options.items()))
  assert np.isfinite(losses).all()
  assert len({tuple(i.ravel()) for i in indices}) > steps // 2
  for name in rules:
    for devices in counts:
      for count in parts:
        other, mined = curve(
          devices,
          steps,
          rules=name,
          micro_batches=count,
          text=TOWERS[tower],
          **options,
        )
        message = f"{name} on {devices} devices, {count} micro-batches"
        np.testing.assert_allclose(other, losses, atol=1e-5, err_msg=message)
        np.testing.assert_array_equal(mined, indices, err_msg=message)


@pytest.mark.multidevice
def test_two_devices_give_the_same_curve():
  check((2,), 20)


@pytest.mark.multidevice
def test_split_parameters_give_the_same_curve():
  check((4,), 20, ("fsdp_tp",))


@pytest.mark.multidevice
def test_another_text_tower_gives_the_same_curve():
  check((4,), 3, ("fsdp_tp",), tower="causal")


@pytest.mark.multidevice
def test_mining_groups_over_two_devices_give_the_same_curve():
  check((4,), 6, ("fsdp",), rows=8, group_rows=4)


@pytest.mark.slow  # gradients in parts: cached_test
@pytest.mark.multidevice
def test_micro_batches_give_the_same_curve():
  check((2,), 6, parts=(4,), rows=16, group_rows=2)


@pytest.mark.slow
@pytest.mark.multidevice
def test_many_devices_give_the_same_curve():
  check((2, 4, 8), 50, tuple(MESHES), parts=(1, 4), rows=64, group_rows=2)


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
