"""The training loop: resume, then warm start, then scratch.

One compiled step per task, compiled before step 0; the loop feeds them in the
order that (seed, step) fixes, keeps at most `IN_FLIGHT` steps queued on the
device, and fetches metrics only every `train.log_every` steps.

Workdir: `config.json`, `metrics.jsonl`, `bad_samples.jsonl`, `checkpoints/`,
`tensorboard/`, and at the end `evaluation.{json,txt,png}`, `examples.json` and
`report.png`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath

from mico_jax import evaluation, files
from mico_jax.checkpoint.manager import Manager
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.checkpoint.restore import step_folders
from mico_jax.checkpoint.steps import (
  CHECKPOINTS,
  fingerprint_of,
  list_steps,
)
from mico_jax.checkpoint.storage import host_copy
from mico_jax.checkpoint.workdir import claim_workdir
from mico_jax.config import Config, to_dict
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.sources import is_pinned
from mico_jax.memory import release_memory
from mico_jax.parallel import distributed, sharding
from mico_jax.run.batches import Batches
from mico_jax.run.checks import lower_is_better
from mico_jax.run.cluster import agreement
from mico_jax.run.cluster.lock import WorkdirLock
from mico_jax.run.cluster.signals import StopSignal
from mico_jax.run.cluster.watchdog import Watchdog
from mico_jax.run.compile import CompiledStep, compile_steps
from mico_jax.run.monitor.goodput import GoodputLog
from mico_jax.run.monitor.instruments import CompileCounter, StepProfiler
from mico_jax.run.monitor.meter import Clock, Meter
from mico_jax.run.monitor.metric_log import MetricsWriter, check_packages
from mico_jax.run.monitor.outcome import write_outcome
from mico_jax.run.monitor.progress import Progress, format_seconds, say
from mico_jax.run.monitor.step_log import StepLog
from mico_jax.run.setup import Session, resolve
from mico_jax.run.warm_start import warm_start
from mico_jax.train.state import TrainState, abstract_state, init_state
from mico_jax.train.step import Program

IN_FLIGHT = 2  # steps queued on the device before the loop waits


@dataclass(frozen=True)
class Summary:
  """Outcome of a call of `pretrain`.

  Attributes:
    workdir: folder of the run.
    step: steps done since the beginning of the run.
    metrics: the last logged values.
    results: of the evaluation at the end.
    clock: where the time went.
    recompiles: compilations inside the loop after a task's first step.
    exit_code: 0, or 128 + the signal that stopped the run.
  """

  workdir: str
  step: int
  metrics: Mapping[str, float]
  results: list[evaluation.Result]
  clock: Clock
  recompiles: int = 0
  exit_code: int = 0


class Trainer:
  """One process' part of a run, from opening the workdir to the report."""

  def __init__(
    self,
    config: Config,
    workdir: epath.PathLike,
    *,
    init: str | None = None,
    command: str = "",
  ):
    """Checks config and data, then claims the workdir.

    Args:
      config: as loaded.
      workdir: folder of the run, local or remote.
      init: checkpoint to take the parameters from, unless the workdir already
        has one to resume.
      command: command line, stored in its evaluation.

    Raises:
      ConfigError: for a wrong config, or a workdir of another one.
      CheckpointError: if there is nothing at `init`.
    """
    self._began = time.time()
    agreement.check_agreement(config)
    self.session = distributed.together(lambda: resolve(config))
    self.config = self.session.config
    self._rules = sharding.rules_by_name(self.config.parallel.rules)
    self.workdir = files.place(workdir)
    self.init = init
    self.command = command
    self.main = distributed.is_main_process()
    distributed.together(self._check)
    extras = self.session.extras()
    self._lock = WorkdirLock(self.workdir)
    distributed.together(self._claim)
    self.clock = Clock()
    best = self.config.train.keep_best
    self.manager = Manager(
      self.workdir,
      config=self.config,
      extras=extras,
      lower_is_better=bool(best) and lower_is_better(best),
    )
    self.metrics: dict[str, float] = {}
    self._evaluated: tuple[int, dict[str, float]] = (-1, {})
    self._warned_of_best = False
    self._compiles = CompileCounter()
    self._profiler = StepProfiler(
      self.config.train.profile_steps if self.main else (), self.workdir
    )

  def _check(self) -> None:
    if self.main:
      check_packages(self.config.train)
    if self.init and not list_steps(self.workdir / CHECKPOINTS):
      step_folders(self.init)
    self.session.check_training()
    if self.main:
      self.session.tell_data()

  def _claim(self) -> None:
    """Process 0 locks the workdir and binds it to the config."""
    if not self.main:
      return
    self._lock.acquire()
    try:
      sources = self.session.sources
      claim_workdir(
        self.workdir,
        self.config,
        lambda name, sha256: is_pinned(sources[name], sha256),
      )
    except BaseException:
      self._lock.release()
      raise

  # ----------------------------------------------------------------- starting
  def start_state(self) -> TrainState:
    """The state to go on from: resume, then warm start, then scratch."""
    session = self.session
    parts = (session.model, self.config, session.mesh)
    like = abstract_state(*parts, optimizer=session.optimizer)
    restored = self.manager.restore(like)
    agreement.check_same_step(-1 if restored is None else restored.step)
    if restored is not None:
      for step, reason in restored.skipped:
        say(f"checkpoint {step} is skipped: {reason}")
      for note in restored.notes:
        say(f"resuming under other conditions: {note}")
      say(f"resuming {self.workdir} at step {restored.step}.")
      return restored.state
    state = init_state(*parts, optimizer=session.optimizer)
    if self.init:
      params, done, notes = warm_start(
        state.params,
        self.init,
        tokenizer_sha256=session.tokenizer.sha256,
        preprocessing=self.manager.extras.preprocessing,
        objectives=self.config.objectives,
      )
      for line in (*done.lines(), *notes):
        say(f"--init {self.init}: {line}")
      place = lambda new, old: jax.device_put(new, old.sharding)
      params = jax.tree.map(place, params, state.params)
      ema = state.ema and jax.tree.map(lambda x: x.copy(), params)
      state = dataclasses.replace(state, params=params, ema=ema)
    return state

  # -------------------------------------------------------------------- loop
  def run(self) -> Summary:
    """Trains to the last step, saves, evaluates and draws the report."""
    try:
      summary = self._run()
    except BaseException:
      with contextlib.suppress(CheckpointError, OSError):
        self.manager.close()  # a save may still be under way
      raise
    else:
      self.manager.close()
    finally:
      self._lock.release()
    return summary

  def _run(self) -> Summary:
    began = time.monotonic()
    state = self.start_state()
    start = int(state.step)
    steps: dict[Program, CompiledStep] = {}
    if start < self.config.train.steps:
      steps = compile_steps(self.session, state)
      self.clock.compile = time.monotonic() - began
      say(f"compiled {len(steps)} step(s) in {self.clock.compile:.1f} s.")
      self._warm_self_check()
    writer = MetricsWriter(
      self.workdir,
      start_step=start,
      tensorboard=self.config.train.tensorboard,
      wandb=self.config.train.wandb,
      name=self.config.name,
      config=to_dict(self.config),
      enabled=self.main,
    )
    with writer, StopSignal() as stop:
      began = time.monotonic()
      with contextlib.closing(self._profiler):
        state = self._loop(state, start, steps, writer, stop)
      self.manager.wait()
      self.clock.train = time.monotonic() - began
      done = int(state.step)
      results: list[evaluation.Result] = []
      # A signal after the last vote may have reached one process only.
      if distributed.any_process(stop.requested):
        stop.request(stop.signum or signal.SIGTERM)
      else:
        results = self._finish(state, writer)
    return Summary(
      workdir=str(self.workdir),
      step=done,
      metrics={**self.metrics, **self._evaluated[1]},
      results=results,
      clock=self.clock,
      recompiles=self._compiles.count,
      exit_code=stop.exit_code,
    )

  def _warm_self_check(self) -> None:
    """Compiles the checkpoints' self-check beside the first steps."""
    check = self.manager.extras.self_check
    if check is None and self.main:
      say(
        "checkpoints get hashes but no self-check: it would need all "
        "parameters on one host."
      )
    warm = getattr(check, "warm", None)
    if warm is None or not self.main:
      return

    def compile_it() -> None:
      warm()
      release_memory()

    threading.Thread(target=compile_it, daemon=True).start()

  def _step_log(
    self,
    start: int,
    steps: Mapping[Program, CompiledStep],
    writer: MetricsWriter,
    batches: Batches,
    bar: Progress,
  ) -> StepLog:
    """The log of a loop that begins at step `start`."""
    goodput = None
    if self.main:
      goodput = GoodputLog(self.workdir, start_step=start, began=self._began)
    flops = {name: step.flops for name, step in steps.items()}
    return StepLog(
      self.config,
      writer,
      batches,
      bar=bar,
      meter=Meter(self.clock, flops=flops, goodput=goodput),
      metrics=self.metrics,
    )

  def _batches(
    self, batches: Batches
  ) -> Iterator[tuple[int, Program, Mapping[str, Any]]]:
    """Step number, program and batch on the devices, until the last step."""
    reading = iter(batches)
    while True:
      with self.clock.measure("input_wait"):
        item = next(reading, None)
      if item is None:
        return
      number, program, batch = item
      self._profiler.before(number)
      with self.clock.measure("transfer"):
        placed = sharding.put_batch(batch, self.session.mesh, self._rules)
      yield number, program, placed

  def _loop(
    self,
    state: TrainState,
    start: int,
    steps: Mapping[Program, CompiledStep],
    writer: MetricsWriter,
    stop: StopSignal,
  ) -> TrainState:
    """Trains from step `start` until the last step or a signal; saves."""
    config, train = self.config, self.config.train
    batches = Batches(self.session, start, self._open_pipeline)
    vote = agreement.StopVote(state.step, delay=IN_FLIGHT + 1)
    saved = -1
    with (
      Progress(
        train.steps, start=start, label=config.name, enabled=self.main
      ) as bar,
      Watchdog(train.watchdog_s, self.workdir) as self._watchdog,
    ):
      log = self._step_log(start, steps, writer, batches, bar)
      fresh = {p.task for p in steps}  # tasks of which no step has run yet
      for number, program, batch in self._batches(batches):
        with self.clock.measure("step"):
          state, metrics = steps[program](state, batch)
          self._profiler.after(number, metrics)
          log.add(number, program, metrics)
          log.wait(IN_FLIGHT)
        if not fresh and not self._compiles.active:
          self._compiles.start()
        fresh.discard(program.task)
        done = number + 1
        stopping, counter = vote.ask(stop.requested, state.step)
        state = dataclasses.replace(state, step=counter)
        if stopping and not stop.requested:
          stop.request()  # another process received the signal
        saving = stopping or self.manager.failed or self._save_is_due(done)
        # A checkpoint covers its steps, so their metrics are stored before.
        if saving or log.alarmed or done % train.log_every == 0:
          log.flush(state)
        self._watchdog.beat(number)
        if self._evaluation_is_due(done) and not stopping:
          with self.clock.measure("check"):
            self._cheap_evaluation(state, done, writer)
        if saving:
          self._save(done, state, writer)
          saved = done
        if stopping:
          break
      jax.block_until_ready(state.step)
      self._compiles.stop()
    if saved != int(state.step) and int(state.step) > start:
      self._save(int(state.step), state, writer)
    return state

  def _open_pipeline(self, session: Session, start: int, end: int) -> Pipeline:
    """The batches of this process for the steps from `start` to `end`."""
    mesh, rules = self.session.mesh, self._rules
    return Pipeline(
      session.config,
      session.tokenizer,
      workdir=str(self.workdir),
      start_step=start,
      end_step=end,
      rows=lambda size: sharding.local_rows(mesh, size, rules).tolist(),
      sources=dict(session.sources),
      lengths=session.lengths,
    )

  def _save_is_due(self, done: int) -> bool:
    """Every `checkpoint_every` steps, and at the end."""
    every = self.config.train.checkpoint_every
    return done == self.config.train.steps or bool(every and done % every == 0)

  def _save(self, done: int, state: TrainState, writer: MetricsWriter) -> None:
    """Starts a checkpoint, with the metrics of its step."""
    step, values = self._evaluated
    metrics = {**self.metrics, **(values if step == done else {})}
    best = self.config.train.keep_best
    if best and best not in metrics and not self._warned_of_best:
      self._warned_of_best = True
      say(
        f"train.keep_best={best!r} is no metric of step {done}, which has "
        f"{', '.join(sorted(metrics)) or 'none'}; those of evaluations need "
        "train.eval_every to divide train.checkpoint_every."
      )
    with self.clock.measure("save"):
      writer.flush()
      self.manager.save(done, state, metrics=metrics)

  # -------------------------------------------------------------- evaluation
  def _params(self, state: TrainState) -> Any:
    params = state.ema if state.ema is not None else state.params
    return jax.tree.map(host_copy, params)

  def evaluate(
    self,
    state: TrainState,
    *,
    cheap: bool = False,
    examples: evaluation.Examples | None = None,
  ) -> list[evaluation.Result]:
    """Runs the suite of the config on a state's weights (averaged if kept)."""
    name = self.config.evaluation.source
    if not name:
      return []
    params = self._params(state)  # gathered by all processes together
    if not self.main:
      return []
    return evaluation.evaluate(
      self.session.model,
      params,
      self.config,
      self.session.tokenizer,
      source=self.session.sources[name],
      cheap=cheap,
      command=self.command,
      workdir=str(self.workdir),
      examples=examples,
      checkpoint_sha256=fingerprint_of(self.manager.folder, int(state.step)),
    )

  def _evaluation_is_due(self, done: int) -> bool:
    """Every `eval_every` steps; at the end only to compare checkpoints."""
    train = self.config.train
    if done == train.steps:
      return bool(train.eval_every and train.keep_best)
    return bool(train.eval_every) and done % train.eval_every == 0

  def _cheap_evaluation(
    self, state: TrainState, done: int, writer: MetricsWriter
  ) -> None:
    active = self._compiles.active
    self._compiles.stop()
    with self._watchdog.paused():
      values = {r.name: r.value for r in self.evaluate(state, cheap=True)}
      distributed.barrier()  # the others wait for the process that evaluates
    if active:
      self._compiles.start()
    self._evaluated = (done, values)
    writer.write(done - 1, values, prefix="eval")

  def _finish(
    self, state: TrainState, writer: MetricsWriter
  ) -> list[evaluation.Result]:
    began = time.monotonic()
    results = []
    if self.config.evaluation.source:
      if self.main:
        say("evaluating ...")
      examples = evaluation.Examples()
      results = self.evaluate(state, examples=examples)
      if self.main:
        evaluation.write(results, str(self.workdir), examples=examples)
      distributed.barrier()  # leaving earlier, the others would give up on it
    self.clock.evaluate = time.monotonic() - began
    seconds = {f"seconds/{k}": v for k, v in vars(self.clock).items()}
    counts = {**seconds, "recompiles": self._compiles.count}
    step = max(int(state.step) - 1, 0)
    writer.write(step, counts)
    if self.main:
      path = write_outcome(writer, self.workdir, self.config, step, results)
      say(
        f"done in {format_seconds(self.clock.total)}: {path or self.workdir}, "
        f"checkpoint {self.manager.folder / str(int(state.step))}"
      )
    return results


def pretrain(
  config: Config,
  workdir: epath.PathLike,
  *,
  init: str | None = None,
  command: str = "",
) -> Summary:
  """Trains a config in a workdir; the same call resumes it.

  Args:
    config: as loaded by `mico_jax.config.load`.
    workdir: folder of the run.
    init: checkpoint whose parameters a new run starts from.
    command: command line, stored in its evaluation.

  Raises:
    ConfigError: for a wrong config, before any device is touched.
    NonFiniteError: after `train.nonfinite_patience` non-finite steps in a row.
    CheckpointError: if a save failed; former checkpoints are intact.
    TransientError: if storage was unavailable for longer than
      MICO_JAX_PATIENCE; the same call resumes.
  """
  return Trainer(config, workdir, init=init, command=command).run()
