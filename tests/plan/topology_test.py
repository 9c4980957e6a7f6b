"""Topology names, and how fast their axes talk."""

from __future__ import annotations

import pytest

from mico_jax.config import ConfigError
from mico_jax.plan import topology


@pytest.mark.parametrize(
  ("name", "chips", "devices"),
  [
    ("v5e:16x16", 256, 256),
    ("v5p:8x8x8", 512, 512),
    ("v4:2x2x1", 4, 8),
    ("tpu7x:4x4x4", 64, 128),
    ("h100:8", 8, 8),
    ("h200:2x8", 16, 16),
  ],
)
def test_counts(name, chips, devices):
  found = topology.parse(name)
  assert (found.num_chips, found.num_devices) == (chips, devices)


@pytest.mark.parametrize(
  "name",
  [
    *("v3:2x2", "v5e", "v5e:3x5", "v5e:32x32", "v5p:4x4", "v5p-128", ""),
    *("h100", "h100:9", "h100:0x8", "a100:8"),
  ],
)
def test_an_unknown_name_lists_the_known(name):
  with pytest.raises(ConfigError, match=r"unknown topology .*v5e:\{2x2,"):
    topology.parse(name)


def test_cores_of_a_device():
  cores = {n: topology.parse(n).cores for n in ("v5e:2x2", "v5p:2x2x1")}
  assert cores == {"v5e:2x2": 1, "v5p:2x2x1": 2}


def test_every_listed_shape_is_one():
  for name, torus in topology.TORI.items():
    for shape in torus.shapes:
      assert topology.parse(f"{name}:{shape}").num_chips >= 4


def test_bandwidth_counts_the_links_of_the_dimensions_in_use():
  slice_ = topology.parse("v5e:16x16")
  row = [(x, 0, 0) for x in range(16)]
  everything = [(x, y, 0) for x in range(16) for y in range(16)]
  assert slice_.bandwidth(row) == 2 * 50e9  # a closed ring
  assert slice_.bandwidth(everything) == 4 * 50e9
  assert slice_.bandwidth(row[:8]) == 50e9  # half of a ring is a line
  line = topology.parse("v5e:4x4")
  assert line.bandwidth([(x, 0, 0) for x in range(4)]) == 50e9


def test_gpus_of_a_host_talk_over_nvlink():
  found = topology.parse("h100:2x8")
  assert found.bandwidth([(0, 0), (0, 1)]) == 450e9
  assert found.bandwidth([(0, 0), (1, 0)]) == 50e9
  assert found.usable < found.memory
  assert found.target.platform == "gpu"
