"""The rate that a run logs: of steps that the device has finished."""

from __future__ import annotations

import io
import types
from typing import Any
from unittest import mock

import numpy as np
import pytest

from mico_jax.data.pipeline import Pipeline
from mico_jax.objectives import Mean
from mico_jax.run.monitor import meter, progress, step_log
from mico_jax.run.monitor.metric_log import MetricsWriter, read_metrics
from mico_jax.testing.tiny_checkpoint import tiny_config
from mico_jax.train.state import TrainState
from mico_jax.train.step import Program

STEP_SECONDS = 2.0
IN_FLIGHT = 2


class Device:
  """Finishes a queued step every two seconds of a clock; reading waits."""

  def __init__(self) -> None:
    self.now = 0.0
    self.free_at = 0.0

  def queue(self) -> Skipped:
    self.now += 1e-5  # the host only queues it
    self.free_at = max(self.free_at, self.now) + STEP_SECONDS
    return Skipped(self, self.free_at)


class Skipped:
  """A scalar on the device."""

  def __init__(self, device: Device, ready: float):
    self._device, self._ready = device, ready

  def __float__(self) -> float:
    self._device.now = max(self._device.now, self._ready)
    return 0.0

  def __array__(self, *_: Any, **__: Any) -> np.ndarray:
    return np.asarray(float(self))


@pytest.mark.parametrize("log_every", [1, 2, 3, 5])
def test_rate_is_of_finished_steps(tmp_path, log_every):
  config, device = tiny_config(), Device()
  (name, task), *_ = config.tasks.items()
  pipeline = mock.Mock(spec=Pipeline)
  pipeline.bad_samples = types.SimpleNamespace(count=0, modalities={})
  state = mock.Mock(spec=TrainState, skipped=0, total_skipped=0)
  bar = progress.Progress(
    20, stream=io.StringIO(), enabled=False, clock=lambda: device.now
  )
  with MetricsWriter(tmp_path, tensorboard=False) as writer:
    log = step_log.StepLog(
      config,
      writer,
      pipeline,
      bar=bar,
      meter=meter.Meter(meter.Clock()),
      metrics={},
    )
    for number in range(20):
      metrics = {"skipped": Mean(device.queue(), np.ones(()))}
      log.add(number, Program("", name, 0), metrics)
      log.wait(IN_FLIGHT)
      if (number + 1) % log_every == 0 or number == 19:
        log.flush(state)
  assert bar.step == 20
  rates = [x.get("samples_per_second") for x in read_metrics(tmp_path)]
  assert len(rates) == -(-20 // log_every)
  if log_every <= IN_FLIGHT:  # nothing was measured before the first log
    assert rates[0] is None
    rates = rates[1:]
  want = [task.batch_size / STEP_SECONDS] * len(rates)
  assert rates == pytest.approx(want, rel=1e-4)
