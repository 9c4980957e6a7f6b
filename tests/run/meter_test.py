"""Where the time goes: parts of a step, goodput, memory."""

from __future__ import annotations

import json
import time

import pytest

from mico_jax.run.monitor import goodput, meter


def test_clock_adds_up_its_parts():
  clock = meter.Clock(compile=2.0, train=3.0, step=2.5, evaluate=1.0)
  assert clock.total == 6.0
  for _ in range(2):
    with clock.measure("save"):
      time.sleep(0.02)
  assert 0.04 <= clock.save < 1.0


def test_interval_values(monkeypatch):
  monkeypatch.setattr(meter, "mfu", lambda flops, seconds, *_: flops / seconds)
  clock = meter.Clock()
  measuring = meter.Meter(clock, flops={"a": 3e12})
  clock.step, clock.input_wait = 0.2, 0.02
  time.sleep(0.05)
  values = measuring.interval(4, {"a": 2, "b": 2})
  assert values["time/step"] == pytest.approx(50.0)
  assert values["time/input_wait"] == pytest.approx(5.0)
  assert values["time/save"] == 0.0
  assert 0 < values["input_wait_share"] <= 0.4
  assert values["mfu"] == pytest.approx(
    1e12 * values["model_tflops_per_second"]
  )
  assert values["memory/host_gb"] > 0.01
  assert "goodput" not in values
  again = measuring.interval(5, {"b": 1})
  assert again["time/step"] == 0.0
  assert "mfu" not in again


def test_goodput_drops_steps_that_ran_twice():
  first = {"began": 0.0, "start": 0, "step": 10, "train": 20.0}
  assert goodput.goodput([first], 40.0) == 0.5
  # Resumed at step 5: half of the first start was lost.
  second = {"began": 60.0, "start": 5, "step": 10, "train": 10.0}
  assert goodput.goodput([first, second], 80.0) == 0.25
  # A third start at step 0 makes all before it useless.
  third = {"began": 80.0, "start": 0, "step": 5, "train": 10.0}
  assert goodput.goodput([first, second, third], 100.0) == 0.1


def test_goodput_file_goes_over_starts(tmp_path):
  now = time.time()
  log = goodput.GoodputLog(tmp_path, start_step=0, began=now - 100)
  assert log.update(10, {"step": 50.0, "save": 1.0}) == pytest.approx(
    0.5, abs=0.01
  )
  log = goodput.GoodputLog(tmp_path, start_step=8, began=now - 40)
  assert log.update(9, {"step": 10.0}) == pytest.approx(0.5, abs=0.01)
  sessions = json.loads((tmp_path / goodput.FILE).read_text())
  assert [s["start"] for s in sessions] == [0, 8]
  (tmp_path / goodput.FILE).write_text("[{")
  log = goodput.GoodputLog(tmp_path, start_step=9, began=now - 10)
  assert log.update(10, {"step": 5.0}) == pytest.approx(0.5, abs=0.02)
