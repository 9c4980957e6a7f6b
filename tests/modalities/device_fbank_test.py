"""Sound that travels as waveform and is filtered in the step."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import AudioConfig, InputConfig
from mico_jax.data.samples import input_shape
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.inference.prepare import Preparer
from mico_jax.modalities import MODALITIES, Geometry, device_fbank
from mico_jax.modalities.audio import log_mel_slices
from mico_jax.testing.tiny_checkpoint import tiny_config

AUDIO = MODALITIES["audio"]
MODE = AUDIO.modes["plain_on_device"]
RNG = np.random.default_rng(0)


def sixteen_bits(count, loudness):
  """Noise as a file of 16 bits holds it."""
  counts = np.rint(RNG.normal(0, loudness, count)).clip(-32768, 32767)
  return (counts / 32768).astype(np.float32)


@functools.cache
def on_device(geometry):
  return jax.jit(
    functools.partial(device_fbank.log_mel, geometry=geometry, xp=jnp)
  )


@pytest.mark.parametrize(
  ("wave", "geometry"),
  [
    (sixteen_bits(60_000, 3000), Geometry(3, 64)),  # longer than the slices
    (sixteen_bits(16_000, 30), Geometry(3, 64)),  # and shorter: padding
    (sixteen_bits(16_000, 20_000), Geometry(2, 64)),
    (np.full(16_000, -1, np.float32), Geometry(2, 64)),
    (sixteen_bits(50, 3000), Geometry(2, 32)),  # less than a window
    (np.zeros(9000, np.float32), Geometry(2, 32)),
    (sixteen_bits(30_000, 3000), Geometry(2, 48, AudioConfig(mel_bins=40))),
    (
      sixteen_bits(30_000, 3000),
      Geometry(2, 48, AudioConfig(sample_rate=8000, hop_ms=30.0)),
    ),
  ],
)
def test_sounds_of_16_bits_give_the_filterbank_of_the_host(wave, geometry):
  array = MODE.host(wave, geometry)
  assert (array.shape, array.dtype) == (MODE.shape(geometry), np.int16)
  wanted = log_mel_slices(wave, geometry)
  here = device_fbank.log_mel(array, geometry=geometry, xp=np)
  np.testing.assert_allclose(here, wanted, atol=1e-3)
  there = np.asarray(on_device(geometry)(array))
  assert there.dtype == np.float32
  np.testing.assert_array_equal(there == 0, wanted == 0)
  np.testing.assert_allclose(there, wanted, atol=2e-3)


def test_what_is_not_of_16_bits_is_rounded_to_16_bits_of_its_peak():
  geometry = Geometry(1, 64)
  for loudness in (1e-6, 0.1, 4.0):  # a mixture may exceed full scale
    wave = RNG.normal(0, loudness, 12_000).astype(np.float32)
    array = MODE.host(wave, geometry)
    back = np.ldexp(array[0, 2:].astype(np.float64), array[0, 1] - 15)
    part = wave[: len(back)]
    step = np.abs(part).max() / 2**15
    assert np.abs(back[: len(part)] - part).max() <= step
    got = device_fbank.log_mel(array, geometry=geometry, xp=np)
    wanted = log_mel_slices(wave, geometry)
    np.testing.assert_allclose(got, wanted, atol=0.02)


def test_nothing_travels_as_nothing():
  geometry = Geometry(2, 32)
  empty = np.zeros((3, *MODE.shape(geometry)), np.int16)  # dropped, or missing
  pixels = MODE.to_pixels(empty, geometry=geometry, xp=np)
  assert pixels.shape == (3, 2, 32, 32, 3)
  assert not pixels.any()


def test_slices_are_drawn_as_those_of_the_host():
  geometry, wave = Geometry(2, 32), sixteen_bits(60_000, 3000)
  for seed in range(3):
    rng = lambda seed=seed: np.random.default_rng(seed)
    array = MODE.host(wave, geometry, rng())
    got = device_fbank.log_mel(array, geometry=geometry, xp=np)
    wanted = log_mel_slices(wave, geometry, rng=rng())
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_a_config_of_it_has_its_shapes():
  config = tiny_config()
  inputs = {**config.data.inputs}
  inputs["audio"] = InputConfig(frames=2, mode="plain_on_device")
  data = dataclasses.replace(config.data, inputs=inputs)
  config = dataclasses.replace(config, data=data)
  for train in (True, False):
    shape = input_shape(config, "audio", train=train)
    assert (shape.shape, shape.dtype) == ((2, 2 + 15 * 160 + 400), "int16")
  preparer = Preparer(config, make_tokenizer(config.data.tokenizer))
  prepared = preparer.prepare_one("audio", sixteen_bits(9000, 9))
  assert (prepared.shape, prepared.dtype) == (shape.shape, np.int16)
