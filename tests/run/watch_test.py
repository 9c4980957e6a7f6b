from __future__ import annotations

import math

import pytest

from mico_jax.run.monitor import watch

FLAT = math.log(64)


def make(**options):
  return watch.LossWatch(
    **{"warmup_steps": 10, "collapse_patience": 5, "nonfinite_patience": 3}
    | options
  )


def alarms(losses, **options):
  guard = make(**options)
  return [
    text
    for step, loss in enumerate(losses)
    if (
      text := guard.update(
        step, finite=True, losses={"tv": loss}, chance={"tv": FLAT}
      )
    )
  ]


def test_alarm_once_after_warmup_and_patience():
  (text,) = alarms([FLAT * 1.005] * 60)
  assert "step 14" in text
  assert "at chance, 4.159" in text
  assert "trace" in text


@pytest.mark.parametrize(
  "losses",
  [
    [FLAT] * 14,  # patience not yet over
    [FLAT * 0.98] * 60,  # lower than chance: learning
    [FLAT, FLAT, FLAT, 3.0] * 15,  # not in a row
  ],
)
def test_no_alarm(losses):
  assert alarms(losses) == []


def test_patience_zero_switches_it_off():
  assert alarms([FLAT] * 60, collapse_patience=0) == []


def test_count_of_steps_between_updates():
  assert len(alarms([FLAT] * 60)) == 1
  guard = make()
  text = None
  for step in (10, 20):
    text = guard.update(
      step, finite=True, losses={"tv": FLAT}, chance={"tv": FLAT}, count=3
    )
  assert text is not None
  assert guard.collapsed == ["tv"]


def test_nonfinite_steps_stop_with_the_ids():
  guard = make()
  ids = [f"scene{i}" for i in range(20)]
  guard.update(7, finite=False, sample_ids=ids)
  guard.update(8, finite=True)
  guard.update(9, finite=False, sample_ids=ids)
  guard.update(10, finite=False, sample_ids=ids)
  with pytest.raises(watch.NonFiniteError, match="scene0, scene1") as caught:
    guard.update(11, finite=False, sample_ids=lambda: ids)
  assert caught.value.step == 11
  assert caught.value.sample_ids == tuple(ids)
  assert "20 in all" in str(caught.value)
  assert guard.nonfinite_total == 4


def test_ids_are_asked_only_at_the_stop():
  def never():
    raise AssertionError

  make().update(0, finite=False, sample_ids=never)


def test_losses_without_chance_are_not_watched():
  guard = make(warmup_steps=0)
  text = None
  for step in range(5):
    text = guard.update(
      step,
      finite=True,
      losses={"tv": math.log(16), "ta": 1.0, "td": 0.0},
      chance={"tv": math.log(16), "ta": math.log(64)},
    )
  assert "2.773" in text
  assert guard.collapsed == ["tv"]
