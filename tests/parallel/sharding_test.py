"""Mesh, rules and rows."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mico_jax import axes
from mico_jax.config import ConfigError, ParallelConfig
from mico_jax.models import build
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.testing.objective_contract import TINY_MODEL

pytestmark = pytest.mark.multidevice


def test_mesh_takes_all_devices():
  mesh = make_mesh(ParallelConfig())
  assert dict(mesh.shape) == {"data": jax.device_count()}


@pytest.mark.parametrize(
  "sizes", [{"data": 3}, {"data": -1, "model": -1}, {"data": 0}]
)
def test_mesh_that_does_not_fit(sizes):
  with pytest.raises(ConfigError, match=r"parallel\.mesh"):
    make_mesh(ParallelConfig(mesh=sizes))


def test_spec_follows_rules_and_uses_a_mesh_axis_once():
  rules = (("a", "x"), ("b", "y"), ("c", "x"), ("d", None))
  assert sharding.spec(("a", "b", "d"), rules) == PartitionSpec("x", "y")
  assert sharding.spec(("a", "c"), rules) == PartitionSpec("x")
  assert sharding.spec((None, "b"), rules) == PartitionSpec(None, "y")


def test_unknown_axis_is_an_error():
  with pytest.raises(ValueError, match="'embd' has no rule"):
    sharding.spec(("embd",), axes.DDP_RULES)
  with pytest.raises(ConfigError, match="ddp"):
    sharding.rules_by_name("zero")


def test_every_parameter_axis_has_a_rule():
  mesh = make_mesh(ParallelConfig())
  model = build(TINY_MODEL)
  shardings = sharding.param_shardings(mesh, model.logical_axes())
  assert jax.tree.structure(shardings) == jax.tree.structure(
    model.abstract_params()
  )


def test_rules_must_name_axes_of_the_mesh():
  mesh = make_mesh(ParallelConfig())
  with pytest.raises(ValueError, match="has only data"):
    sharding.param_shardings(mesh, {"w": (axes.MLP,)}, ((axes.MLP, "tensor"),))


def test_fsdp_like_rules_shard_parameters_and_moments():
  mesh = make_mesh(ParallelConfig(mesh={"data": 2, "fsdp": -1}))
  rules = ((axes.EMBED, "fsdp"), (axes.MLP, None), (axes.BATCH, "data"))
  params = {"w": jax.ShapeDtypeStruct((8, 4), np.float32)}
  tree = sharding.param_shardings(mesh, {"w": (axes.EMBED, axes.MLP)}, rules)
  assert tree["w"].spec == PartitionSpec("fsdp")
  moments = {"mu": params, "count": jax.ShapeDtypeStruct((), np.int32)}
  found = sharding.like_params(mesh, moments, params, tree)
  assert found["mu"]["w"].spec == PartitionSpec("fsdp")
  assert found["count"].spec == PartitionSpec()


def test_rows_and_batch():
  mesh = make_mesh(ParallelConfig())
  rows = sharding.local_rows(mesh, 16)
  np.testing.assert_array_equal(rows, np.arange(16))
  batch = {"x": np.arange(32).reshape(16, 2), "y": {"z": np.ones(16)}}
  placed = sharding.put_batch(batch, mesh)
  np.testing.assert_array_equal(placed["x"], batch["x"])
  assert placed["x"].sharding.spec == PartitionSpec("data")
  shard = placed["y"]["z"].addressable_shards[0].data
  assert shard.shape == (16 // jax.device_count(),)


def test_batch_that_does_not_divide():
  with pytest.raises(ConfigError, match="batch_size=13"):
    sharding.local_rows(make_mesh(ParallelConfig()), 13)
