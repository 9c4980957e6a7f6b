"""Broken, odd and huge media: a clear one-line error, or it works."""

from __future__ import annotations

import dataclasses
import io
import resource

import numpy as np
import pytest
import soundfile
from PIL import Image

from mico_jax.modalities import MODALITIES, DecodeError, Geometry, video_file

GEOMETRY = Geometry(2, 32)


def _image(array, kind="png", **options):
  out = io.BytesIO()
  Image.fromarray(array).save(out, kind, **options)
  return out.getvalue()


def _noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _video(tmp_path, frames=12):
  import av

  path = tmp_path / "clip.mp4"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mpeg4", rate=10)
    stream.width = stream.height = 64
    for i in range(frames):
      frame = np.full((64, 64, 3), (20 * i) % 256, np.uint8)
      for packet in stream.encode(av.VideoFrame.from_ndarray(frame)):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)
  return path.read_bytes()


def _sound(samples, rate=16000, kind="WAV"):
  out = io.BytesIO()
  soundfile.write(out, samples, rate, format=kind)
  return out.getvalue()


def _load(key, raw, geometry=GEOMETRY, mode="plain"):
  modality = MODALITIES[key]
  return modality.modes[mode].host(
    modality.decode(raw, geometry), geometry, None
  )


def _message(error):
  text = str(error.value)
  assert "\n" not in text
  return text


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_image_kinds(kind):
  x = _load("image", _image(_noise(40, 50, 3), kind))
  assert x.shape == (2, 32, 32, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_colour_modes(mode):
  out = io.BytesIO()
  kind = "jpeg" if mode == "CMYK" else "png"
  Image.fromarray(_noise(40, 50, 3)).convert(mode).save(out, kind)
  assert _load("image", out.getvalue()).shape == (2, 32, 32, 3)


def test_one_pixel():
  x = _load("image", _image(np.full((1, 1, 3), 7, np.uint8)))
  assert (x == 7).all()
  for mode in MODALITIES["image"].modes:
    _load("image", _image(np.full((1, 1, 3), 7, np.uint8)), mode=mode)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_truncated_image(kind):
  data = _image(_noise(200, 200, 3), kind)
  with pytest.raises(DecodeError, match="not a readable image") as error:
    _load("image", data[: len(data) // 2])
  _message(error)


@pytest.mark.parametrize("key", ["image", "video", "audio", "depth", "normal"])
@pytest.mark.parametrize("raw", [b"", b"this is no media file at all" * 40])
def test_no_media(key, raw):
  geometry = dataclasses.replace(GEOMETRY, unit="metre")
  with pytest.raises(DecodeError) as error:
    _load(key, raw, geometry, "metric" if key == "depth" else "plain")
  _message(error)


def test_untyped_16_bit():
  data = _image(np.full((8, 8), 1500, np.uint16))
  with pytest.raises(DecodeError, match="depth:mm:FILE"):
    _load("image", data)
  geometry = dataclasses.replace(GEOMETRY, unit="millimetre")
  x = _load("depth", data, geometry, "metric")
  np.testing.assert_allclose(x, 1.5, rtol=1e-3)


def test_huge_image_in_bounded_memory():
  """100 megapixels as JPEG: decoded at reduced size."""
  row = np.arange(10_000, dtype=np.uint16) // 40
  data = _image(np.broadcast_to(row.astype(np.uint8), (10_000, 10_000)), "jpeg")
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  x = _load("image", data, Geometry(1, 224, max_pixels=120_000_000))
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert x.shape == (1, 224, 224, 3)
  assert abs(int(x[0, 100, 112, 0]) - 125) <= 3
  assert grown < 150 * 1024  # KiB; the full picture would take 300 MB


def test_too_large_image_is_not_decoded():
  data = _image(np.zeros((300, 300, 3), np.uint8))
  small = dataclasses.replace(GEOMETRY, max_pixels=10_000)
  with pytest.raises(DecodeError, match="max_pixels"):
    _load("image", data, small)


def test_video(tmp_path):
  data = _video(tmp_path)
  x = _load("video", data)
  assert x.shape == (2, 32, 32, 3)
  assert int(x[1].mean()) - int(x[0].mean()) > 60
  still = _load("video", _image(_noise(40, 40, 3), "jpeg"))
  np.testing.assert_array_equal(still[0], still[1])
  frames = [_image(np.full((40, 40, 3), v, np.uint8)) for v in (0, 90, 200)]
  x = _load("video", frames)
  assert [int(f.mean()) for f in x] == [0, 200]


def test_truncated_video(tmp_path):
  data = _video(tmp_path, 40)
  for share in (0.1, 0.5, 0.9):
    with pytest.raises(DecodeError) as error:
      _load("video", data[: int(len(data) * share)])
    _message(error)


def test_seeking_finds_the_same_frames(tmp_path, monkeypatch):
  data = _video(tmp_path, 40)
  wanted = [0, 13, 26, 39]
  plain = video_file.VideoClip(data, GEOMETRY).take(wanted)
  monkeypatch.setattr(video_file, "_SEEK_BEYOND", 5)
  np.testing.assert_array_equal(
    video_file.VideoClip(data, GEOMETRY).take(wanted), plain
  )


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_any_sample_rate(kind, rate):
  t = np.arange(rate) / rate
  wave = 0.5 * np.sin(2 * np.pi * 440 * t)
  out = MODALITIES["audio"].decode(_sound(wave, rate, kind), GEOMETRY)
  assert out.shape == (16000,)
  spectrum = np.abs(np.fft.rfft(out))
  assert spectrum.argmax() == 440


def test_odd_rate_needs_no_table():
  out = MODALITIES["audio"].decode(
    (np.ones(44099, np.float32), 44099), GEOMETRY
  )
  assert out.shape == (16000,)
  np.testing.assert_allclose(out[100:-100], 1.0, atol=2e-3)


def test_empty_and_broken_sound():
  with pytest.raises(DecodeError, match="length 0"):
    _load("audio", _sound(np.zeros(0)))
  noise = np.random.default_rng(0).normal(0, 0.1, 16000)
  data = _sound(noise, kind="FLAC")
  with pytest.raises(DecodeError, match=r"cut short|lost sync"):
    _load("audio", data[: len(data) // 2])
  with pytest.raises(DecodeError, match="non-finite"):
    _load("audio", np.full(100, np.nan, np.float32))


def test_short_sound_is_padded_with_the_mean():
  x = _load("audio", _sound(np.zeros(1)))
  assert x.shape == (2, 32, 32)
  assert (x[0, 1:] == 0).all()
  assert (x[1] == 0).all()


def test_long_sound_is_cut():
  config = dataclasses.replace(GEOMETRY.audio, max_seconds=0.5)
  geometry = dataclasses.replace(GEOMETRY, audio=config)
  data = _sound(np.zeros(32000))
  assert MODALITIES["audio"].decode(data, geometry).shape == (8000,)


def test_stereo():
  both = np.stack([np.full(400, 0.5), np.full(400, -0.5)], 1)
  decode = MODALITIES["audio"].decode
  assert decode(_sound(both), GEOMETRY)[0] == pytest.approx(0.5, abs=1e-3)
  mean = dataclasses.replace(
    GEOMETRY, audio=dataclasses.replace(GEOMETRY.audio, channel="mean")
  )
  assert decode(_sound(both), mean)[0] == pytest.approx(0, abs=1e-3)


def test_texts():
  decode = MODALITIES["subtitle"].decode
  assert decode("  a\n dog ", GEOMETRY) == "a dog"
  for wrong, match in (
    (b"caf\xe9", "UTF-8"),
    ("\ud800", "UTF-8"),
    (" \n", "empty"),
    (3, "expected text"),
  ):
    with pytest.raises(DecodeError, match=match) as error:
      decode(wrong, GEOMETRY)
    _message(error)
