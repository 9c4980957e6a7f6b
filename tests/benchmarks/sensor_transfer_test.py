"""Arms of the transfer to new sensors: their runs, rates and comparison."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from mico_jax import config as config_lib
from mico_jax.benchmarks import sensor_transfer as command
from mico_jax.benchmarks.sensor_transfer_plan import (
  ARMS,
  BASE,
  Settings,
  choosing,
  chosen_rates,
  measuring,
  result_of,
)
from mico_jax.benchmarks.sensor_transfer_table import gain_of
from mico_jax.checkpoint import restore
from mico_jax.checkpoint.described import Extras
from mico_jax.checkpoint.manager import Manager
from mico_jax.config import Config, ConfigError
from mico_jax.evaluation.metrics import exact_interval
from mico_jax.models import build
from mico_jax.run.setup import resolve
from mico_jax.run.sweep import plan as plan_lib
from mico_jax.run.sweep import runner, worker
from mico_jax.testing.tiny_checkpoint import Weights, tiny_config
from mico_jax.testing.tiny_data import write_manifest
from mico_jax.train.optimizer import trainable
from mico_jax.train.selection import map_paths
from mico_jax.train.state import abstract_params

KINDS = ("Walking", "Running")
NAME = "imu_basicmotions"
RATES = (0.01, 0.1)


def former() -> Config:
  """The config of a checkpoint that knows no sensor; one narrow layer."""
  config, narrow = tiny_config(), {"width": 16, "depth": 1, "mlp_dim": 32}
  towers = {
    name: dataclasses.replace(getattr(config.model, name), **narrow)
    for name in ("vision", "text")
  }
  model = dataclasses.replace(config.model, **towers)
  return dataclasses.replace(config, model=model)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> tuple[str, Any]:
  """(workdir, parameters) of the checkpoint."""
  config = former()
  params = jax.device_get(build(config.model).init(jax.random.key(3)))
  folder = tmp_path_factory.mktemp("pretrained")
  keeper = Manager(folder, config=config, extras=Extras())
  keeper.save(1, Weights(params))
  keeper.close()
  return str(folder), params


@pytest.fixture(scope="module")
def settings(pretrained, tmp_path_factory) -> Settings:
  """All arms on sixteen records of a watch, two rates, two seeds."""
  folder = tmp_path_factory.mktemp("set")
  waves = np.sin(np.arange(16 * 600) / 7).reshape(16, 6, 100)
  np.savez(folder / "watch.npz", x=waves)
  path = write_manifest(
    folder,
    16,
    imu=[f"watch.npz:x[{i}]" for i in range(16)],
    class_name=KINDS * 8,
    split=["train"] * 10 + ["test"] * 6,
  )
  return Settings(
    init=pretrained[0],
    like=former(),
    sets=(f"perception/{NAME}:{path}",),
    rates=RATES,
    seeds=(0, 1),
    steps=2,
  )


def rates_of(settings: Settings, rate: float = 0.1) -> dict[str, Any]:
  return {NAME: dict.fromkeys(settings.arms, rate)}


# ------------------------------------------------------------------- the plan
def test_arms_differ_in_start_and_in_what_they_train_alone(settings):
  plan = plan_lib.plan_of(measuring(settings, rates_of(settings)))
  runs = {arm: plan.runs[plan.points[NAME, arm][0]] for arm in ARMS}
  assert len(plan.runs) == len(ARMS) * 2
  for arm, run in runs.items():
    assert run.init == (settings.init if ARMS[arm].pretrained else "")
    optimizer = config_lib.to_dict(run.config)["optimizer"]
    assert optimizer["learning_rate"] == 0.1
  shared = set()
  for run in runs.values():
    values = config_lib.to_dict(run.config)
    del values["optimizer"]
    shared.add(json.dumps(values, sort_keys=True))
  assert len(shared) == 1
  config = runs[BASE].config
  assert config.model.vision == settings.like.model.vision
  assert config.model.text == settings.like.model.text
  assert config.tasks[NAME].objectives == {"classification": ("m",)}
  assert result_of(config) == "classifier/m/accuracy"


def test_rates_are_chosen_on_training_samples(settings):
  plan = plan_lib.plan_of(choosing(settings))
  assert len(plan.runs) == len(ARMS) * len(RATES)
  for run in plan.runs.values():
    parts = run.config.data.sources
    assert {part.split for part in parts.values()} == {"train"}
    assert (parts["train"].take, parts["test"].skip) == (0.8, 0.8)
    assert run.config.seed == 0


@pytest.mark.parametrize("arm", ARMS)
def test_what_an_arm_trains(settings, arm):
  plan = plan_lib.plan_of(measuring(settings, rates_of(settings)))
  session = resolve(plan.runs[plan.points[NAME, arm][0]].config)
  config = session.config
  shapes = abstract_params(session.model, config)
  free: dict[str, bool] = {}
  map_paths(free.__setitem__, trainable(config.optimizer, shapes))
  assert free["objective/classification/m/kernel"]
  own = [path for path in free if path.startswith("embedding/imu/")]
  assert own
  assert all(free[path] for path in own)
  tower = [path for path in free if path.startswith("vision/")]
  assert any(free[path] for path in tower) == (arm in (BASE, "full"))
  deltas = [path for path in free if path.startswith("lora/")]
  assert bool(deltas) == (arm == "lora")
  assert all(free[x] and x.startswith("lora/vision/") for x in deltas)


def test_sets_without_a_head_or_pair_are_refused():
  with pytest.raises(ConfigError, match="neither a head nor a pair"):
    result_of(config_lib.load("perception/mnist"))
  config = config_lib.load("perception/rgbd_normal")
  assert result_of(config) == "instance/i->d/R@1"


def test_wrong_arguments_are_named(settings, capsys):
  line = ["--init", settings.init, *settings.sets, "--arms"]
  assert command.main([*line, "ful"]) == 2
  assert "Did you mean 'full'?" in capsys.readouterr().err
  assert command.main([*line, "full"]) == 2
  assert "add scratch" in capsys.readouterr().err
  assert command.main(["--init", settings.init, "perception/esc10"]) == 2
  assert "write perception/esc10:PATH" in capsys.readouterr().err
  assert command.main(["--init", "nowhere", *settings.sets]) == 2
  assert "no such workdir or checkpoint" in capsys.readouterr().err


# ------------------------------------------------------------------- the runs
# Stands in for a training run: all arms have half of the 200 items right, those
# that start from the checkpoint three quarters, at the larger rate.
STAND_IN = """
import hashlib, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
text = (folder / "sweep_config.json").read_text()
config = json.loads(text)
with open(folder.parent / "trained", "a") as file:
  file.write(folder.name + "\\n")
start = folder / "sweep_start.json"
better = start.exists() and config["optimizer"]["learning_rate"] > 0.05
values = [int(i % 4 < (3 if better else 2)) for i in range(200)]
result = {
  "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
  "seconds": {"compile": 1.0, "train": 2.0, "evaluate": 0.5},
  "losses": {"train": {"loss": 1 - config["optimizer"]["learning_rate"]}},
  "results": {
    "classifier/m/accuracy": {"values": values, "items": list(range(200))}
  },
}
(folder / "sweep_result.json").write_text(json.dumps(result))
"""


def stand_in(folder: str, log: Any) -> Any:
  line = [sys.executable, "-S", "-c", STAND_IN, folder]
  return subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)


def test_rates_gains_and_files(settings, tmp_path, monkeypatch):
  monkeypatch.setattr(runner, "POLL", 0.01)
  settings = settings._replace(arms=(BASE, "full", "frozen-random"))
  compare = lambda: command.compare(
    settings, str(tmp_path), start=stand_in, jobs=4, command="it"
  )
  done = compare()
  (of,) = done.sets
  assert (of.items, of.steps, of.result) == (200, 2, "classifier/m/accuracy")
  base, full, random = of.rows
  assert (full.rate, full.validation, full.mean) == (0.1, 0.75, 0.75)
  assert base.rate == 0.1  # equal on the validation part; the lower loss
  assert full.gain == pytest.approx(0.25)
  # The paired differences are 1 for a quarter of the items, by hand:
  spread = 1.96 * np.sqrt(0.25 * 0.75 / 200)
  expected = (0.25 - spread, 0.25 + spread)
  assert full.gain_interval == pytest.approx(expected, abs=0.01)
  assert (full.verdict, random.verdict) == ("better", "not told apart")
  assert random.gain_interval == pytest.approx((-0.0183, 0.0183), abs=1e-3)
  assert done.seconds == pytest.approx((6 + 6) * 3.5)

  command.table_lib.write(done, str(tmp_path))
  stored = json.loads((tmp_path / "sensor_transfer.json").read_text())
  assert stored["sets"][0]["rows"][1]["seeds"] == [0.75, 0.75]
  assert stored["command"] == "it"
  text = (tmp_path / "sensor_transfer.md").read_text()
  assert "| +0.250 (" in text
  assert (tmp_path / "sensor_transfer.png").read_bytes()[:4] == b"\x89PNG"

  trained = (tmp_path / "trained").read_text()
  assert len(trained.split()) == 12
  compare()  # goes on where nothing is left to do
  assert (tmp_path / "trained").read_text() == trained


def test_better_and_earlier_rates_are_taken(settings, tmp_path, monkeypatch):
  monkeypatch.setattr(runner, "POLL", 0.01)
  settings = settings._replace(arms=(BASE, "full"))
  sweep = choosing(settings)
  _, found = command.run_sweep(sweep, str(tmp_path), jobs=4, start=stand_in)
  assert chosen_rates(found, settings) == {NAME: {BASE: 0.1, "full": 0.1}}
  only = settings._replace(rates=(0.01,))
  assert chosen_rates(found, only) == {NAME: {BASE: 0.01, "full": 0.01}}


def test_an_arm_of_deltas_starts_from_the_tower(
  settings, pretrained, tmp_path, capsys
):
  sweep = measuring(settings, rates_of(settings))
  plan = plan_lib.plan_of(sweep, [f"{NAME}.lora"])
  run = plan.runs[f"{NAME}.lora.seed0"]

  def here(folder: str, log: Any) -> Any:
    assert worker.work(folder) == 0
    line = [sys.executable, "-S", "-c", ""]
    return subprocess.Popen(line, stdout=log, start_new_session=True)

  assert runner.train([run], str(tmp_path), start=here).done == [run.name]
  told = capsys.readouterr().err
  (new,) = [x for x in told.splitlines() if ": new: " in x]
  assert "embedding/imu/" in new
  assert "vision/" not in new.replace("lora/vision/", "")
  folder = tmp_path / run.name
  params = restore.open_checkpoint(folder).params
  jax.tree.map(
    np.testing.assert_array_equal, params["vision"], pretrained[1]["vision"]
  )
  moved = [np.abs(x["b"]).max() for x in params["lora"].values()]
  assert min(moved) > 0  # they began at 0
  result = json.loads((folder / plan_lib.RESULT_FILE).read_text())
  assert len(result["results"]["classifier/m/accuracy"]["values"]) == 6


# ------------------------------------------------------------------ intervals
def test_gains_pair_items_and_seeds():
  rng = np.random.default_rng(0)
  first = (rng.random((3, 400)) < 0.5).astype(float)
  other = np.maximum(first, rng.random((3, 400)) < 0.1)
  gain, (low, high) = gain_of(first, other, share=True)
  apart = other - first
  assert gain == pytest.approx(apart.mean())
  # Items and seeds are independent here: their variances add up.
  items = apart.mean(axis=0).std(ddof=1) / np.sqrt(400)
  seeds = apart.mean(axis=1).std(ddof=1) / np.sqrt(3)
  spread = 1.96 * np.hypot(items, seeds)
  assert (high - low) / 2 == pytest.approx(spread, rel=0.25)
  with pytest.raises(ValueError, match="cannot pair"):
    gain_of(first, other[:, :10], share=True)


def test_few_items_that_differ_are_not_certain():
  same = np.ones((3, 20))
  top = 1 - 0.025 ** (1 / 20)  # none of twenty, by hand
  _, ends = gain_of(same, same, share=True)
  assert ends == pytest.approx((-top, top))
  worse = same.copy()
  worse[:, 0] = 0.0
  gain, (low, high) = gain_of(same, worse, share=True)
  assert gain == pytest.approx(-0.05)
  one = exact_interval(1, 20)
  assert low == pytest.approx(-one.high)
  assert high == pytest.approx(top - one.low)
  # Errors of a number have no such limit.
  assert gain_of(same, same, share=False)[1] == (0.0, 0.0)
