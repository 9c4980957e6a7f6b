"""Sweeps and the largest batch, over a planner that needs no compiler."""

from __future__ import annotations

import dataclasses
import types

import pytest

from mico_jax import config as config_lib
from mico_jax.config import ConfigError
from mico_jax.parallel.choice import Choice
from mico_jax.parallel.mesh import mesh_sizes
from mico_jax.parallel.sharding import rules_by_name
from mico_jax.plan import planner, report, search, topology
from mico_jax.plan.estimate import Time
from mico_jax.plan.planner import TaskPlan
from mico_jax.plan.program import Views

GIB = 2**30
SECONDS = {"none": 1.0, "full": 1.3}
NEEDED = {"none": 20 * GIB, "full": 8 * GIB}


class Planner(planner.Planner):
  """Remat trades memory for time; parameters alone fill a v5e."""

  def __init__(self, config, where, *, say):
    self.config, self.where = config, where
    self.sizes = mesh_sizes(config.parallel, where.num_devices)
    pieces = self.sizes["fsdp"]
    self.programs = types.SimpleNamespace(
      rules=rules_by_name(config.parallel.rules),
      memory=lambda task: {"parameters": 64 * GIB // pieces},
    )

  @property
  def mesh(self):
    return self.sizes

  def task(self, name: str) -> TaskPlan:
    if self.config.train.micro_batches > 2:
      raise ConfigError("too many micro-batches")
    remat = self.config.model.remat
    rows = self.config.tasks[name].batch_size / 32
    needed = int(GIB + NEEDED[remat] * rows)
    return TaskPlan(
      name=name,
      batch=self.config.tasks[name].batch_size,
      share=1.0,
      fits=needed <= self.where.usable,
      needed=needed,
      limit=self.where.usable,
      parts={},
      flops={"vision": 1e15},
      time=Time({"vision": SECONDS[remat]}, 0.0, 0.5),
      collectives=[],
      costliest=[],
      views=Views(1, 10),
      compile_seconds=0.0,
      cached=False,
    )


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setattr(search, "Planner", Planner)
  config = config_lib.load("demo", ["objectives.matching.group_rows=4"])
  task = dataclasses.replace(config.tasks["align"], batch_size=32)
  return dataclasses.replace(config, tasks={"align": task})


def quiet(_: str) -> None:
  """Says nothing."""


def test_best_plan_first_then_what_lacks_least(config):
  choices = search.choices(["ddp", "fsdp"], ["none", "full"], [1, 4])
  assert len(choices) == 3 * 2 * 2  # fsdp has two meshes
  plans = search.sweep(config, ["v5e:4x4", "v6e:4x4"], choices, say=quiet)
  assert len(plans) == 2 * len(choices)
  best = plans[0]
  # No remat fits the larger memory only, and is faster.
  assert best.fits
  assert (best.where.name, best.config.model.remat) == ("v6e:4x4", "none")
  assert best.seconds == pytest.approx(1.5 * config.train.steps)
  fitting = [p.fits for p in plans]
  assert fitting == sorted(fitting, reverse=True)
  reasons = {p.problem for p in plans if not p.tasks}
  assert "too many micro-batches" in reasons
  assert any(reason.startswith("state alone lacks") for reason in reasons)
  text = report.sweep_text(plans)
  assert text.splitlines()[1].startswith("v6e:4x4")
  assert "not compiled: too many micro-batches" in text
  assert "assumes" not in text  # there is no other task


def test_days_of_one_task_are_said_to_be_assumed(config):
  other = dataclasses.replace(config.tasks["align"], steps=1)
  config = dataclasses.replace(
    config, tasks={**config.tasks, "fuse": other, "space": other}
  )
  choices = search.choices(["fsdp"], ["full"], [1])
  (plan, *_) = search.sweep(
    config, ["v5e:4x4"], choices, task="align", say=quiet
  )
  assert plan.as_dict()["assumed"] == ["fuse", "space"]
  text = report.sweep_text([plan])
  assert "(assumes steps of the same length for fuse, space)" in text


def test_the_largest_batch_is_a_multiple_of_groups_and_micro_batches(config):
  config = Choice(micro_batches=2).apply(config)
  found = search.largest_batch(config, "v5e:4x4", "align", say=quiet)
  granule = 16 * 2 * 4  # devices, micro-batches, rows of a group
  assert found == 0  # 8 GiB for 32 rows: 128 are too many
  smaller = dataclasses.replace(
    config,
    train=dataclasses.replace(config.train, micro_batches=1),
  )
  found = search.largest_batch(smaller, "v5e:4x4", "align", say=quiet)
  limit = topology.parse("v5e:4x4").usable
  assert found % 16 == 0
  assert GIB + 8 * GIB * found / 32 <= limit
  assert GIB + 8 * GIB * (found + 16) / 32 > limit
  assert granule > found
