"""What the training loop logs: metrics by task, every `train.log_every` steps.

Between two logs the metrics stay on the device, so that no step waits for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mico_jax.config import Config
from mico_jax.data.pipeline import Pipeline
from mico_jax.objectives import select
from mico_jax.run.monitor.meter import Meter
from mico_jax.run.monitor.metric_log import MetricsWriter
from mico_jax.run.monitor.progress import Progress
from mico_jax.run.monitor.watch import LossWatch
from mico_jax.train.metrics import Aggregator
from mico_jax.train.optimizer import warmup_steps
from mico_jax.train.state import TrainState


class StepLog:
  """Metrics between two log steps, by task, and what is watched in them.

  Attributes:
    alarmed: so many steps in a row were skipped that `flush` must not wait.
  """

  def __init__(
    self,
    config: Config,
    writer: MetricsWriter,
    pipeline: Pipeline,
    *,
    meter: Meter,
    metrics: dict[str, float],
  ):
    """Starts an interval.

    Args:
      config: of the run.
      writer: takes the values.
      pipeline: counts bad samples and knows their ids.
      meter: of the run: where the time went.
      metrics: the newest values are put here.
    """
    self._config, self._writer, self._pipeline = config, writer, pipeline
    self._meter, self._metrics = meter, metrics
    self._tasks = {name: Aggregator() for name in config.tasks}
    self._objectives = {
      name: select(config.objectives, task)
      for name, task in config.tasks.items()
    }
    self._number = -1
    self._in_a_row = 0
    self.alarmed = False
    self._terms: dict[str, float] = {}
    self._watch = LossWatch(
      warmup_steps=warmup_steps(config.optimizer, config.train.steps),
      collapse_patience=config.train.collapse_patience,
      nonfinite_patience=config.train.nonfinite_patience,
    )

  def add(self, number: int, task: str, metrics: Mapping[str, Any]) -> None:
    """Takes the metrics of a step; they stay on the device."""
    self._tasks[task].add(metrics)
    self._number = number

  def finished(self, skipped: float) -> None:
    """Takes the metric "skipped" (0 or 1) of a step that has ended."""
    self._in_a_row = self._in_a_row + 1 if skipped else 0
    patience = self._config.train.nonfinite_patience
    self.alarmed = 0 < patience <= self._in_a_row

  def flush(self, state: TrainState, bar: Progress) -> None:
    """Fetches, writes and watches; the one place that waits for the device.

    Raises:
      NonFiniteError: after `train.nonfinite_patience` non-finite steps in a
        row.
    """
    number = self._number
    self.alarmed = False
    with self._meter.clock.measure("step"):
      skipped = int(state.skipped)  # waits for the device
    counts = {name: len(values) for name, values in self._tasks.items()}
    common = {
      "samples_per_second": bar.samples_per_second,
      **self._meter.interval(number + 1, counts),
      "total_skipped": int(state.total_skipped),
      "bad_samples": self._pipeline.bad_samples.count,
      **{
        f"bad_samples/{key}": count
        for key, count in self._pipeline.bad_samples.modalities.items()
      },
    }
    for task, aggregator in self._tasks.items():
      if not len(aggregator):
        continue
      count = len(aggregator)
      values = aggregator.compute()
      several = len(self._tasks) > 1
      self._writer.write(
        number, {**values, **common}, task=task if several else ""
      )
      self._metrics.update({**values, **common})
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
