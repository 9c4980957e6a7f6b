"""Depth modes: what reaches the encoder, and which mode a run takes."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import (
  ConfigError,
  DataConfig,
  InputConfig,
  SourceConfig,
  TaskConfig,
)
from mico_jax.data.input_checks import check_stated
from mico_jax.data.native_modes import pin_modes
from mico_jax.modalities import MODALITIES, Geometry
from mico_jax.modalities.depth import FAR
from mico_jax.testing.tiny_checkpoint import tiny_config

DEPTH = MODALITIES["depth"]
GEOMETRY = Geometry(1, 16)


def room() -> np.ndarray:
  """A tilted wall in metres, 0.5 to 5 m, with a hole."""
  y, x = np.mgrid[0:12, 0:9]
  metres = 0.5 + 0.3 * y + 0.12 * x * (x > 4)
  metres[3:5, 2:4] = 0  # no reading
  return metres.astype(np.float32)


def expected(values: np.ndarray, *, relative: bool) -> np.ndarray:
  """The channels, pixel by pixel in float64."""
  known = [float(v) for v in values.ravel() if v > 0]
  seen = known if relative else [np.log(v) for v in known]
  mean = sum(seen) / len(seen)
  deviation = (sum((v - mean) ** 2 for v in seen) / len(seen)) ** 0.5
  out = np.zeros((*values.shape, 3))
  for index, value in np.ndenumerate(values.astype(np.float64)):
    if relative:
      level, relief = value, value
    else:
      level = np.log(1 + value) / np.log(1 + FAR)
      relief = np.log(value) if value > 0 else 0.0
    relief = np.clip((relief - mean) / deviation, -3, 3) if value > 0 else 0.0
    out[index] = (2 * level - 1, relief, relief)
  return out


def pixels(name: str, values: np.ndarray, xp=np) -> np.ndarray:
  mode = DEPTH.modes[name]
  return np.asarray(mode.to_pixels(xp.asarray(values), geometry=None, xp=xp))


@pytest.mark.parametrize("xp", [np, jnp])
def test_channels(xp):
  for name, values in (
    ("metric_standardised", room()),
    ("relative_standardised", room() / 6),
  ):
    relative = name.startswith("relative")
    two = np.stack([values, values.T.reshape(values.shape)])  # frames alone
    got = pixels(name, two, xp)
    assert got.dtype == np.float32
    for frame, one in zip(got, two, strict=True):
      want = expected(one, relative=relative)
      np.testing.assert_allclose(frame, want, rtol=0, atol=2e-5)


def test_relief_is_that_of_the_shape():
  """Metres tell the level; a scene ten times as large has the same relief."""
  near, far = (pixels("metric_standardised", k * room()) for k in (1.0, 10.0))
  np.testing.assert_allclose(near[..., 1], far[..., 1], atol=1e-5)
  assert (far - near)[..., 0][room() > 0].min() > 0.1
  # Relative depth is known up to scale and shift.
  shown = room() / 10
  moved = np.where(shown > 0, 0.5 * shown + 0.3, 0)
  one, other = (pixels("relative_standardised", x) for x in (shown, moved))
  np.testing.assert_allclose(one[..., 1], other[..., 1], atol=1e-5)


def test_flat_and_empty_maps():
  for name in ("metric_standardised", "relative_standardised"):
    flat = np.full((4, 4), 0.75, np.float32)
    assert np.all(pixels(name, flat)[..., 1:] == 0)
    np.testing.assert_array_equal(
      pixels(name, 0 * flat), np.broadcast_to([-1.0, 0.0, 0.0], (4, 4, 3))
    )


def test_modes_check_the_unit():
  clip = DEPTH.decode(room(), dataclasses.replace(GEOMETRY, unit="metre"))
  relative = dataclasses.replace(GEOMETRY, unit="relative")
  with pytest.raises(ValueError, match=r"inputs\.depth\.mode"):
    DEPTH.modes["metric_standardised"].host(clip, relative, None)


def source(unit: str) -> SourceConfig:
  return SourceConfig(kind="manifest", path="m.jsonl", depth_unit=unit)


@pytest.mark.parametrize(
  ("units", "want"),
  [
    (("metre",), "metric_standardised"),
    (("millimetre", "metre", ""), "metric_standardised"),
    (("relative",), "relative_standardised"),
    (("metre", "relative"), ""),
    (("",), ""),
  ],
)
def test_new_runs_name_their_mode(units, want):
  sources = {f"s{i}": source(unit) for i, unit in enumerate(units)}
  task = TaskConfig(
    sources=dict.fromkeys(sources, 1), objectives={"contrastive": ("td",)}
  )
  config = tiny_config(
    data=DataConfig(sources={**sources, "unused": source("relative")}),
    tasks={"a": task},
  )
  config = dataclasses.replace(
    config, evaluation=dataclasses.replace(config.evaluation, source="")
  )
  pinned = pin_modes(config)
  assert pinned.data.inputs.get("depth", InputConfig()).mode == want
  assert pin_modes(pinned) == pinned
  if want == "" and len(units) > 1:
    with pytest.raises(ConfigError, match=r"s1\.depth_unit"):
      check_stated(pinned, "s1", "depth")


def test_a_named_mode_stays():
  config = tiny_config()
  inputs = {**config.data.inputs, "depth": InputConfig(mode="metric")}
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, inputs=inputs)
  )
  assert pin_modes(config) == config
