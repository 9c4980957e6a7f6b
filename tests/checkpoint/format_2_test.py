"""A checkpoint that an earlier version wrote loads and computes the same.

`format_2.zip` holds a workdir that `mico_jax.testing.tiny_checkpoint` wrote
(all modalities and heads, seed 7; contrastive, matching and captioning of
"tva"), and in `outputs.npz` what the version that wrote it made of `inputs()`.
"""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

import mico_jax
from mico_jax.inference import omni_model


def inputs():
  random = np.random.default_rng(5)
  picture = lambda *shape: random.integers(0, 256, shape, dtype=np.uint8)
  sound = lambda: random.normal(size=16000).astype(np.float32) * 0.1
  depth = lambda: random.uniform(1, 9, (17, 19)).astype(np.float32)
  return {
    "image": [picture(20, 30, 3) for _ in range(2)],
    "video": [picture(3, 18, 24, 3) for _ in range(2)],
    "audio": [sound() for _ in range(2)],
    "depth": [depth() for _ in range(2)],
    "normal": [picture(16, 16, 3) for _ in range(2)],
    "text": ["a red cube", "two small balls"],
  }


@pytest.fixture(scope="module")
def unpacked(repository, tmp_path_factory):
  folder = tmp_path_factory.mktemp("format_2")
  with zipfile.ZipFile(repository / "tests/checkpoint/format_2.zip") as file:
    file.extractall(folder)
  return folder


@pytest.fixture(scope="module")
def model(unpacked):
  found = mico_jax.load(unpacked)  # strict: its self-check agrees
  assert isinstance(found, omni_model.OmniModel)
  assert not found.notes
  return found


@pytest.fixture(scope="module")
def wanted(unpacked):
  with np.load(unpacked / "outputs.npz") as file:
    return dict(file)


@pytest.mark.parametrize(
  "key", ["image", "video", "audio", "depth", "normal", "text"]
)
def test_embeddings(model, wanted, key):
  found = model.embed(**{key: inputs()[key]})[key]
  np.testing.assert_allclose(found, wanted[key], atol=1e-6)


def test_matching_and_captions(model, wanted):
  given = inputs()
  both = {key: given[key] for key in ("video", "audio")}
  found = model.match(text=given["text"], **both)
  np.testing.assert_allclose(found, wanted["match"], atol=1e-6)
  captions = model.caption(video=given["video"], max_new_tokens=5)
  assert captions == wanted["caption"].tolist()
