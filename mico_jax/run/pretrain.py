"""The training loop: resume, then warm start, then scratch.

One compiled step per task, compiled before step 0; the loop feeds them in the
order that (seed, step) fixes, keeps at most `IN_FLIGHT` steps queued on the
device, and fetches metrics only every `train.log_every` steps.

Workdir: `config.json`, `metrics.jsonl`, `bad_samples.jsonl`, `checkpoints/`,
`tensorboard/`, and at the end `evaluation.{json,txt,png}` and `report.png`.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from mico_jax import evaluation
from mico_jax.checkpoint.manager import Manager, claim_workdir
from mico_jax.config import Config, to_dict
from mico_jax.data.pipeline import Pipeline, batch_spec
from mico_jax.parallel import distributed, sharding
from mico_jax.run import report
from mico_jax.run.logging import MetricsWriter
from mico_jax.run.progress import Progress, format_seconds, say
from mico_jax.run.setup import Session, resolve
from mico_jax.run.signals import StopSignal
from mico_jax.run.warm_start import warm_start
from mico_jax.run.watch import LossWatch
from mico_jax.train.metrics import Aggregator
from mico_jax.train.optimizer import warmup_steps
from mico_jax.train.state import TrainState, init_state
from mico_jax.train.step import make_train_step

IN_FLIGHT = 2  # steps queued on the device before the loop waits
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass
class Clock:
  """Where the wall time of a run went, in seconds.

  Attributes:
    compile: until every task's step was compiled.
    train: in the loop, saves and cheap evaluations included.
    input_wait: of `train`, waiting for a batch.
    evaluate: of the evaluation at the end.
  """

  compile: float = 0.0
  train: float = 0.0
  input_wait: float = 0.0
  evaluate: float = 0.0


@dataclass(frozen=True)
class Summary:
  """What a call of `pretrain` did.

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


@dataclass
class _CompileCounter:
  """Counts backend compilations while it is on."""

  count: int = 0
  active: bool = False
  _registered: bool = field(default=False, repr=False)

  def start(self) -> None:
    """Starts counting."""
    if not self._registered:
      jax.monitoring.register_event_duration_secs_listener(self._hear)
      self._registered = True
    self.active = True

  def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
    del duration_secs
    if self.active and event == COMPILE_EVENT:
      self.count += 1


def compile_steps(session: Session, state: TrainState) -> dict[str, Any]:
  """Compiles the step of every task ahead, in parallel threads."""
  config = session.config
  rules = sharding.rules_by_name(config.parallel.rules)
  rows = sharding.batch_sharding(session.mesh, rules)

  def compile_task(name: str) -> Any:
    step = make_train_step(
      session.model,
      config,
      config.tasks[name],
      session.tokenizer.info,
      session.mesh,
      optimizer=session.optimizer,
    )
    shapes = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows),
      batch_spec(config, name),
      is_leaf=lambda s: hasattr(s, "dtype"),
    )
    return step.lower(state, shapes).compile()

  with ThreadPoolExecutor(max_workers=4) as pool:
    found = dict(
      zip(config.tasks, pool.map(compile_task, config.tasks), strict=True)
    )
  return found


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
    """Resolves the config and claims the workdir; no device is touched.

    Args:
      config: as loaded.
      workdir: folder of the run, local or remote.
      init: checkpoint to take the parameters from, unless the workdir already
        has one to resume.
      command: that asked for the run; stored in its evaluation.

    Raises:
      ConfigError: for a wrong config, or a workdir of another one.
    """
    self.session = resolve(config)
    self.config = self.session.config
    self.workdir = epath.Path(workdir)
    self.init = init
    self.command = command
    self.main = distributed.is_main_process()
    claim_workdir(self.workdir, self.config)
    self.clock = Clock()
    self.manager = Manager(
      self.workdir, config=self.config, extras=self.session.extras()
    )
    self.metrics: dict[str, float] = {}
    self._compiles = _CompileCounter()

  # ----------------------------------------------------------------- starting
  def start_state(self) -> TrainState:
    """The state to go on from: resume, then warm start, then scratch."""
    session = self.session
    state = init_state(
      session.model, self.config, session.mesh, optimizer=session.optimizer
    )
    restored = self.manager.restore(state)
    if restored is not None:
      for step, reason in restored.skipped:
        say(f"checkpoint {step} is skipped: {reason}")
      for note in restored.notes:
        say(f"resuming under other conditions: {note}")
      say(f"resuming {self.workdir} at step {restored.step}.")
      return restored.state
    if self.init:
      params, done = warm_start(state.params, self.init)
      for line in done.lines():
        say(f"--init {self.init}: {line}")
      place = lambda new, old: jax.device_put(new, old.sharding)
      params = jax.tree.map(place, params, state.params)
      ema = None
      if state.ema is not None:
        ema = jax.tree.map(lambda x: x.copy(), params)
      state = dataclasses.replace(state, params=params, ema=ema)
    return state

  # -------------------------------------------------------------------- loop
  def run(self) -> Summary:
    """Trains to the last step, saves, evaluates and draws the report."""
    began = time.monotonic()
    state = self.start_state()
    start = int(state.step)
    steps = compile_steps(self.session, state)
    self.clock.compile = time.monotonic() - began
    say(f"compiled {len(steps)} task(s) in {self.clock.compile:.1f} s.")
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
      state = self._loop(state, start, steps, writer, stop)
      self.manager.wait()
      self.clock.train = time.monotonic() - began
      done = int(state.step)
      results: list[evaluation.Result] = []
      if not stop.requested:
        results = self._finish(state, writer)
    self.manager.close()
    return Summary(
      workdir=str(self.workdir),
      step=done,
      metrics=self.metrics,
      results=results,
      clock=self.clock,
      recompiles=self._compiles.count,
      exit_code=stop.exit_code,
    )

  def _loop(
    self,
    state: TrainState,
    start: int,
    steps: Mapping[str, Any],
    writer: MetricsWriter,
    stop: StopSignal,
  ) -> TrainState:
    config, mesh = self.config, self.session.mesh
    rules = sharding.rules_by_name(config.parallel.rules)
    pipeline = Pipeline(
      config,
      self.session.tokenizer,
      workdir=str(self.workdir),
      start_step=start,
      rows=lambda size: sharding.local_rows(mesh, size, rules).tolist(),
      sources=dict(self.session.sources),
    )
    log = _Log(self, writer, pipeline)
    queued: collections.deque[Any] = collections.deque()
    saved, last = -1, config.train.steps
    with Progress(
      last, start=start, label=config.name, enabled=self.main
    ) as bar:
      batches = iter(pipeline)
      seen: set[str] = set()
      while True:
        waiting = time.monotonic()
        item = next(batches, None)
        self.clock.input_wait += time.monotonic() - waiting
        if item is None:
          break
        number, task, batch = item
        state, metrics = steps[task](
          state, sharding.put_batch(batch, mesh, rules)
        )
        queued.append(metrics["loss"])
        if len(queued) > IN_FLIGHT:
          jax.block_until_ready(queued.popleft())
        if not self._compiles.active and seen >= set(steps):
          self._compiles.start()
        seen.add(task)
        done = number + 1
        log.add(number, task, metrics)
        if done % config.train.log_every == 0 or done == last:
          log.flush(state, bar)
        bar.update(done, samples=config.tasks[task].batch_size)
        self._profile(done)
        every = config.train.eval_every
        if every and done % every == 0 and done < last:
          self._cheap_evaluation(state, done, writer)
        stopping = distributed.any_process(stop.requested)
        every = config.train.checkpoint_every
        if (every and done % every == 0) or done == last or stopping:
          self.manager.save(done, state, metrics=self.metrics)
          saved = done
        if stopping:
          break
      jax.block_until_ready(state.step)
      self._compiles.active = False
    if saved != int(state.step) and int(state.step) > start:
      self.manager.save(int(state.step), state, metrics=self.metrics)
    return state

  def _profile(self, done: int) -> None:
    """Starts and stops the profiler at `train.profile_steps`."""
    wanted = self.config.train.profile_steps
    if not wanted or not self.main:
      return
    if done == wanted[0]:
      jax.profiler.start_trace(str(self.workdir / "profile"))
    elif done == wanted[-1]:
      jax.profiler.stop_trace()
      say(f"profiler trace: {self.workdir / 'profile'}")

  # -------------------------------------------------------------- evaluation
  def _params(self, state: TrainState) -> Any:
    params = state.ema if state.ema is not None else state.params
    return jax.tree.map(np.asarray, params)

  def evaluate(
    self, state: TrainState, *, cheap: bool = False
  ) -> list[evaluation.Result]:
    """Runs the suite of the config on a state's weights (averaged if kept)."""
    name = self.config.evaluation.source
    if not name or not self.main:
      return []
    return evaluation.evaluate(
      self.session.model,
      self._params(state),
      self.config,
      self.session.tokenizer,
      source=self.session.sources[name],
      cheap=cheap,
      command=self.command,
    )

  def _cheap_evaluation(
    self, state: TrainState, done: int, writer: MetricsWriter
  ) -> None:
    active, self._compiles.active = self._compiles.active, False
    values = {r.name: r.value for r in self.evaluate(state, cheap=True)}
    self._compiles.active = active
    self.metrics.update(values)
    writer.write(done - 1, values, prefix="eval")

  def _finish(
    self, state: TrainState, writer: MetricsWriter
  ) -> list[evaluation.Result]:
    began = time.monotonic()
    results = []
    if self.config.evaluation.source and self.main:
      say("evaluating ...")
      results = self.evaluate(state)
      evaluation.write(results, str(self.workdir))
    self.clock.evaluate = time.monotonic() - began
    seconds = {f"seconds/{k}": v for k, v in vars(self.clock).items()}
    last = max(int(state.step) - 1, 0)
    writer.write(last, {**seconds, "recompiles": self._compiles.count})
    writer.flush()
    if self.main:
      path = report.write_report(self.workdir)
      say(
        f"done in {format_seconds(sum(seconds.values()))}: {path}, "
        f"checkpoint {self.manager.folder / str(int(state.step))}"
      )
    return results


class _Log:
  """Metrics between two log steps, by task."""

  def __init__(
    self, trainer: Trainer, writer: MetricsWriter, pipeline: Pipeline
  ):
    config = trainer.config
    self._trainer, self._writer, self._pipeline = trainer, writer, pipeline
    self._tasks = {name: Aggregator() for name in config.tasks}
    self._since = time.monotonic()
    self._waited = 0.0
    self._steps = 0
    self._number = -1
    self._terms: dict[str, float] = {}
    self._watch = LossWatch(
      warmup_steps=warmup_steps(config.optimizer, config.train.steps),
      collapse_patience=config.train.collapse_patience,
      nonfinite_patience=config.train.nonfinite_patience,
    )

  def add(self, number: int, task: str, metrics: Mapping[str, Any]) -> None:
    self._tasks[task].add(metrics)
    self._steps += 1
    self._number = number

  def flush(self, state: TrainState, bar: Progress) -> None:
    """Fetches, writes and watches; the one place that waits for the device."""
    number, trainer = self._number, self._trainer
    skipped = int(state.skipped)
    now = time.monotonic()
    waited = trainer.clock.input_wait
    share = (waited - self._waited) / max(now - self._since, 1e-9)
    common = {
      "samples_per_second": bar.samples_per_second,
      "input_wait_share": share,
      "total_skipped": int(state.total_skipped),
      "bad_samples": self._pipeline.bad_samples.count,
    }
    self._since, self._waited = now, waited
    for task, aggregator in self._tasks.items():
      if not len(aggregator):
        continue
      count = len(aggregator)
      values = aggregator.compute()
      several = len(self._tasks) > 1
      self._writer.write(
        number, {**values, **common}, task=task if several else ""
      )
      trainer.metrics.update({**values, **common})
      self._terms.update(
        {
          k.removeprefix("loss/"): v
          for k, v in values.items()
          if k.startswith("loss/") and k.count("/") == 1
        }
      )
      self._observe(number, task, values, skipped, count)
    # The display needs no more than the terms of the objectives.
    bar.update(bar.step, terms=self._terms)

  def _observe(
    self,
    number: int,
    task: str,
    values: Mapping[str, float],
    skipped: int,
    count: int,
  ) -> None:
    prefix = "loss/contrastive/"
    self._watch.nonfinite_in_a_row = 0
    alarm = self._watch.update(
      number,
      finite=skipped == 0,
      count=skipped or count,
      contrastive={
        f"{task}/{k.removeprefix(prefix)}": v
        for k, v in values.items()
        if k.startswith(prefix)
      },
      batch_size=self._trainer.config.tasks[task].batch_size,
      sample_ids=lambda: self._pipeline.sample_ids(number),
    )
    if alarm:
      self._writer.event(number, "collapse", alarm)


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
    command: that asked for it, for the records.

  Raises:
    ConfigError: for a wrong config, before any device is touched.
    NonFiniteError: after `train.nonfinite_patience` non-finite steps in a row.
    CheckpointError: if a save failed; former checkpoints are intact.
  """
  return Trainer(config, workdir, init=init, command=command).run()
