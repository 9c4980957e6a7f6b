"""The metrics of the training loop: by task, every `train.log_every` steps.

Between two logs the metrics stay on the device, so that no step waits for them.
Calling a compiled step only queues it. The rate and the progress bar therefore
count a step when the device has finished it.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from mico_jax.config import Config
from mico_jax.objectives import select
from mico_jax.run.monitor.meter import Meter
from mico_jax.run.monitor.metric_log import MetricsWriter
from mico_jax.run.monitor.progress import Progress
from mico_jax.run.monitor.watch import LossWatch
from mico_jax.train.metrics import Aggregator
from mico_jax.train.optimizer import warmup_steps
from mico_jax.train.state import TrainState
from mico_jax.train.step import Program


@runtime_checkable
class Reading(Protocol):
  """What is known of the samples that are read."""

  @property
  def bad_samples(self) -> Any:
    """The broken ones so far, see `mico_jax.data.bad_samples`."""
    ...

  def sample_ids(self, step: int) -> list[str]:
    """Names of the global batch of a step."""
    ...


class StepLog:
  """Collects the metrics of each task between two logs, and watches them.

  Attributes:
    alarmed: so many steps in a row were skipped that `flush` must be called
      now.
  """

  def __init__(
    self,
    config: Config,
    writer: MetricsWriter,
    pipeline: Reading,
    *,
    bar: Progress,
    meter: Meter,
    metrics: dict[str, float],
  ):
    """Starts an interval.

    Args:
      config: of the run.
      writer: takes the values.
      pipeline: counts bad samples and knows their ids.
      bar: shows the finished steps and measures their rate.
      meter: of the run: where the time went.
      metrics: the newest values are put here.
    """
    self._config, self._writer, self._pipeline = config, writer, pipeline
    self._bar, self._meter, self._metrics = bar, meter, metrics
    # (step, task, its metric "skipped" on the device) of steps in flight
    self._queued: collections.deque[tuple[int, str, Any]] = collections.deque()
    self._tasks = {name: Aggregator() for name in config.tasks}
    self._objectives = {
      name: select(config.objectives, task)
      for name, task in config.tasks.items()
    }
    self._counts: collections.Counter[Program] = collections.Counter()
    self._number = -1
    self._in_a_row = 0
    self.alarmed = False
    self._terms: dict[str, float] = {}
    self._watch = LossWatch(
      warmup_steps=warmup_steps(config.optimizer, config.train.steps),
      collapse_patience=config.train.collapse_patience,
      nonfinite_patience=config.train.nonfinite_patience,
    )

  def add(
    self, number: int, program: Program, metrics: Mapping[str, Any]
  ) -> None:
    """Takes the metrics of a step; they stay on the device."""
    task = program.task
    self._counts[program] += 1
    self._tasks[task].add(metrics)
    self._queued.append((number, task, metrics["skipped"].total))
    self._number = number

  def wait(self, in_flight: int) -> None:
    """Waits until the device has at most `in_flight` steps to finish."""
    done, samples = self._bar.step, 0
    while len(self._queued) > in_flight:
      number, task, skipped = self._queued.popleft()
      self._in_a_row = self._in_a_row + 1 if float(skipped) else 0
      done = number + 1
      samples += self._config.tasks[task].batch_size
    if samples:
      # Once for all: steps that were waited for together have no rate.
      self._bar.update(done, samples=samples)
      patience = self._config.train.nonfinite_patience
      self.alarmed = 0 < patience <= self._in_a_row

  def flush(self, state: TrainState) -> None:
    """Waits for all steps, then fetches, writes and watches their metrics.

    Raises:
      NonFiniteError: after `train.nonfinite_patience` non-finite steps in a
        row.
    """
    clock = self._meter.clock
    with clock.measure("step"):
      self.wait(0)
      skipped = int(state.skipped)
    self.alarmed = False
    with clock.measure("log"):
      common = self._common(state)
      for task, aggregator in self._tasks.items():
        if count := len(aggregator):
          values = aggregator.compute()
          self._write(task, values, common)
          self._observe(self._number, task, values, skipped, count)
      # The display needs no more than the terms of the objectives.
      self._bar.show(self._terms)

  def _common(self, state: TrainState) -> dict[str, float]:
    """Values of the interval that do not depend on the task."""
    counts, self._counts = self._counts, collections.Counter()
    bad = self._pipeline.bad_samples
    rate = self._bar.samples_per_second
    return {
      **({"samples_per_second": rate} if rate else {}),
      **self._meter.interval(self._number + 1, counts),
      "total_skipped": int(state.total_skipped),
      "bad_samples": bad.count,
      **{f"bad_samples/{k}": count for k, count in bad.modalities.items()},
    }

  def _write(
    self, task: str, values: Mapping[str, float], common: Mapping[str, float]
  ) -> None:
    """Writes the values of a task and keeps the newest."""
    row = {**values, **common}
    several = len(self._tasks) > 1
    self._writer.write(self._number, row, task=task if several else "")
    self._metrics.update(row)
    for name, value in values.items():
      term = name.removeprefix("loss/")
      if term != name and "/" not in term:
        self._terms[term] = value

  def _observe(
    self,
    number: int,
    task: str,
    values: Mapping[str, float],
    skipped: int,
    count: int,
  ) -> None:
    batch_size = self._config.tasks[task].batch_size
    losses, chance = {}, {}
    for name, (objective, groups) in self._objectives[task].items():
      for group in groups:
        loss = values.get(f"loss/{name}/{group}")
        # A loss compares the rows that have the group's media and text.
        share = values.get(f"rows/{name}/{group}", 0.0)
        level = objective.chance_loss(batch_size * share)
        if loss is not None and level is not None:
          losses[f"{task}/{name}/{group}"] = loss
          chance[f"{task}/{name}/{group}"] = level
    self._watch.nonfinite_in_a_row = 0
    alarm = self._watch.update(
      number,
      finite=skipped == 0,
      count=skipped or count,
      losses=losses,
      chance=chance,
      sample_ids=lambda: self._pipeline.sample_ids(number),
    )
    if alarm:
      self._writer.event(number, "collapse", alarm)
