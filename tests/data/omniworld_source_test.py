"""The source of OmniWorld v2: its sensors by the way of every sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mico_jax import world
from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.samples import geometry, load_inputs
from mico_jax.data.sources import open_source
from mico_jax.modalities import MODALITIES
from mico_jax.testing.tiny_checkpoint import tiny_config


def config(**fields):
  base = tiny_config()
  sources = {"a": SourceConfig(**{"version": "v2", **fields})}
  data = dataclasses.replace(base.data, sources=sources)
  return dataclasses.replace(base, data=data)


def test_units_and_rates_are_those_of_the_scenes():
  found = config()
  source = open_source(found, "a")
  record = source.record(5)
  assert set(record.media) == set(world.FIELDS_V2)
  assert set(record.captions) == set(world.STATED_V2)
  keys = [key for key in MODALITIES if key in record.media]
  inputs = load_inputs(found, record, "a", keys, None)
  scene = record.fields["scene"]
  raw = world.World(version="v2").render(scene, num_frames=1)
  # On their way to the device: Celsius; g and rad/s; the unit sphere.
  celsius = raw["thermal"].astype(np.float64) - 273.15
  size = found.model.vision.image_size
  small = celsius.reshape(1, size, 32 // size, size, 32 // size).mean((2, 4))
  assert inputs["thermal"].mean() == pytest.approx(small.mean(), abs=0.2)
  samples = 64 * len(scene.solids)
  assert geometry(found, "imu", "a").rate == 50
  sent = inputs["imu"][0]
  np.testing.assert_allclose(
    sent[:samples, :3], raw["imu"][:, :3] / 9.80665, atol=2e-3, rtol=1e-3
  )
  assert sent[:samples, 6:].all()
  assert not sent[samples:].any()
  cloud = inputs["pointcloud"][0]
  there = cloud[cloud[..., 7] > 0]
  assert np.linalg.norm(there[:, :3], axis=1).max() == pytest.approx(
    1, abs=1e-3
  )
  assert there[:, 6].all()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"version": "v3"}, "version='v3'|'v3' is unknown; known: v1, v2"),
    ({"units": {"thermal": "celsius"}}, "has 'kelvin'; remove it"),
    ({"rates": {"imu": 100.0}}, r"rates\['imu'\]=100\.0.*has 50\.0"),
  ],
)
def test_what_does_not_hold_is_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    open_source(config(**fields), "a")


def test_v1_says_nothing_of_what_it_lacks():
  found = config(version="v1")
  record = open_source(found, "a").record(0)
  assert set(record.media) == set(world.FIELDS)
  assert set(record.captions) == set(world.STATED)
  sources = found.data.sources | {
    "b": SourceConfig(units={"thermal": "counts"})
  }
  data = dataclasses.replace(found.data, sources=sources)
  both = dataclasses.replace(found, data=data)
  assert geometry(both, "thermal").unit == "counts"
  assert geometry(both, "thermal", "a").unit == ""
