"""Decoded media kept in memory: the same samples, decoded once."""

from __future__ import annotations

import dataclasses
import io

import av
import numpy as np
import pytest

from mico_jax.config import (
  AudioConfig,
  Config,
  DataConfig,
  InputConfig,
  ModelConfig,
  VisionConfig,
)
from mico_jax.data.cache import DecodedCache
from mico_jax.data.records import Record
from mico_jax.data.samples import load_inputs
from mico_jax.modalities import DecodeError

KEYS = ("video", "audio")
CONFIG = Config(
  model=ModelConfig(vision=VisionConfig(image_size=16, patch_size=8)),
  data=DataConfig(
    inputs={
      "video": InputConfig(frames=2, mode="shift"),
      "audio": InputConfig(frames=2, mode="spec_augment"),
    },
    audio=AudioConfig(),
  ),
)


def _video(frames: int = 12) -> bytes:
  buffer = io.BytesIO()
  rng = np.random.default_rng(0)
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("mpeg4", rate=25)
    stream.width = stream.height = 32
    for _ in range(frames):
      pixels = rng.integers(0, 255, (32, 32, 3), np.uint8)
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return buffer.getvalue()


@pytest.fixture
def record():
  reads = []
  media = {
    "video": _video(),
    "audio": np.sin(np.arange(9000) / 9).astype(np.float32),
  }

  def reader(key):
    def read():
      reads.append(key)
      return media[key]

    return read

  return Record(id="one", media={k: reader(k) for k in KEYS}), reads


def _load(record, cache, epoch):
  return load_inputs(
    CONFIG,
    record,
    "",
    KEYS,
    None,
    rng_key=(0, epoch, "one"),
    cache=cache,
    index=0,
  )


def test_the_same_samples_decoded_once(record):
  record, reads = record
  cache = DecodedCache(1)
  for epoch in range(4):
    got, want = _load(record, cache, epoch), _load(record, None, epoch)
    for key in KEYS:
      np.testing.assert_array_equal(got[key], want[key])
  assert len(cache) == 2
  assert reads.count("video") == 1 + 4


def test_a_full_cache_keeps_no_more():
  cache = DecodedCache(1)
  make = lambda: np.zeros(700_000, np.uint8)
  for key in "ab":
    assert cache.get(key, make).shape == (700_000,)
  assert "a" in cache
  assert "b" not in cache


def test_a_broken_sample_stays_broken():
  cache = DecodedCache(1)

  def broken():
    raise DecodeError("no")

  for _ in range(2):
    with pytest.raises(DecodeError):
      cache.get("a", broken)
  assert len(cache) == 0


def test_no_limit_no_cache(record):
  record, reads = record
  cache = DecodedCache(0)
  _load(record, cache, 0)
  _load(record, cache, 1)
  assert reads.count("audio") == 2
  assert len(cache) == 0


def test_modality_dropout_blanks_a_share_of_the_training_samples(record):
  record, _ = record
  data = dataclasses.replace(
    CONFIG.data,
    inputs={
      **CONFIG.data.inputs,
      "video": InputConfig(frames=2, mode="shift", dropout=0.5),
    },
  )
  config = dataclasses.replace(CONFIG, data=data)
  cache, blank = DecodedCache(1), []
  for epoch in range(200):
    key = (0, epoch, "one")
    got = load_inputs(
      config, record, "", KEYS, None, rng_key=key, cache=cache, index=0
    )
    want = _load(record, cache, epoch)
    np.testing.assert_array_equal(got["audio"], want["audio"])
    blank.append(not got["video"].any())
    if not blank[-1]:
      np.testing.assert_array_equal(got["video"], want["video"])
  assert 0.35 < np.mean(blank) < 0.65
  seen = load_inputs(config, record, "", KEYS, None, cache=cache, index=0)
  assert seen["video"].any()
