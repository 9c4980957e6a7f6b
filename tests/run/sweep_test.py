"""Sweeps: the runs they ask for, how these are trained, and what they show."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest

from mico_jax import config as config_lib
from mico_jax.checkpoint import manifest
from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.run.sweep import (
  draws,
  law,
  plan,
  results,
  runner,
  start,
  table,
  worker,
)
from mico_jax.run.sweep.draws import Values
from mico_jax.run.sweep.written import write
from mico_jax.testing.tiny_checkpoint import tiny_config

SWEEP = """
  from mico_jax import config as c
  from mico_jax.run.sweep.plan import PanelConfig, PointConfig, SweepConfig

  def get_config():
    return c.to_config_dict(c.Config(name="small"))

  def get_sweep(most="40"):
    size = lambda n: PointConfig((f"train.steps={n}",), x=n)
    return SweepConfig(
      seeds=(0, 1),
      metrics=("retrieval/t->v/R@1",),
      panels={
        "steps": PanelConfig(
          axis="given", points={str(n): size(n) for n in (10, 20, int(most))}
        ),
        "rate": PanelConfig(
          points={
            "low": PointConfig(("train.steps=20",)),
            "high": PointConfig(("optimizer.learning_rate=0.1",)),
          }
        ),
      },
    )
"""


@pytest.fixture
def path(tmp_path) -> str:
  file = tmp_path / "sweep.py"
  file.write_text(textwrap.dedent(SWEEP))
  return str(file)


# ------------------------------------------------------------------- the plan
def test_equal_points_are_one_run(path):
  made = plan.make_plan(path)
  assert made.points["rate", "low"] == made.points["steps", "20"]
  assert len(made.runs) == 8  # 4 different points, 2 seeds
  assert made.runs["steps.20.seed1"].config.train.steps == 20
  assert made.runs["steps.20.seed1"].config.seed == 1


def test_a_run_is_called_the_same_whatever_panels_are_chosen(path):
  alone = plan.make_plan(path, ["rate"])
  assert list(alone.runs) == [
    *("steps.20.seed0", "rate.high.seed0"),
    *("steps.20.seed1", "rate.high.seed1"),
  ]
  assert list(plan.make_plan(path, ["rate.high"]).sweep.panels) == ["rate"]


def test_the_argument_is_that_of_the_sweep(path):
  made = plan.make_plan(f"{path}:80", ["steps.80"])
  assert made.runs["steps.80.seed0"].config.train.steps == 80


@pytest.mark.parametrize(
  ("old", "new", "match"),
  [
    ("train.steps=20", "train.stepz=20", r"rate\.points\.low: .*stepz"),
    ("train.steps=20", "train.steps=-1", r"rate\.points\.low: .*steps"),
    ("seeds=(0, 1)", "seeds=(1, 1)", "each must be there once"),
    ('"low"', '"a/b"', "names a folder"),
    ("x=n)", "x=0)", "a size above 0"),
    ('metrics=("retrieval/t->v/R@1",)', "metrics=()", "no metrics"),
    ("return SweepConfig(", "return dict(", "SweepConfig; got dict"),
  ],
)
def test_mistakes_in_a_sweep_are_named(path, old, new, match):
  text = pathlib.Path(path).read_text()
  assert old in text
  pathlib.Path(path).write_text(text.replace(old, new))
  with pytest.raises(ConfigError, match=match):
    plan.make_plan(path)


def test_a_wrong_panel_fails_before_anything_starts(path, tmp_path, capsys):
  out = tmp_path / "out"
  argv = ["sweep", "--config", path, "--out", str(out), "--panels", "stps"]
  assert main(argv) == 2
  assert "Did you mean 'steps'?" in capsys.readouterr().err
  assert not out.exists()


def test_a_dry_run_shows_the_runs(path, tmp_path, capsys):
  out = str(tmp_path / "out")
  assert main(["sweep", "--config", path, "--out", out, "--dry-run"]) == 0
  text = capsys.readouterr().out
  assert "steps.20, rate.low" in text
  assert "8 runs of" in text
  assert not pathlib.Path(out).exists()


def test_the_shipped_sweep_fine_tunes_all_points_alike():
  made = plan.make_plan("scaling")
  parts = {
    tuple(
      json.dumps(config_lib.to_dict(value), sort_keys=True)
      for value in (
        *(run.config.tasks["tune"], run.config.data.sources["tune"]),
        *(run.config.stages, run.config.evaluation, run.config.train),
      )
    )
    for run in made.runs.values()
  }
  assert len(parts) == 1
  # The one whose objective is another kind; `shipped_test` has the base.
  plan.check_runs(plan.make_plan("scaling", ["objectives.masked"]))


# ------------------------------------------------------------------- the runs
# Stands in for a training run: a run of 10 steps fails until a file says that
# it may not; the value measured grows with the steps.
STAND_IN = """
import hashlib, json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
text = (folder / "sweep_config.json").read_text()
config = json.loads(text)
steps = config["train"]["steps"]
with open(folder.parent / "trained", "a") as file:
  file.write(folder.name + "\\n")
if steps == 10 and not (folder.parent / "mended").exists():
  print("no data for", folder.name)
  sys.exit(3)
if steps == 40 and (folder.parent / "killed").exists():
  (folder.parent / "killed").unlink()
  os.kill(os.getppid(), signal.SIGTERM)
  time.sleep(60)
hits = [int(i < 10 * steps) for i in range(1000)]
measured = {"values": hits, "items": list(range(1000))}
result = {
  "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
  "parameters": 1000,
  "seconds": {"compile": 1.0, "train": 2.0, "evaluate": 0.5},
  "losses": {"train": {"loss": 1 / steps}},
  "results": {"retrieval/t->v/R@1": measured},
}
(folder / "sweep_result.json").write_text(json.dumps(result))
"""


def stand_in(folder: str, log: Any) -> Any:
  command = [sys.executable, "-S", "-c", STAND_IN, folder]
  return subprocess.Popen(
    command, stdout=log, stderr=log, start_new_session=True
  )


def train(made: plan.Plan, out: pathlib.Path, **options: Any) -> runner.Outcome:
  runs = list(made.runs.values())
  return runner.train(runs, str(out), start=stand_in, **options)


def trained(out: pathlib.Path) -> list[str]:
  return (out / "trained").read_text().split()


@pytest.fixture
def fast(monkeypatch):
  monkeypatch.setattr(runner, "POLL", 0.01)


def test_failed_runs_are_listed_and_the_others_go_on(path, tmp_path, fast):
  made, out = plan.make_plan(path), tmp_path / "out"
  outcome = train(made, out, jobs=2)
  assert sorted(trained(out)) == sorted(made.runs)  # each once
  assert len(outcome.done) == 6
  failed = {failure.name for failure in outcome.failed}
  assert failed == {"steps.10.seed0", "steps.10.seed1"}
  for failure in outcome.failed:
    assert failure.reason == f"exit status 3: no data for {failure.name}"
    assert pathlib.Path(failure.log).is_file()
  found = results.gather(made, str(out))
  assert set(found.missing) == failed
  assert [p.name for p in found.panels[0].points] == ["20", "40"]
  text = table.of_panels(found)
  assert "not known yet, without 10" in text
  assert "without a result: steps.10.seed0, steps.10.seed1" in text

  (out / "mended").touch()
  outcome = train(made, out)
  assert len(outcome.done) == 8
  assert not outcome.failed
  assert len(trained(out)) == 10  # only the two were trained again


def test_a_sweep_that_was_stopped_goes_on(path, tmp_path, fast):
  made, out = plan.make_plan(path, ["steps"]), tmp_path / "out"
  out.mkdir()
  for name in ("mended", "killed"):
    (out / name).touch()
  outcome = train(made, out)
  assert outcome.stopped == 128 + signal.SIGTERM
  assert not outcome.failed
  assert outcome.done == ["steps.10.seed0", "steps.20.seed0"]
  assert trained(out) == [*outcome.done, "steps.40.seed0"]
  outcome = train(made, out)
  assert not outcome.stopped
  assert len(outcome.done) == 6
  assert trained(out)[3:] == [n for n in made.runs if n not in trained(out)[:2]]


def test_a_changed_config_is_refused_before_anything_starts(
  path, tmp_path, fast
):
  out = tmp_path / "out"
  train(plan.make_plan(path, ["rate.high"]), out)
  changed = plan.make_plan(path, overrides=["optimizer.b1=0.8"])
  with pytest.raises(ConfigError, match=r"optimizer\.b1: 0\.9, now 0\.8"):
    train(changed, out)
  assert len(trained(out)) == 2
  # Also where only the result is another one's.
  result = out / "rate.high.seed0" / plan.RESULT_FILE
  result.write_text('{"config_sha256": "0"}')
  with pytest.raises(ConfigError, match="not the result of this run"):
    train(plan.make_plan(path, ["rate.high"]), out)


def test_a_run_of_an_earlier_version_stays_done(path, tmp_path, fast):
  made, out = plan.make_plan(path, ["rate.high"]), tmp_path / "out"
  train(made, out)
  for name in made.runs:
    stored = json.loads((out / name / plan.CONFIG_FILE).read_text())
    del stored["train"]["eval_every"]  # a field that came later
    text = json.dumps(stored)
    (out / name / plan.CONFIG_FILE).write_text(text)
    result = json.loads((out / name / plan.RESULT_FILE).read_text())
    result["config_sha256"] = plan.hash_text(text)
    (out / name / plan.RESULT_FILE).write_text(json.dumps(result))
  assert len(train(made, out).done) == 2
  assert len(trained(out)) == 2


def test_runs_start_from_the_checkpoint_that_was_planned(
  path, tmp_path, fast, capsys
):
  def step(text):
    folder = tmp_path / "former" / "manifest"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / manifest.MANIFEST_HASH).write_text(text)
    return str(folder.parent)

  folder, out = step("first"), tmp_path / "out"
  text = pathlib.Path(path).read_text()
  old = 'PointConfig(("train.steps=20",)),'
  tuned = f'{old} "tuned": {old[:-2]}, init={folder!r}),'
  assert old in text
  pathlib.Path(path).write_text(text.replace(old, tuned))
  made = plan.make_plan(path, ["rate.low", "rate.tuned"])
  assert len(made.runs) == 4  # the configs of the two points are equal
  train(made, out)
  run = out / "rate.tuned.seed0"
  assert start.planned_start(run) == folder
  assert start.planned_start(out / made.points["rate", "low"][0]) is None
  assert len(train(made, out).done) == 4
  assert len(trained(out)) == 4

  step("second")
  with pytest.raises(ConfigError, match=f"started from {folder}, now"):
    train(made, out)
  assert main(["sweep", "--run", str(run)]) == 2
  assert "another checkpoint than when" in capsys.readouterr().err
  (run / start.START_FILE).write_text("{}")
  with pytest.raises(ConfigError, match="names no checkpoint"):
    train(made, out)


def test_a_launcher_that_is_not_there_is_named(path, tmp_path):
  made = plan.make_plan(path, ["rate.high"])
  with pytest.raises(ConfigError, match="--launcher 'no_such_launcher'"):
    runner.train(
      list(made.runs.values()), str(tmp_path), launcher="no_such_launcher"
    )


def test_what_the_runs_show(path, tmp_path, fast):
  made, out = plan.make_plan(path), tmp_path / "out"
  out.mkdir()
  (out / "mended").touch()
  train(made, out, jobs=4)
  found = results.gather(made, str(out), command="mico-jax sweep")
  steps, rate = found.panels
  assert [p.mean for p in steps.points] == [0.1, 0.2, 0.4]
  assert [p.loss for p in steps.points] == [0.1, 0.05, 0.025]
  assert steps.ends_apart
  assert steps.inversions == []
  assert rate.inversions == []
  assert found.seconds == 8 * 3.5  # shared runs count once
  # 0.9 at 10 and 0.8 at 20 are a line in log-log, which gives 0.711 at 40.
  assert steps.fit is not None
  assert steps.fit.predicted == pytest.approx(0.8**2 / 0.9, abs=1e-3)
  assert not steps.fit.holds
  write(found, str(out))
  stored = json.loads((out / "sweep.json").read_text())
  assert stored["panels"]["steps"]["points"]["40"]["seeds"] == [0.4, 0.4]
  assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
  text = (out / "sweep.txt").read_text()
  assert "measured 0.600: the interval does NOT have it" in text
  assert "done" in table.of_runs(made, str(out))


def test_a_lower_point_than_expected_is_named(path, tmp_path, fast):
  text = pathlib.Path(path).read_text()
  lower = text.replace("optimizer.learning_rate=0.1", "train.steps=15")
  pathlib.Path(path).write_text(lower)
  made, out = plan.make_plan(path, ["rate"]), tmp_path / "out"
  train(made, out)
  (panel,) = results.gather(made, str(out)).panels
  assert panel.inversions == [("high", "low")]
  assert "not as expected (high below low)" in "\n".join(table.of_panel(panel))


def test_nothing_right_in_few_items_is_not_certain(path, tmp_path, fast):
  made, out = plan.make_plan(path, ["rate"]), tmp_path / "out"
  train(made, out)

  def intervals(hits):
    for file in out.glob("*/sweep_result.json"):
      result = json.loads(file.read_text())
      measured = {"values": hits, "items": list(range(len(hits)))}
      result["results"]["retrieval/t->v/R@1"] = measured
      file.write_text(json.dumps(result))
    (panel,) = results.gather(made, str(out)).panels
    assert not panel.ends_apart
    return [point.interval for point in panel.points]

  # The exact interval of none of eight, by hand: 1 - 0.025**(1 / 8).
  top = pytest.approx(1 - 0.025**0.125)
  assert intervals([0] * 8) == [(0.0, top), (0.0, top)]
  for low, high in intervals([1] + [0] * 7):
    assert low >= 0
    assert high >= 0.5265  # of one of eight (Clopper and Pearson)


def test_a_metric_that_was_not_measured_is_named(path, tmp_path, fast):
  made, out = plan.make_plan(path, ["rate"]), tmp_path / "out"
  train(made, out)
  other = dataclasses.replace(made.sweep, metrics=("retrieval/t->a/R@1",))
  with pytest.raises(ConfigError, match=r"did not measure 'retrieval/t->a"):
    results.gather(made._replace(sweep=other), str(out))


def test_a_run_is_a_workdir_with_a_result(tmp_path):
  config = tiny_config()
  config = dataclasses.replace(
    config,
    train=dataclasses.replace(
      config.train, steps=2, log_every=1, tensorboard=False
    ),
  )
  (tmp_path / plan.CONFIG_FILE).write_text(config_lib.to_json(config))
  assert main(["sweep", "--run", str(tmp_path)]) == 0
  run = plan.Run(tmp_path.name, config)
  assert plan.is_done(run, str(tmp_path.parent))
  result = json.loads((tmp_path / plan.RESULT_FILE).read_text())
  written = json.loads((tmp_path / "evaluation.json").read_text())
  assert {r["name"]: r["value"] for r in written["results"]} == {
    name: r["value"] for name, r in result["results"].items()
  }
  for name, measured in result["results"].items():
    mean = np.mean(measured["values"])
    assert mean == pytest.approx(measured["value"], abs=1e-6), name
  assert result["parameters"] > 1000
  assert result["losses"]["train"]["loss"] > 0


def test_a_folder_that_no_sweep_planned_is_refused(tmp_path, capsys):
  assert main(["sweep", "--run", str(tmp_path)]) == 2
  assert "no sweep planned it" in capsys.readouterr().err


def test_losses_are_those_of_the_end_of_each_part(tmp_path):
  config = dataclasses.replace(
    tiny_config(),
    stages={"tune": config_lib.StageConfig(start=8)},
    train=config_lib.TrainConfig(steps=16),
  )
  lines = [{"step": i, "loss": float(i), "loss/a": 2.0 * i} for i in range(16)]
  text = "".join(f"{json.dumps(line)}\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text)
  assert worker.last_losses(config, str(tmp_path)) == {
    "train": {"loss": 6.5, "loss/a": 13.0},
    "tune": {"loss": 14.5, "loss/a": 29.0},
  }


# ------------------------------------------------------------------ intervals
def answers(share: float, n: int = 400, seed: int = 0) -> Values:
  values = (np.random.default_rng(seed).random(n) < share).astype(float)
  return Values(values, np.arange(n))


def test_draws_spread_as_a_share_does():
  one = answers(0.3)
  share = one.values.mean()
  expected = np.sqrt(share * (1 - share) / 400)
  drawn = draws.drawn_means([[one]])
  assert drawn.mean() == pytest.approx(share, abs=2e-3)
  assert drawn.std() == pytest.approx(expected, rel=0.1)
  # The same items in two measurements are no more items.
  assert draws.drawn_means([[one, one]]).std() == pytest.approx(drawn.std())


def test_draws_spread_as_few_seeds_do():
  # No spread within a seed, so what is left is that of three seeds.
  runs = [[Values(np.full(50, x), np.arange(50))] for x in (0.2, 0.3, 0.7)]
  expected = np.std([0.2, 0.3, 0.7], ddof=1) / np.sqrt(3)
  drawn = draws.drawn_means(runs, num=20_000)
  assert drawn.std() == pytest.approx(expected, rel=0.03)


def test_unequal_measurements_are_refused():
  one = answers(0.5)
  with pytest.raises(ValueError, match="as many of each"):
    draws.drawn_means([[one], [one, one]])


# ----------------------------------------------------------------- power laws
SIZES = np.asarray([1e2, 1e3, 1e4, 1e5, 1e6])


def noisy(error: Any, spread: float = 0.004, num: int = 200) -> Any:
  rng = np.random.default_rng(0)
  return error + spread * rng.standard_normal((num, len(error)))


def test_a_law_is_found_and_predicts():
  error = 0.1 + 0.8 * (SIZES / 1e2) ** -0.35
  fit = law.predict_largest(SIZES, error, noisy(error))
  assert fit.law.alpha == pytest.approx(0.35, abs=1e-3)
  assert fit.law.floor == pytest.approx(0.1, abs=1e-3)
  assert fit.law.factor == pytest.approx(0.8, abs=1e-3)
  assert fit.alpha[0] < 0.35 < fit.alpha[1]
  assert fit.alpha[1] - fit.alpha[0] < 0.1
  assert fit.at == 1e6
  assert fit.holds


def test_the_order_of_sizes_does_not_matter():
  error = 0.1 + 0.8 * (SIZES / 1e2) ** -0.35
  order = np.asarray([3, 0, 4, 2, 1])
  drawn = noisy(error)
  fit = law.predict_largest(SIZES[order], error[order], drawn[:, order])
  expected = law.predict_largest(SIZES, error, drawn)
  assert fit.interval == pytest.approx(expected.interval)


def test_a_law_that_breaks_is_said_to():
  error = 0.1 + 0.8 * (SIZES / 1e2) ** -0.35
  error[-1] = error[-2]  # no gain from the largest
  assert not law.predict_largest(SIZES, error, noisy(error)).holds


def test_what_all_sizes_share_makes_no_prediction_uncertain():
  error = 0.9 * (SIZES[:3] / 1e2) ** -0.2
  shared = 0.02 * np.random.default_rng(0).standard_normal((200, 1))
  drawn = error + shared  # items that are hard for every size
  low, high = law.predict_largest(SIZES[:3], error, drawn).interval
  spread = np.subtract(*np.percentile(drawn[:, -1], [97.5, 2.5]))
  assert high - low < 0.5 * spread


def test_two_small_sizes_give_a_law_without_floor():
  error = 0.9 * (SIZES[:3] / 1e2) ** -0.2
  fit = law.predict_largest(SIZES[:3], error, noisy(error))
  assert fit.floor is None
  assert fit.law.alpha == pytest.approx(0.2, abs=1e-4)
  assert fit.holds


@pytest.mark.parametrize("x", [[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
def test_sizes_that_tell_no_law_are_refused(x):
  with pytest.raises(ValueError, match="different ones above 0"):
    law.fit_law(np.asarray(x), np.asarray([0.5, 0.4, 0.3]), floor=False)
