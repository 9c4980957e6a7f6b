"""Mesh, rules and rows."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mico_jax import axes
from mico_jax.config import ConfigError, ParallelConfig
from mico_jax.models import PRESETS, build
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.testing.objective_contract import TINY_MODEL

pytestmark = pytest.mark.multidevice


def test_mesh_takes_all_devices():
  mesh = make_mesh(ParallelConfig())
  count = jax.device_count()
  sizes = {"data": count, "fsdp": 1, "sequence": 1, "tensor": 1}
  assert dict(mesh.shape) == sizes


@pytest.mark.parametrize(
  "sizes",
  [
    {"data": 3},
    {"data": -1, "fsdp": -1},
    {"data": 0},
    {"data": -1, "model": 2},
  ],
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


@pytest.mark.parametrize("rules", axes.RULES)
def test_every_parameter_axis_has_a_rule(rules):
  mesh = make_mesh(ParallelConfig())
  model = build(TINY_MODEL)
  shardings = sharding.param_shardings(
    mesh, model.logical_axes(), axes.RULES[rules]
  )
  assert jax.tree.structure(shardings) == jax.tree.structure(
    model.abstract_params()
  )


def test_rules_must_name_axes_of_the_mesh():
  mesh = make_mesh(ParallelConfig())
  with pytest.raises(ValueError, match="has only data"):
    sharding.param_shardings(mesh, {"w": (axes.MLP,)}, ((axes.MLP, "model"),))


def test_fsdp_like_rules_shard_parameters_and_moments():
  mesh = make_mesh(ParallelConfig(mesh={"data": 2, "fsdp": -1}))
  rules = axes.RULES["fsdp"]
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


@pytest.mark.parametrize("rules", axes.RULES)
@pytest.mark.parametrize("name", PRESETS)
def test_rules_fit_every_encoder(name, rules):
  """Each dimension is divided evenly or not at all, in every preset."""
  sizes = {"ddp": {"data": -1}, "fsdp_tp": {"fsdp": -1, "tensor": 2},
           "fsdp_sp": {"fsdp": -1, "sequence": 2}}  # fmt: skip
  mesh = make_mesh(ParallelConfig(mesh=sizes.get(rules, {"fsdp": -1})))
  model = build(PRESETS[name])
  shapes = model.abstract_params()
  tree = sharding.param_shardings(
    mesh, model.logical_axes(), axes.RULES[rules], shapes=shapes
  )
  held = whole = 0
  for leaf, place in zip(
    jax.tree.leaves(shapes), jax.tree.leaves(tree), strict=True
  ):
    held += np.prod(place.shard_shape(leaf.shape), dtype=np.int64)
    whole += leaf.size
  least = 1 if rules == "ddp" else 2.5
  assert whole / held >= least


def test_dimension_that_does_not_divide_is_not_split():
  mesh = make_mesh(ParallelConfig(mesh={"data": 1, "tensor": -1}))
  shapes = {"words": jax.ShapeDtypeStruct((9, 4), np.float32)}
  names = {"words": (axes.VOCAB, axes.EMBED)}
  rules = axes.RULES["fsdp_tp"]
  tree = sharding.param_shardings(mesh, names, rules, shapes=shapes)
  assert tree["words"].is_fully_replicated


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device of a machine with several slices."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "cpu"
  device_kind: str = "cpu"


def test_slices_are_the_outer_part_of_an_axis():
  chips = [Chip(i, slice_index=i % 2) for i in range(8)]
  config = ParallelConfig(mesh={"data": 4, "fsdp": 2}, slices={"data": 2})
  grid = make_mesh(config, chips).devices[:, :, 0, 0]
  assert [[c.slice_index for c in row] for row in grid] == [
    *([[0, 0]] * 2),
    *([[1, 1]] * 2),
  ]


def test_slices_must_fit():
  chips = [Chip(i, slice_index=i // 4) for i in range(12)]
  with pytest.raises(ConfigError, match="the devices form 3"):
    make_mesh(ParallelConfig(slices={"data": 2}), chips)
  with pytest.raises(ConfigError, match="must divide"):
    make_mesh(ParallelConfig(slices={"data": 5}), chips)
  with pytest.raises(ConfigError, match="no mesh axis"):
    make_mesh(ParallelConfig(slices={"host": 2}), chips)


def test_slices_of_one_process_are_runs_of_devices():
  config = ParallelConfig(mesh={"data": 2, "fsdp": -1}, slices={"data": 2})
  grid = make_mesh(config).devices[:, :, 0, 0]
  assert [d.id for d in grid.ravel()] == [d.id for d in jax.devices()]
