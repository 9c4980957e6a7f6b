"""A longer run with a kill in it neither grows nor recompiles."""

from __future__ import annotations

import pytest

from mico_jax.testing.endurance import soak


@pytest.mark.slow
def test_short_soak(tmp_path):
  found = soak.soak(tmp_path, steps=1000, every=500, width=64)
  assert found["steps"] == 1000
  assert found["faults"] == 1
  assert found["recompiles"] == 0
  assert found["growth_gb"] < 0.1
  assert 0 < found["goodput"] <= 1
  assert found["restart_s"] > 0
