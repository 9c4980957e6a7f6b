"""The paper's recipe at three sizes: what is shipped fits together."""

from __future__ import annotations

import math

import pytest

from mico_jax import axes
from mico_jax import config as config_lib
from mico_jax.config import ConfigError
from mico_jax.docs import plans
from mico_jax.parallel.mesh import mesh_sizes
from mico_jax.plan import topology
from mico_jax.run.checks import check_values


@pytest.mark.parametrize("where", plans.TOPOLOGIES)
@pytest.mark.parametrize("name", plans.CONFIGS)
def test_every_choice_divides_batches_groups_and_widths(name, where):
  config = config_lib.load(f"{name}:corpora@{where}")
  check_values(config)
  assert config.data.sources["vast27m"].path.startswith("corpora/")
  devices = topology.parse(where).num_devices
  sizes = mesh_sizes(config.parallel, devices)
  rules = dict(axes.RULES[config.parallel.rules])
  assert rules[axes.BATCH] == (axes.DATA, axes.FSDP)
  assert sizes["data"] * sizes["fsdp"] == devices  # all of them share the rows
  # The encoder's width is split, not copied.
  assert config.model.vision.width % sizes["fsdp"] == 0
  shards = devices * config.train.micro_batches
  group = config.objectives.matching.group_rows
  for task in config.tasks.values():
    assert task.batch_size % shards == 0
    if config.train.micro_batches > 1:
      assert task.batch_size // shards % group == 0


def test_steps_and_batches_are_those_of_the_paper():
  config = config_lib.load("mico_g14")
  assert config.train.steps == 300_000
  weights = {name: task.steps for name, task in config.tasks.items()}
  assert math.fsum(weights.values()) == 300
  assert weights["vast27m"] == 160
  assert config.tasks["vast27m"].batch_size == 2048
  assert config.tasks["valor1m"].batch_size == 1024


def test_devices_without_a_plan_are_an_error():
  with pytest.raises(ConfigError, match=r"was not planned for 'v4:2x2x2'"):
    config_lib.load("mico_g14:@v4:2x2x2")


@pytest.mark.skipif(not plans.committed(), reason="no table was made yet")
def test_the_committed_table_is_of_the_committed_plans():
  found = list(plans.committed().values())
  page = (plans.FOLDER / "plans.md").read_text(encoding="utf-8")
  assert page == plans.page(found)
  keys = [(p["config"], p["topology"]) for p in found]
  known = [(n, w) for n in plans.CONFIGS for w in plans.TOPOLOGIES]
  assert keys == [key for key in known if key in keys]
  assert all(p["fits"] for p in found)
