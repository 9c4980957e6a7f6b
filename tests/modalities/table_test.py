"""Every modality of the table keeps the contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mico_jax import modalities
from mico_jax.config import ModelConfig
from mico_jax.modalities import (
  KNOWLEDGE,
  MODALITIES,
  CustomEmbedding,
  Geometry,
  as_configured,
  by_letter,
  file_spec,
  has_words,
  letters,
  played_by,
  shown,
  spatial,
)

GEOMETRY = Geometry(2, 32, unit="metre")
# Letter of an axis of patches -> its size.
SIZES = {"T": 2, "Y": 32, "X": 32, "C": 3}
CASES = [
  (key, name) for key in KNOWLEDGE for name in MODALITIES[key].modes
]  # fmt: skip


def _sizes(modality):
  """(shape of what is sent, shape of its pixels) of a sample of two frames."""
  dims = modality.spec.dims
  if isinstance(modality.embedding, CustomEmbedding):
    frame = modality.embedding.frame
    return (2, *frame), (1, 2, *frame)
  return tuple(SIZES[d] for d in dims), (1, 2, 32, 32, 3)


@pytest.mark.parametrize(("key", "name"), CASES)
def test_mode(key, name):
  modality = MODALITIES[key]
  mode = modality.modes[name]
  geometry = dataclasses.replace(GEOMETRY, unit=mode.unit)
  sample = modality.example(geometry, 3)
  shape, want = _sizes(modality)
  if mode.shape is not None:
    shape = mode.shape(geometry)
  for rng in (None, np.random.default_rng(0)):
    array = mode.host(sample, geometry, rng)
    assert array.shape == shape
    assert array.dtype == (mode.dtype or modality.spec.dtype)
    low, high = mode.value_range or modality.spec.value_range
    assert low <= array.min() <= array.max() <= high
    pixels = mode.to_pixels(array[None], geometry=geometry, xp=np)
    assert pixels.shape == want
    assert pixels.dtype == np.float32
    assert np.isfinite(pixels).all()
  again = mode.host(sample, geometry, np.random.default_rng(0))
  np.testing.assert_array_equal(array, again)
  partner = modality.mode(name, train=False)
  one, two = (partner.host(sample, geometry, None) for _ in range(2))
  np.testing.assert_array_equal(one, two)


def test_normals_are_read_as_depth_where_the_config_says_so():
  normal, depth = MODALITIES["normal"], MODALITIES["depth"]
  assert as_configured(normal, ModelConfig()) is normal
  read = as_configured(normal, ModelConfig(normals_as="depth"))
  assert (read.head, read.context_type) == ("d", "depth")
  assert (read.letter, read.caption) == ("n", normal.caption)
  for modality in MODALITIES.values():
    if modality is not normal:
      model = ModelConfig(normals_as="depth")
      assert as_configured(modality, model) is modality
  assert depth.head == "d"


def test_an_image_plays_a_video():
  assert played_by("v", ("image", "audio")) == "image"
  assert played_by("v", ("image", "video")) == "video"
  assert played_by("i", ("video",)) == ""
  assert shown("ia") == set("iav")
  assert shown("va") == set("va")
  assert has_words("vas")
  assert not has_words("va")


@pytest.mark.parametrize("key", KNOWLEDGE)
def test_modes_say_their_unit(key):
  modality = MODALITIES[key]
  for mode in modality.modes.values():
    assert (mode.unit in modality.units) if modality.units else not mode.unit


def test_letters_are_unique():
  found = [m.letter for m in MODALITIES.values()]
  assert len(set(found)) == len(found)
  assert all(by_letter(m.letter) is m for m in MODALITIES.values())
  assert letters("tvas") == "vas"
  for wrong in ("t", "tvv", "tz", "vt"):
    with pytest.raises(ValueError, match=r"group|letter"):
      letters(wrong)


def test_unknown_mode_lists_the_known():
  with pytest.raises(ValueError, match="mico_demo"):
    MODALITIES["image"].mode("nope")


def test_file_types():
  assert file_spec("a/b.JPG").key == "image"
  assert file_spec("depth:mm:x.png").unit == "millimetre"
  assert file_spec("normal:x.png") == modalities.FileSpec("normal", "x.png")
  with pytest.raises(ValueError, match="depth:mm:FILE"):
    file_spec("depth:x.png")
  with pytest.raises(ValueError, match="unknown file type"):
    file_spec("x.docx")


def test_aligned_modalities_share_the_crop():
  """Depth of one frame and video of two are cut at the same place."""
  ramp = np.tile(
    np.arange(64, dtype=np.uint8)[None, None, :, None], (2, 64, 1, 3)
  )
  geometry = Geometry(2, 32, unit="metre")
  video = MODALITIES["video"].modes["crop_flip_smooth"]
  depth = MODALITIES["depth"].modes["metric_crop_flip"]
  for seed in range(6):
    pixels = video.host(
      spatial.ArrayClip(ramp), geometry, np.random.default_rng(seed)
    )
    one = dataclasses.replace(geometry, frames=1)
    metres = depth.host(
      spatial.ArrayClip(ramp[:1, ..., 0].astype(np.float32)),
      one,
      np.random.default_rng(seed),
    )
    assert np.abs(pixels[0, ..., 0] - metres[0].astype(float)).max() <= 2.5


def test_flip_mirrors_normals():
  mode = MODALITIES["normal"].modes["crop_flip"]
  frames = np.full((1, 40, 40, 3), 10, np.uint8)
  seen = set()
  for seed in range(8):
    out = mode.host(
      spatial.ArrayClip(frames), Geometry(1, 32), np.random.default_rng(seed)
    )
    seen.add((int(out[0, 0, 0, 0]), int(out[0, 0, 0, 1])))
  assert seen == {(10, 10), (245, 10)}


def test_depth_units():
  png = np.array([[0, 1500]], np.uint16)
  for unit, want in (("millimetre", 1.5), ("relative", 1500 / 65535)):
    geometry = dataclasses.replace(GEOMETRY, unit=unit)
    clip = MODALITIES["depth"].decode(png, geometry)
    assert clip.take([0])[0, 0, 1] == pytest.approx(want)
  with pytest.raises(ValueError, match="depth_unit"):
    MODALITIES["depth"].decode(png, Geometry(1, 32))
  with pytest.raises(ValueError, match=r"inputs\.depth\.mode"):
    MODALITIES["depth"].modes["metric"].host(
      clip, dataclasses.replace(GEOMETRY, unit="relative"), None
    )


def test_frames_are_repeated_when_few():
  assert spatial.sample_frames(2, 4).tolist() == [0, 1, 1, 1]
  rng = np.random.default_rng(0)
  picks = np.stack([spatial.sample_frames(10, 3, rng) for _ in range(200)])
  assert picks.min(0).tolist() == [0, 4, 7]
  assert picks.max(0).tolist() == [3, 6, 9]
