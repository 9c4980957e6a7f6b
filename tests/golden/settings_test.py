"""The golden runner on folders of the same form with other settings."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from mico_jax.config import AudioConfig
from mico_jax.interop.files import safetensors_file, safetensors_writer
from mico_jax.modalities import Geometry, audio, sound, spatial
from mico_jax.testing import golden
from mico_jax.testing.golden import __main__ as runner
from mico_jax.testing.golden.case import pixels_of

SMALL = pathlib.Path(__file__).parent / "cases"
SIDE, BINS = 8, 12
AUDIO = AudioConfig()


def halved(picture):
  """Bilinear without antialiasing to half the size, in closed form."""
  rows, columns, _ = picture.shape
  blocks = picture.reshape(rows // 2, 2, columns // 2, 2, 3)
  return blocks.astype(np.float64).mean((1, 3)) / 255


def normalised(values, stats):
  return np.moveaxis((values - np.array(stats[0])) / np.array(stats[1]), -1, 0)


@pytest.fixture
def folder(tmp_path):
  """A preprocess_b of one picture and one sound; config.json names the case."""
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (2 * SIDE, 2 * SIDE, 3), np.uint8)
  wave = (0.1 * rng.normal(size=16_000)).astype(np.float32)
  media = tmp_path / "media"
  media.mkdir()
  Image.fromarray(picture).save(media / "a.png")
  soundfile.write(media / "a.wav", wave, AUDIO.sample_rate, subtype="FLOAT")
  config = dataclasses.replace(AUDIO, mel_bins=BINS)
  slices = audio.log_mel_slices(
    wave, Geometry(2, SIDE, config), slice_frames=10, extra_slice=True
  )
  small = halved(picture)
  outputs = {
    "image.decoded_rgb_uint8": picture,
    f"image.evaclip.res{SIDE}": normalised(small, spatial.CLIP)[None],
    f"image.swin.res{SIDE}": normalised(small, spatial.IMAGENET)[None],
    "audio.waveform_first_100": wave[None, :100],
    f"audio.fbank{BINS}": sound.fbank(wave, BINS, AUDIO),
    f"audio.proc.mel{BINS}_len10_n2_resize{SIDE}": slices / (2 * AUDIO.std),
    "short0.waveform": wave[None],
    "short0.out": slices / (2 * AUDIO.std),
    "short0.fbank": sound.fbank(wave, BINS, AUDIO),
  }
  case = tmp_path / "preprocess_b"
  case.mkdir()
  settings = {"short_audio": [{"name": "short0", "sample_rate": 16_000}]}
  (case / "config.json").write_text(json.dumps(settings))
  write(case, outputs)
  return case


def write(case, outputs):
  values = {
    name: np.ascontiguousarray(
      value, value.dtype if value.dtype == np.uint8 else "f4"
    )
    for name, value in outputs.items()
  }
  safetensors_writer.write_arrays(case / "outputs.safetensors", values)


def lines(case, capsys):
  code = runner.main([str(case)])
  return code, capsys.readouterr().out


def test_settings_that_a_folder_lacks_are_told_by_names_and_shapes(
  folder, capsys
):
  code, out = lines(folder, capsys)
  assert code == 0, out
  for name in safetensors_file.read(folder / "outputs.safetensors"):
    assert f"  ok   {name} " in out, name
  assert "preprocess_b (preprocess)" in out


@pytest.mark.parametrize("about", ["a.png", {"file": "a.png"}, {}, None])
def test_a_picture_may_be_named_in_any_way(folder, about, capsys):
  (folder / "config.json").write_text(json.dumps({"image": about}))
  outputs = safetensors_file.read(folder / "outputs.safetensors")
  write(folder, {k: v for k, v in outputs.items() if "image" in k})
  code, out = lines(folder, capsys)
  assert code == 0, out


def test_another_mean_of_sound_is_seen(folder, capsys):
  """15.39 in place of 15.41663 moves slices by 0.002."""
  outputs = safetensors_file.read(folder / "outputs.safetensors")
  shift = (AUDIO.mean - 15.39) / (2 * AUDIO.std)
  sliced = [name for name in outputs if "proc" in name or "out" in name]
  write(folder, {**outputs, **{k: outputs[k] + shift for k in sliced}})
  code, out = lines(folder, capsys)
  assert code == 1
  failed = [line.split()[1] for line in out.splitlines() if " FAIL " in line]
  assert set(sliced) == set(failed)


@pytest.mark.parametrize(
  ("key", "value", "code"),
  [
    ("audio_mean", 15.41663, 0),
    ("audio_mean", 15.4166, 1),
    ("audio_std", 6.5558, 1),
    ("clip_std", [0.26862954, 0.26130258, 0.27577711], 0),
    ("imagenet_mean", [0.485, 0.456, 0.4061], 1),
  ],
)
def test_constants_are_compared_to_the_last_digit(
  folder, key, value, code, capsys
):
  settings = json.loads((folder / "config.json").read_text())
  settings["constants"] = {key: value}
  (folder / "config.json").write_text(json.dumps(settings))
  got, out = lines(folder, capsys)
  assert got == code
  assert f"constants.{key}" in out


def test_cases_with_a_suffix(tmp_path, capsys):
  shutil.copytree(SMALL / "token_masker", tmp_path / "token_masker_b")
  file = tmp_path / "token_masker_b" / "config.json"
  settings = json.loads(file.read_text()) | {"case": "token_masker_b"}
  file.write_text(json.dumps(settings))
  for name in ("token_masker", "token_masker_b"):
    assert runner.main([str(tmp_path), "--cases", name]) == 0
  assert "token_masker_b (token_masker)" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("name", "case"),
  [
    ("vision_clip", "vision_clip"),
    ("vision_clip_b", "vision_clip"),
    ("vision_clip-336", "vision_clip"),
    ("generate2", "generate"),
    ("vision_eva02_e", "vision_eva02_e"),
    ("vision_eva02_e_tiny", "vision_eva02_e"),
    ("vision_eva02_extra", "vision_eva02"),
    ("vision_clipper", ""),
    ("vision_eva021", ""),
    ("my_vision_clip", ""),
    ("", ""),
  ],
)
def test_names_begin_with_their_case(name, case):
  assert golden.case_named(name, golden.CASES) == case


@pytest.mark.parametrize(
  ("kind", "stats", "mode"),
  [
    ("swin", spatial.IMAGENET, "mico_demo"),
    ("evaclip01_giant", spatial.CLIP, "mico_demo_clip"),
    ("clip_vit_base_16", spatial.CLIP, "mico_demo_clip"),
  ],
)
def test_pixels_by_the_type_of_the_encoder(kind, stats, mode):
  """Exact, no rounding to eight bits on the way."""
  assert pixels_of(kind) == (stats, mode)
  picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  geometry = Geometry(1, SIDE)
  one = spatial.VISUAL_MODES[mode]
  host = one.host(spatial.ArrayClip(picture[None]), geometry, None)
  assert host.dtype == np.float32
  got = one.to_pixels(host, geometry=geometry, xp=np)
  want = normalised(halved(picture), stats)
  np.testing.assert_allclose(np.moveaxis(got[0], -1, 0), want, atol=1e-6)


def test_an_unknown_type_of_encoder_has_no_pixels():
  assert pixels_of("videoswin") is None
  assert pixels_of("clipping") is None


@pytest.mark.golden
@pytest.mark.slow
def test_demo_with_the_pixels_of_clip(golden_dir, tmp_path, capsys):
  """What the demo feeds the encoder follows the type that config.json names."""
  pytest.importorskip("torch")
  for name in ("media", "wordpiece"):
    (tmp_path / name).symlink_to(golden_dir / name)
  case = tmp_path / "demo_e2e_clip"
  shutil.copytree(golden_dir / "demo_e2e", case)
  settings = json.loads((case / "config.json").read_text())
  settings["image_encoder_type_for_normalisation"] = "evaclip"
  (case / "config.json").write_text(json.dumps(settings))
  outputs = safetensors_file.read(case / "outputs.safetensors")
  axes = (1, 1, 3, 1, 1)
  (mean, std), (other, scale) = (
    [np.reshape(x, axes) for x in stats]
    for stats in (spatial.IMAGENET, spatial.CLIP)
  )
  image = (outputs["image_input"] * std + mean - other) / scale
  file = case / "outputs.safetensors"
  safetensors_writer.write_arrays(
    file, {**outputs, "image_input": image.astype(np.float32)}
  )
  code, out = lines(case, capsys)
  assert "  ok   image_input " in out, out
  assert "  ok   audio_input " in out
  assert code == 1  # what the encoder makes of them was stored for the others
  assert "  FAIL vision_output " in out
