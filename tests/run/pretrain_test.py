"""The training loop as a whole, on a tiny OmniWorld run."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import numpy as np
import pytest

from mico_jax import extras
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import restore
from mico_jax.cli import main as cli
from mico_jax.config import (
  Config,
  ConfigError,
  EvaluationConfig,
  OptimizerConfig,
  StageConfig,
  TaskConfig,
  TrainConfig,
  to_dict,
)
from mico_jax.data.guard import name_of
from mico_jax.data.pipeline import Pipeline
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import pretrain as pretrain_lib
from mico_jax.run import setup
from mico_jax.run.commands.sample_trace import trace_step
from mico_jax.run.monitor.metric_log import read_metrics
from mico_jax.run.monitor.watch import NonFiniteError
from mico_jax.run.pretrain import pretrain
from mico_jax.testing import faults, memory_path, s3_server
from mico_jax.testing.tiny_checkpoint import tiny_config

STEPS = 12
LOGGED = {
  *("loss", "grad_norm", "learning_rate", "samples_per_second"),
  *("input_wait_share", "total_skipped", "bad_samples", "skipped"),
  *("goodput", "memory/host_gb", "model_tflops_per_second"),
  *("time/input_wait", "time/transfer", "time/step", "time/save"),
}


def tiny(**train: Any) -> Config:
  """Two tasks of one modality each, one layer, 16 pixels."""
  base = tiny_config()
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(base.model.vision, depth=1, width=16),
    text=dataclasses.replace(base.model.text, depth=1, width=16),
    heads=("t", "v", "a"),
    frame_table={"video": 1, "audio": 1},
  )
  task = lambda group, steps: TaskConfig(
    steps=steps,
    sources={"train": 1},
    batch_size=4,
    objectives={"contrastive": (group,)},
  )
  options = {"steps": STEPS, "log_every": 1, "checkpoint_every": 4, **train}
  return dataclasses.replace(
    base,
    model=model,
    data=dataclasses.replace(base.data, inputs={}),
    tasks={"see": task("ti", 2), "hear": task("ta", 1)},
    optimizer=OptimizerConfig(
      learning_rate=3e-3, schedule="constant", warmup=0.0, ema=0.9
    ),
    train=TrainConfig(**{"tensorboard": False, **options}),
    evaluation=EvaluationConfig(),
  )


def changed(config: Config, part: str, **changes: Any) -> Config:
  """The config with fields of one part replaced."""
  value = dataclasses.replace(getattr(config, part), **changes)
  return dataclasses.replace(config, **{part: value})


def one_device(patch: pytest.MonkeyPatch) -> None:
  """Runs on the first device; leaves the self-check (slow) out."""
  patch.setattr(
    setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])
  )
  patch.setattr(setup, "make_self_check", lambda *_: None)


_STEPS: dict[str, Any] = {}
_STATES: dict[str, Any] = {}
_compile_steps = pretrain_lib.compile_steps
_init_state = pretrain_lib.init_state


def _key(config: Config) -> str:
  """What the compiled steps of a config depend on."""
  parts = (config.model, config.data, config.tasks, config.optimizer)
  return repr((*parts, config.stages))


def _compiled(session: setup.Session, state: Any) -> Any:
  key = _key(session.config)
  if key not in _STEPS:
    _STEPS[key] = _compile_steps(session, state)
  return _STEPS[key]


def _initial(model: Any, config: Config, mesh: Any, **options: Any) -> Any:
  key = _key(config)
  if key not in _STATES:
    _STATES[key] = _init_state(model, config, mesh, **options)
  return jax.tree.map(lambda x: x.copy(), _STATES[key])


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
  """Runs of equal steps compile them once."""
  one_device(monkeypatch)
  monkeypatch.setattr(pretrain_lib, "compile_steps", _compiled)
  monkeypatch.setattr(pretrain_lib, "init_state", _initial)


class Seen:
  """A stand-in for Pipeline that notes the samples of each step."""

  def __init__(self, patch: pytest.MonkeyPatch) -> None:
    self.ids: dict[int, str] = {}
    seen = self

    class Noting(Pipeline):
      def __iter__(self):
        for number, task, batch in super().__iter__():
          pixels = next(iter(batch["inputs"].values()))
          content = hashlib.sha256(pixels.tobytes()).hexdigest()
          ids = " ".join(self.sample_ids(number))
          seen.ids[number] = f"{task} {ids} {content}"
          yield number, task, batch

    patch.setattr(pretrain_lib, "Pipeline", Noting)

  def sha256(self) -> str:
    """Hash of the list step -> samples."""
    return hashlib.sha256(
      json.dumps(sorted(self.ids.items())).encode()
    ).hexdigest()


def params_of(workdir: Any, *, ema: bool = False) -> dict[str, np.ndarray]:
  """Parameters of the newest checkpoint, by path."""
  found = restore.open_checkpoint(workdir, ema=ema)
  return manifest_lib.flatten(found.params)


@dataclasses.dataclass
class Run:
  """A finished run and what it saw."""

  workdir: Any
  summary: pretrain_lib.Summary
  sha256: str
  params: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
  """The uninterrupted run that others are compared with."""
  workdir = tmp_path_factory.mktemp("whole")
  with pytest.MonkeyPatch.context() as patch:
    one_device(patch)
    seen = Seen(patch)
    summary = pretrain(tiny(), workdir)  # compiles as a user's run does
  return Run(workdir, summary, seen.sha256(), params_of(workdir))


def lines(workdir: Any, name: str) -> list[float]:
  """The values of a metric, in order."""
  return [x[name] for x in read_metrics(workdir) if name in x]


# ------------------------------------------------------------------ whole run
def test_metrics_and_summary(whole):
  assert whole.summary.step == STEPS
  assert whole.summary.exit_code == 0
  assert whole.summary.recompiles == 0
  found = read_metrics(whole.workdir)
  steps = [line for line in found if "loss" in line]
  assert [line["step"] for line in steps] == list(range(STEPS))
  tasks = [line["task"] for line in steps]
  assert tasks.count("see") == 8
  assert tasks.count("hear") == 4
  # The first step has no interval yet from which a rate could be measured.
  assert set(steps[0]) >= LOGGED - {"samples_per_second"}
  assert "samples_per_second" not in steps[0]
  for line in steps[1:]:
    assert set(line) >= LOGGED
  assert lines(whole.workdir, "recompiles") == [0]
  assert (whole.workdir / "report.png").stat().st_size > 1000
  assert sorted(p.name for p in (whole.workdir / "checkpoints").iterdir()) == [
    "12",
    "4",
    "8",
  ]


def test_loss_falls(whole, tmp_path):
  config = tiny(steps=60, checkpoint_every=0)
  source = dataclasses.replace(config.data.sources["train"], size=4)
  config = changed(
    config, "data", sources={**config.data.sources, "train": source}
  )
  pretrain(config, tmp_path / "w")
  found = [x for x in read_metrics(tmp_path / "w") if x.get("task") == "see"]
  losses = [x["loss"] for x in found]
  assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


CHILD = """
import os, signal, sys
import jax
from mico_jax.cli import main as cli
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.run.monitor import metric_log

setup.make_mesh = lambda config: make_mesh(config, jax.devices()[:1])
setup.make_self_check = lambda *_: None
write = metric_log.MetricsWriter.write

def writing(self, step, values, **options):
  write(self, step, values, **options)
  if step == {at}:
    os.kill(os.getpid(), signal.SIGTERM)

metric_log.MetricsWriter.write = writing
sys.exit(cli.main(sys.argv[1:]))
"""


def as_file(folder: Any, config: Config) -> str:
  """A config file of a config."""
  path = folder / "config.py"
  path.write_text(
    "from mico_jax import config as c\n\n"
    f"VALUES = {to_dict(config)!r}\n\n"
    "def get_config():\n"
    "  return c.to_config_dict(c.from_dict(VALUES))\n"
  )
  return str(path)


def test_sigterm_then_resume_is_bit_identical(whole, tmp_path, monkeypatch):
  workdir = tmp_path / "w"
  code = textwrap.dedent(CHILD).format(at=5)
  argv = ["pretrain", "--config", as_file(tmp_path, tiny()), "--workdir",
          str(workdir)]  # fmt: skip
  cache = jax.config.jax_compilation_cache_dir
  done = subprocess.run(
    [sys.executable, "-c", code, *argv],
    capture_output=True,
    text=True,
    env={
      **os.environ,
      **({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}),
    },
    timeout=300,
    check=False,
  )
  assert done.returncode == 128 + signal.SIGTERM, done.stderr
  assert "Traceback" not in done.stderr
  assert "SIGTERM: finishing this step" in done.stderr
  stopped = max(
    int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()
  )
  assert 6 <= stopped < STEPS
  seen = Seen(monkeypatch)
  summary = pretrain(tiny(), workdir)
  assert summary.step == STEPS
  assert min(seen.ids) == stopped
  params = params_of(workdir)
  assert params.keys() == whole.params.keys()
  for path, value in params.items():
    np.testing.assert_array_equal(value, whole.params[path], err_msg=path)
  averaged, expected = (
    params_of(w, ema=True) for w in (workdir, whole.workdir)
  )
  for path, value in averaged.items():
    np.testing.assert_array_equal(value, expected[path], err_msg=path)
  both = [x["loss"] for x in read_metrics(workdir) if "loss" in x]
  assert both == lines(whole.workdir, "loss")


def test_order_of_an_interrupted_run(whole, tmp_path, monkeypatch):
  seen = Seen(monkeypatch)
  write = pretrain_lib.MetricsWriter.write

  def stopping(self, step, values, **options):
    write(self, step, values, **options)
    if step in (2, 6) and len(seen.ids) < step + 8 and step not in sent:
      sent.append(step)
      os.kill(os.getpid(), signal.SIGTERM)

  sent: list[int] = []
  monkeypatch.setattr(pretrain_lib.MetricsWriter, "write", stopping)
  codes = []
  for _ in range(3):
    codes.append(pretrain(tiny(), tmp_path / "w").exit_code)
  assert codes == [143, 143, 0]
  assert seen.sha256() == whole.sha256
  params = params_of(tmp_path / "w")
  for path, value in params.items():
    np.testing.assert_array_equal(value, whole.params[path], err_msg=path)


def test_remote_workdir_resumes_and_is_traced(whole, monkeypatch):
  memory_path.register()
  workdir = f"memory://pretrain_test/{time.monotonic_ns()}"
  seen = Seen(monkeypatch)
  write = pretrain_lib.MetricsWriter.write

  def stopping(self, step, values, **options):
    write(self, step, values, **options)
    if step == 5 and len(seen.ids) < STEPS:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(pretrain_lib.MetricsWriter, "write", stopping)
  assert pretrain(tiny(), workdir).exit_code == 143
  assert pretrain(tiny(), workdir).exit_code == 0
  assert seen.sha256() == whole.sha256
  for path, value in params_of(workdir).items():
    np.testing.assert_array_equal(value, whole.params[path], err_msg=path)
  rows = trace_step(workdir, 7).rows
  assert rows == trace_step(whole.workdir, 7).rows
  names = [name_of(row.source, row.asked, row.id) for row in rows]
  assert " ".join(names) in seen.ids[7]


def test_finished_run_is_not_trained_again(whole, monkeypatch):
  monkeypatch.setattr(pretrain_lib, "compile_steps", None)
  summary = pretrain(tiny(), whole.workdir)
  assert summary.step == STEPS
  assert summary.clock.compile == 0


def test_recompiles_are_counted(tmp_path, monkeypatch):
  put = pretrain_lib.sharding.put_batch
  calls = []

  def slow(batch, *args):
    calls.append(1)
    if len(calls) == 8:  # a step late in the run compiles something
      jax.jit(lambda x: x * len(calls))(np.zeros(3, np.float32))
    return put(batch, *args)

  monkeypatch.setattr(pretrain_lib.sharding, "put_batch", slow)
  config = tiny(steps=10, checkpoint_every=0)
  assert pretrain(config, tmp_path / "w").recompiles == 1


# ----------------------------------------------------------------- bad numbers
@pytest.fixture
def corrupt(monkeypatch):
  """Step 3 and all from step 6 on give NaN; the list of steps that ran."""
  calls: list[int] = []

  def broken(step: Any) -> Any:
    def run(state: Any, batch: Any) -> Any:
      number = len(calls)
      calls.append(number)
      if number != 3 and number < 6:
        return step(state, batch)
      good = state.params["temperature"].copy()
      nan = jax.numpy.full_like(good, np.nan)
      params = {**state.params, "temperature": nan}
      state, metrics = step(state.replace(params=params), batch)
      params = {**state.params, "temperature": good}
      return state.replace(params=params), metrics

    return run

  def compiled(session: setup.Session, state: Any) -> Any:
    return {
      k: dataclasses.replace(v, run=broken(v.run))
      for k, v in _compiled(session, state).items()
    }

  monkeypatch.setattr(pretrain_lib, "compile_steps", compiled)
  return calls


def test_nonfinite_steps_are_skipped_counted_and_stop(tmp_path, corrupt):
  config = tiny(checkpoint_every=5, nonfinite_patience=3)
  with pytest.raises(NonFiniteError) as caught:
    pretrain(config, tmp_path / "w")
  assert len(corrupt) == 9
  counts = lines(tmp_path / "w", "total_skipped")
  assert counts == [0, 0, 0, 1, 1, 1, 2, 3, 4]
  losses = lines(tmp_path / "w", "loss")
  assert np.isfinite(losses[:3]).all()
  assert np.isfinite(losses[4:6]).all()
  assert len(caught.value.sample_ids) == 4
  assert all(name in str(caught.value) for name in caught.value.sample_ids)
  # What was saved before is there, and finite.
  assert all(np.isfinite(x).all() for x in params_of(tmp_path / "w").values())


def test_nonfinite_stop_is_one_line(tmp_path, corrupt, capsys):
  config = tiny(log_every=4, nonfinite_patience=3)
  argv = ["pretrain", "--config", as_file(tmp_path, config), "--workdir",
          str(tmp_path / "w")]  # fmt: skip
  assert cli.main(argv) == 2
  assert len(corrupt) == 11  # as soon as step 8 has ended, between two logs
  error = capsys.readouterr().err
  assert "mico-jax: error: 5 non-finite steps in a row" in error
  assert "Traceback" not in error


def test_collapse_is_alarmed(tmp_path, capsys, monkeypatch):
  def flat(*args: Any, **options: Any) -> Any:
    state = _initial(*args, **options)
    warm = jax.numpy.full_like(state.params["temperature"], 1e4)
    return state.replace(params={**state.params, "temperature": warm})

  monkeypatch.setattr(pretrain_lib, "init_state", flat)
  pretrain(tiny(checkpoint_every=0, collapse_patience=3), tmp_path / "w")
  events = [x for x in read_metrics(tmp_path / "w") if "event" in x]
  assert {x["event"] for x in events} == {"collapse"}
  assert "at chance, 1.386" in events[0]["message"]
  assert "ALARM" in capsys.readouterr().err


# ----------------------------------------------------- evaluation, keeping best
def test_keep_best_profile_tensorboard_and_files(tmp_path, monkeypatch):
  config = tiny(
    steps=6,
    checkpoint_every=2,
    eval_every=2,
    keep=1,
    keep_best="retrieval/t->i/R@1",
    tensorboard=True,
    profile_steps=(2, 3),
  )
  config = dataclasses.replace(config, evaluation=tiny_config().evaluation)
  config = changed(config, "evaluation", groups=("i", "a"))
  scores = iter((0.25, 0.75, 0.5, 0.5))  # of steps 2, 4, 6 and of the end
  evaluate = pretrain_lib.evaluation.evaluate

  def scored(*args, **options):
    score = next(scores)
    return [
      dataclasses.replace(r, value=score)
      if r.name == "retrieval/t->i/R@1"
      else r
      for r in evaluate(*args, **options)
    ]

  monkeypatch.setattr(pretrain_lib.evaluation, "evaluate", scored)
  workdir = tmp_path / "w"
  summary = pretrain(config, workdir, command="mico-jax test")
  assert summary.recompiles == 0
  kept = {int(p.name) for p in (workdir / "checkpoints").iterdir()}
  assert kept == {4, 6}
  stored = {
    step: manifest_lib.read(workdir / "checkpoints" / str(step))["metrics"]
    for step in kept
  }
  assert stored[4]["retrieval/t->i/R@1"] == 0.75
  assert stored[6]["retrieval/t->i/R@1"] == 0.5
  assert lines(workdir, "eval/retrieval/t->i/R@1") == [0.25, 0.75, 0.5]
  results = json.loads((workdir / "evaluation.json").read_text())
  assert "mico-jax test" in json.dumps(results)
  for name in ("evaluation.txt", "evaluation.png", "report.png"):
    assert (workdir / name).stat().st_size > 0
  (events,) = (workdir / "tensorboard").glob("events.*")
  found = events.read_bytes()
  for tag in (b"final/retrieval/", b"final/numbers", b"_hparams_/experiment"):
    assert tag in found
  assert list((workdir / "profile").rglob("*.xplane.pb"))


def test_unknown_best_metric_is_said(tmp_path, capsys):
  config = tiny(steps=2, checkpoint_every=1, keep_best="retrieval/t->v/R@1")
  pretrain(config, tmp_path / "w")
  error = capsys.readouterr().err
  assert (
    error.count("train.keep_best='retrieval/t->v/R@1' is no metric of step 1")
    == 1
  )


def test_missing_wandb_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ConfigError, match=re.escape(extras.install("wandb"))):
    pretrain(tiny(steps=2, wandb=True), tmp_path / "w")


# ------------------------------------------------------------------- bad inputs
def test_workdir_of_another_config(whole):
  config = changed(tiny(), "optimizer", learning_rate=1e-4)
  with pytest.raises(ConfigError, match=r"belongs to another config.*learning"):
    pretrain(config, whole.workdir)


@pytest.mark.parametrize(
  ("part", "changes", "message"),
  [
    ("optimizer", {"freeze": ("^nothing",)}, "matches no parameter"),
    ("optimizer", {"name": "sgd9"}, "sgd9"),
    ("model", {"heads": ("t", "v")}, "no contrastive head for 'a'"),
  ],
)
def test_mistakes_do_not_claim_the_workdir(tmp_path, part, changes, message):
  config = changed(tiny(), part, **changes)
  with pytest.raises(ConfigError, match=message):
    pretrain(config, tmp_path / "w")
  assert not (tmp_path / "w").exists()


def test_texts_must_fit_the_position_table(tmp_path):
  asking = {"question_answering": ("ti",)}
  tasks = {"ask": dataclasses.replace(tiny().tasks["see"], objectives=asking)}
  config = dataclasses.replace(tiny(), tasks=tasks)
  message = "question and answer together may take 80 tokens.*max_positions=48"
  with pytest.raises(ConfigError, match=message):
    pretrain(config, tmp_path / "w")


def test_missing_init_does_not_claim_the_workdir(tmp_path, capsys):
  argv = ["pretrain", "--config", as_file(tmp_path, tiny()), "--workdir",
          str(tmp_path / "w"), "--init", str(tmp_path / "nowhere")]  # fmt: skip
  assert cli.main(argv) == 2
  assert "no such workdir or checkpoint" in capsys.readouterr().err
  assert not (tmp_path / "w").exists()


def test_corrupted_newest_falls_back_and_says_so(tmp_path, capsys):
  config = tiny(steps=4, checkpoint_every=2)
  pretrain(config, tmp_path / "w")
  before = params_of(tmp_path / "w")
  newest = tmp_path / "w" / "checkpoints" / "4" / "manifest"
  (newest / manifest_lib.MANIFEST).write_bytes(b"{")
  capsys.readouterr()
  summary = pretrain(config, tmp_path / "w")
  error = capsys.readouterr().err
  assert "checkpoint 4 is skipped: " in error
  assert "at step 2." in error
  assert summary.step == 4
  after = params_of(tmp_path / "w")
  assert all((after[path] == before[path]).all() for path in before)


VALUES = ("step", "task", "loss", "grad_norm", "learning_rate", "skipped")


def values_of(workdir: Any) -> list[dict[str, Any]]:
  """What does not depend on the time, of each line of a step."""
  found = [x for x in read_metrics(workdir) if "loss" in x]
  return [{k: x[k] for k in VALUES if k in x} for x in found]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("place", ["local", "memory"])
def test_one_call_in_a_hundred_fails(tmp_path, place):
  """The run ends by itself, as the one without faults does."""
  config = tiny(steps=20, checkpoint_every=5, keep=2, tensorboard=True)
  pretrain(config, tmp_path / "calm")
  workdir, kinds = str(tmp_path / "stormy"), faults.LOCAL_KINDS
  if place == "memory":
    memory_path.register()
    workdir, kinds = f"memory://stormy/{tmp_path.name}", faults.STORE_KINDS
  chance = np.random.default_rng(0).permutation(np.arange(10**5) % 100 == 0)
  storm = faults.Faults(workdir, chance.item, kinds)
  with storm.installed():
    summary = pretrain(config, workdir)
  assert summary.step == 20
  assert len(storm.failed) >= 3
  assert values_of(workdir) == values_of(tmp_path / "calm")
  after, before = params_of(workdir), params_of(tmp_path / "calm")
  assert all((after[path] == before[path]).all() for path in before)


@pytest.fixture(
  params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)]
)
def store(request, tmp_path, monkeypatch):
  """A folder for workdirs of each kind, as text."""
  if request.param == "s3":
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    with s3_server.running(monkeypatch.setenv) as bucket:
      yield bucket
    return
  memory_path.register()
  local = request.param == "local"
  yield str(tmp_path) if local else f"memory://stores/{tmp_path.name}"


def test_metrics_reach_as_far_as_the_checkpoint(tmp_path, store):
  """Killed right when a checkpoint is complete, between two logs."""
  config = tiny(steps=12, checkpoint_every=5, log_every=4)
  pretrain(config, tmp_path / "whole")
  workdir = f"{store}/killed"
  real = pretrain_lib.Manager.save

  class Killed(BaseException):
    pass

  def killing(self, step, state, **options):
    real(self, step, state, **options)
    if step == 10:
      self.wait()
      raise Killed

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrain_lib.Manager, "save", killing)
    # A kill closes nothing.
    patch.setattr(pretrain_lib.MetricsWriter, "close", lambda self: None)
    with pytest.raises(Killed):
      pretrain(config, workdir)
  assert max(x["step"] for x in read_metrics(workdir)) == 9
  pretrain(config, workdir)
  assert values_of(workdir) == values_of(tmp_path / "whole")


# Orbax closes its event loop when a part of the save fails; TensorStore tells
# the ends of the other writes to that loop and its threads print an error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_is_one_line_and_loses_nothing(tmp_path, capsys, monkeypatch):
  real = manifest_lib.to_files

  def full(values, files):
    if values["step"] > 2:
      raise OSError(errno.ENOSPC, "No space left on device")
    return real(values, files)

  monkeypatch.setattr(manifest_lib, "to_files", full)
  monkeypatch.setenv("MICO_JAX_PATIENCE", "0.5")
  config = tiny(steps=6, checkpoint_every=2)
  argv = ["pretrain", "--config", as_file(tmp_path, config), "--workdir",
          str(tmp_path / "w")]  # fmt: skip
  assert cli.main(argv) == 75
  error = capsys.readouterr().err
  assert "Traceback" not in error
  last = error.strip().splitlines()[-1]
  # Step 4 was noticed to be missing behind the next step, saved in its place.
  assert "saving step 4 failed: No space left on device; step " in error
  assert last.startswith("mico-jax: error: cannot save step ")
  assert "No space left on device" in last
  assert "step 2 is intact" in last
  assert [p.name for p in (tmp_path / "w" / "checkpoints").iterdir()] == ["2"]
  monkeypatch.setattr(manifest_lib, "to_files", real)
  assert pretrain(config, tmp_path / "w").step == 6


# --------------------------------------------------------------------- stages
def staged() -> Config:
  """One task at a lower rate first, then both."""
  first = ("tasks.hear.steps=0", "optimizer.learning_rate=1e-3")
  return dataclasses.replace(
    tiny(checkpoint_every=3, keep=9),
    stages={
      "see": StageConfig(start=0, set=first),
      "both": StageConfig(start=5),
    },
  )


def test_a_run_of_stages_resumes_across_their_border(tmp_path, monkeypatch):
  seen = Seen(monkeypatch)
  summary = pretrain(staged(), tmp_path / "a")
  assert summary.step == STEPS
  found = [x for x in read_metrics(tmp_path / "a") if "loss" in x]
  assert [x["task"] for x in found[:5]] == ["see"] * 5
  assert {x["task"] for x in found[5:]} == {"see", "hear"}
  rates = [round(x["learning_rate"], 6) for x in found]
  assert rates == [1e-3] * 5 + [3e-3] * 7
  ids = dict(seen.ids)
  for step in (4, 5, 7):  # what was trained is what is traced
    traced = trace_step(tmp_path / "a", step)
    assert ids[step].startswith(f"{traced.task} ")
    assert all(row.id in ids[step] for row in traced.rows)
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  for folder in (tmp_path / "b" / "checkpoints").iterdir():
    if int(folder.name) > 3:
      shutil.rmtree(folder)
  seen.ids.clear()
  pretrain(staged(), tmp_path / "b")
  assert seen.ids == {k: v for k, v in ids.items() if k >= 3}
  same = params_of(tmp_path / "b")
  for name, value in params_of(tmp_path / "a").items():
    np.testing.assert_array_equal(value, same[name])
