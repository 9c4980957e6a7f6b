"""The written train state restores, split over the devices."""

from __future__ import annotations

import jax
import pytest

from mico_jax.benchmarks import restore_memory


@pytest.mark.multidevice
def test_written_state_restores(tmp_path):
  size = restore_memory.write(tmp_path, "mico_tiny")
  found = restore_memory.restore(tmp_path, "mico_tiny")
  # Arrays that the devices do not divide are held by each of them.
  assert size <= found["held"] < size * jax.device_count()
  assert found["peak"] >= found["before"] > 0
