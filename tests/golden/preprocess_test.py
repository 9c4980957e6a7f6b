"""Host preprocessing against the golden case `preprocess`."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mico_jax.config import AudioConfig
from mico_jax.modalities import (
  Geometry,
  audio,
  media,
  sound,
  spatial,
  video_file,
)

pytestmark = pytest.mark.golden
CONFIG = AudioConfig()


@pytest.fixture(scope="module")
def case(golden_dir):
  folder = golden_dir / "preprocess"
  config = json.loads((folder / "config.json").read_text())
  return config, load_file(folder / "outputs.safetensors")


@pytest.fixture(scope="module")
def waveform(golden_dir):
  data = (golden_dir / "media" / "test.flac").read_bytes()
  return sound.decode_audio(data, Geometry(1, 224))


@pytest.mark.parametrize(
  ("name", "bins", "every"),
  [
    ("fbank64", 64, 1),
    ("fbank128_every4", 128, 4),
    ("fbank224_every4", 224, 4),
  ],
)
def test_filterbank(case, waveform, name, bins, every):
  error = np.abs(
    sound.fbank(waveform, bins, CONFIG)[::every] - case[1][f"audio.{name}"]
  )
  assert error.max() < 3e-3
  assert error.mean() < 1e-5


def _slices(waveform, args):
  size = args.get("resize_melbin_num", 224)
  config = dataclasses.replace(CONFIG, mel_bins=args["melbins"])
  geometry = Geometry(args["sample_num"], size, config)
  slices = audio.log_mel_slices(
    waveform,
    geometry,
    slice_frames=args["target_length"],
    extra_slice=True,
  )
  return slices / (2 * CONFIG.std)


def test_slices(case, waveform):
  config, outputs = case
  for item in config["audio_processor"]:
    mine = _slices(waveform, item["args"])
    if "stored" in item:
      mine = mine[:, ::7, ::5]
    np.testing.assert_allclose(mine, outputs[item["tensor"]], atol=3e-3)


def test_other_rates_and_short_sounds(case):
  config, outputs = case
  for item in config["short_audio"]:
    name = item["name"]
    raw = (outputs[f"{name}.waveform"].T, item["sample_rate"])
    mine = sound.decode_audio(raw, Geometry(1, 32))
    resampled = f"{name}.resampled_16000"
    if resampled in outputs:
      np.testing.assert_allclose(mine, outputs[resampled][0], atol=3.5e-5)
    np.testing.assert_allclose(
      _slices(mine, item["args"]), outputs[f"{name}.out"], atol=3e-3
    )


def _pixels(frames, stats):
  return np.moveaxis(spatial.normalise(frames, stats, np), -1, 1)


def test_image(case, golden_dir):
  outputs = case[1]
  data = (golden_dir / "media" / "test.jpeg").read_bytes()
  decoded = media.decode_image(data, Geometry(1, 224))
  stored = outputs["image.decoded_rgb_uint8"]
  assert np.abs(decoded.astype(int) - stored).max() <= 1
  x = stored[None].astype(np.float32) / np.float32(255)
  for size in (224, 28):
    mine = spatial.resize_bilinear(x, (size, size))
    np.testing.assert_allclose(
      _pixels(mine, spatial.CLIP),
      outputs[f"image.evaclip.res{size}"],
      atol=1e-4,
    )
  mine = spatial.resize_bilinear(x, (28, 28))
  np.testing.assert_allclose(
    _pixels(mine, spatial.IMAGENET), outputs["image.swin.res28"], atol=1e-4
  )
  mine, _ = spatial.crop_flip(x, 224, spatial.resize_bilinear, None)
  np.testing.assert_allclose(
    _pixels(mine, spatial.CLIP),
    outputs["image.evaclip.crop_flip_eval.res224"],
    atol=1e-4,
  )


def test_exact_and_rounded_modes(case):
  """What travels is the official picture, exact or rounded to 8 bits."""
  stored = case[1]["image.decoded_rgb_uint8"]
  geometry = Geometry(1, 28)
  clip = spatial.ArrayClip(stored[None])
  for name, tensor, limit in (
    ("mico_demo", "image.swin.res28", 1e-4),
    ("mico_train", "image.evaclip.res28", 0.51 / 255 / 0.224),
  ):
    mode = spatial.VISUAL_MODES[name]
    host = mode.host(clip, geometry, None)
    mine = mode.to_pixels(host, geometry=geometry, xp=np)
    assert np.abs(np.moveaxis(mine, -1, 1) - case[1][tensor]).max() < limit


def test_video(case, golden_dir):
  config, outputs = case
  for key, by_length in config["frame_indices"].items():
    wanted = int(key.split("=")[1])
    for length, indices in by_length.items():
      mine = spatial.sample_frames(int(length), wanted)
      assert mine.tolist() == indices
  data = (golden_dir / "media" / "test.mp4").read_bytes()
  clip = video_file.decode_video(data, Geometry(4, 224))
  assert len(clip) == config["video"]["frames"]
  frames = clip.take(spatial.sample_frames(len(clip), 4).tolist())
  stored = outputs["video.n4.raw_rgb_every16"]
  assert np.abs(frames[:, ::16, ::16].astype(int) - stored).max() <= 1
  x = frames.astype(np.float32) / np.float32(255)
  np.testing.assert_allclose(
    _pixels(spatial.resize_bilinear(x, (28, 28)), spatial.CLIP),
    outputs["video.n4.res28"],
    atol=1e-4,
  )
