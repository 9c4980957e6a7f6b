"""Killed runs end as if nothing had happened."""

from __future__ import annotations

import pytest

from mico_jax.testing.endurance import kills


def check(found, count):
  assert found["kills"] == count
  assert found["same_samples"], found
  assert found["same_bits"], found
  assert found["arrays"] > 50


def test_one_kill(tmp_path):
  check(kills.compare(tmp_path, kills=1, processes=(1,)), 1)


@pytest.mark.slow
@pytest.mark.multidevice
def test_five_kills_over_changing_processes(tmp_path):
  check(kills.compare(tmp_path, kills=5), 5)
