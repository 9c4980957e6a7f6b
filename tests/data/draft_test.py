"""`data.inputs.*.draft`: large JPEG is decoded smaller, in training alone."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from mico_jax.config import ConfigError, InputConfig
from mico_jax.data.input_checks import check_inputs
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import open_source
from mico_jax.modalities import media
from mico_jax.testing.tiny_data import config_of, manifest_source


def _source(folder):
  """One picture of 256 x 320 pixels, and a video of two of its frames."""
  y, x = np.mgrid[:256, :320] / 50.0
  waves = np.stack([np.sin(y), np.cos(x), np.sin(x + y)], -1)
  picture = np.rint(127.5 + 100 * waves).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "JPEG", quality=95)
  (folder / "a.jpg").write_bytes(file.getvalue())
  (folder / "m.jsonl").write_text(
    '{"id": "a", "image": "a.jpg", "video": ["a.jpg", "a.jpg"]}\n'
  )
  return manifest_source(folder / "m.jsonl", split="")


def _loaded(config, key, rng_key):
  record = open_source(config, "a").record(0)
  inputs = load_inputs(config, record, "a", (key,), None, rng_key=rng_key)
  return inputs[key].astype(np.float32)


def _with(config, **inputs):
  data = dataclasses.replace(config.data, inputs=inputs)
  return dataclasses.replace(config, data=data)


@pytest.mark.parametrize("key", ["image", "video"])
def test_training_alone_decodes_less(tmp_path, key, monkeypatch):
  sizes = []
  decode = media.decode_image

  def noted(data, geometry):
    pixels = decode(data, geometry)
    sizes.append(pixels.shape[:2])
    return pixels

  monkeypatch.setattr(media, "decode_image", noted)
  plain = config_of(a=_source(tmp_path))
  side = plain.model.vision.image_size
  mode = InputConfig(mode="crop_flip_smooth")
  plain = _with(plain, **{key: mode})
  draft = _with(plain, **{key: dataclasses.replace(mode, draft=1.25)})
  whole = {t: _loaded(plain, key, t) for t in (None, (0, 1, "a", 0))}
  assert set(sizes) == {(256, 320)}
  sizes.clear()
  np.testing.assert_array_equal(_loaded(draft, key, None), whole[None])
  assert set(sizes) == {(256, 320)}
  sizes.clear()
  trained = _loaded(draft, key, (0, 1, "a", 0))
  parts = next(n for n in (8, 4, 2, 1) if 256 // n >= 1.25 * side)
  assert parts > 1
  assert set(sizes) == {(256 // parts, 320 // parts)}
  difference = np.abs(trained - whole[0, 1, "a", 0])
  assert 0 < difference.mean() < 3


@pytest.mark.parametrize(
  ("key", "draft", "message"),
  [("depth", 2.0, "no picture of colours"), ("image", 0.5, "0, or 1 and more")],
)
def test_where_it_has_no_meaning(tmp_path, key, draft, message):
  config = config_of(a=_source(tmp_path))
  with pytest.raises(ConfigError, match=message):
    check_inputs(_with(config, **{key: InputConfig(draft=draft)}))
