"""The measurement of a round trip, on a tiny model."""

from __future__ import annotations

import pytest

from mico_jax.benchmarks import round_trip


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors"])
def test_every_byte_comes_back(tmp_path, form):
  found = round_trip.run("mico_tiny", form, tmp_path)
  for step in ("import", "export_pt", "export_safetensors"):
    assert found[f"{step}_identical"], step
    assert found[f"{step}_peak_bytes"] > 0
  assert found["load_device_bytes"] >= found["largest_array_bytes"]


def test_random_weights_depend_on_the_seed():
  from mico_jax.models import PRESETS

  one, other = (
    round_trip.random_tensors(PRESETS["mico_tiny"], seed) for seed in (0, 1)
  )
  assert one.keys() == other.keys()
  name = "contra_temp"
  assert one[name].load() == one[name].load() != other[name].load()
