from __future__ import annotations

import io
import math

import pytest

from mico_jax.run.monitor import progress


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize(
  ("seconds", "text"),
  [(0, "0:00"), (65, "1:05"), (3725, "1:02:05"), (math.inf, "?"), (-1, "?")],
)
def test_format_seconds(seconds, text):
  assert progress.format_seconds(seconds) == text


@pytest.mark.parametrize(
  "value", [0.0, 3, 123456, 1e9, 0.07, 3.14159265, 1.234e-7, math.nan, math.inf]
)
def test_format_value_is_short(value):
  assert len(progress.format_value(value)) <= 9


def test_lines_are_rare_outside_a_terminal():
  clock, stream = Clock(), io.StringIO()
  with progress.Progress(
    100, stream=stream, interval=10.0, clock=clock
  ) as shown:
    for step in range(1, 101):
      clock.now += 1.0
      shown.update(step, samples=32, terms={"loss": 2.0})
    assert shown.steps_per_second == pytest.approx(1.0)
    assert shown.samples_per_second == pytest.approx(32.0)
  lines = stream.getvalue().splitlines()
  assert len(lines) == 10
  assert lines[0].startswith("step 10/100 10% | eta 1:30")
  assert "32 samples/s" in lines[0]
  assert "loss 2" in lines[0]
  assert lines[-1].startswith("step 100/100 100% | in 1:40")


def test_rate_forgets_the_compilation():
  clock = Clock()
  shown = progress.Progress(
    1000, stream=io.StringIO(), window=5, clock=clock, interval=1e9
  )
  clock.now = 60.0
  shown.update(1)
  for step in range(2, 12):
    clock.now += 0.5
    shown.update(step)
  assert shown.eta == pytest.approx((1000 - 11) * 0.5)


def test_resume_counts_from_where_it_was():
  clock, stream = Clock(), io.StringIO()
  with progress.Progress(
    10, start=8, stream=stream, clock=clock, interval=0.0
  ) as shown:
    clock.now = 1.0
    shown.update(9)
    clock.now = 2.0
    shown.update(10)
  assert stream.getvalue().startswith("step 9/10 90%")
  assert stream.getvalue().count("\n") == 2


def test_bar_in_a_terminal():
  stream = Terminal()
  with progress.Progress(10, label="demo", stream=stream) as shown:
    for step in range(1, 11):
      shown.update(step, samples=4, terms={"loss": 1.5})
  text = stream.getvalue()
  assert "demo" in text
  assert "10/10" in text
  assert "loss 1.5" in text


def test_disabled_shows_nothing():
  stream = io.StringIO()
  with progress.Progress(
    2, stream=stream, enabled=False, interval=0.0
  ) as shown:
    shown.update(1)
    shown.update(2)
  assert stream.getvalue() == ""


def test_values_alone_are_no_progress():
  clock = Clock()
  shown = progress.Progress(9, stream=io.StringIO(), clock=clock)
  clock.now = 1.0
  shown.show({"loss": 2.0})
  clock.now += 1e-5
  shown.update(1, samples=64)
  assert shown.samples_per_second == 0.0
