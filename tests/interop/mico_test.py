"""Official names and layout, both ways."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mico_jax.interop.files import safetensors_file, safetensors_writer
from mico_jax.interop.names import mico
from mico_jax.models import build
from mico_jax.testing.tiny_model import tiny_model

CONFIG = tiny_model(
  vision={"width": 8, "mlp_dim": 12, "clip_embed_dim": 6},
  text={
    "vocab_size": 20,
    "width": 6,
    "depth": 3,
    "mlp_dim": 10,
    "max_positions": 9,
  },
  embed_dim=5,
  heads=("t", "s", "v", "a", "d", "va", "id", "vs", "vas"),
  frame_table={"video": 4, "audio": 3, "depth": 2},
  normals_as="depth",
  temperature_min=0.0,
  masked_rows="released",
  mask_subtitle_padding=False,
)


def _params(config=CONFIG):
  shapes = build(config).abstract_params()
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.normal(size=s.shape).astype(np.float32), shapes
  )


def test_round_trip_is_exact():
  params = _params()
  tensors = mico.to_official(params, CONFIG)
  jax.tree.map(
    np.testing.assert_array_equal, mico.from_official(tensors, CONFIG), params
  )
  found = mico.config_from_official(tensors, vision_heads=2, text_heads=2)
  text = dataclasses.replace(found.text, dropout=CONFIG.text.dropout)
  found = dataclasses.replace(found, text=text, heads=CONFIG.heads)
  assert found == CONFIG
  unpacked = mico.to_official(params, CONFIG, copies=False)
  assert len(tensors) == len(unpacked) + 3
  leaves = sum(x.size for x in jax.tree.leaves(params))
  assert sum(x.size for x in unpacked.values()) == leaves


def test_layouts():
  params = _params()
  tensors = mico.to_official(params, CONFIG)
  kernel = params["vision"]["patch_embed"]["proj"]["kernel"]
  weight = tensors["vision_encoder.visual.patch_embed.proj.weight"]
  assert weight.shape == (8, 3, 4, 4)
  assert weight[5, 2, 1, 3] == kernel[(1 * 4 + 3) * 3 + 2, 5]
  qkv = params["text"]["blocks"]["attn"]["qkv"]["kernel"]
  name = "multimodal_encoder.bert.encoder.layer.1.attention.self.key.weight"
  np.testing.assert_array_equal(tensors[name], qkv[1][:, 6:12].T)
  assert tensors["vision_type_embeddings"].shape == (1, 1, 6)
  assert tensors["audio_frame_embedding"].shape == (1, 3, 6)


def test_tied_copy_wins_and_unused_names_are_ignored():
  tensors = mico.to_official(_params(), CONFIG)
  copy = "multimodal_encoder.cls.predictions.decoder.weight"
  tensors[copy] = tensors[copy] + 1
  tensors["vision_encoder.text.positional_embedding"] = np.zeros(3)
  params = mico.from_official(tensors, CONFIG)
  np.testing.assert_array_equal(params["text"]["embed"]["words"], tensors[copy])


def test_mistakes_are_named():
  tensors = mico.to_official(_params(), CONFIG)
  missing = {k: v for k, v in tensors.items() if k != "contra_temp"}
  with pytest.raises(ValueError, match="contra_temp"):
    mico.from_official(missing, CONFIG)
  with pytest.raises(ValueError, match="left over"):
    mico.from_official({**tensors, "new.weight": np.zeros(2)}, CONFIG)
  wider = dataclasses.replace(CONFIG, embed_dim=7)
  with pytest.raises(ValueError, match="config expects"):
    mico.from_official(tensors, wider)
  native = dataclasses.replace(
    CONFIG, heads=(*CONFIG.heads, "n"), normals_as="normal"
  )
  with pytest.raises(ValueError, match="contrastive_head/n"):
    mico.to_official(_params(native), native)


def test_old_names():
  assert mico.rename("video_frame_embedding") == "vision_frame_embedding"
  name = mico.rename("evaclip_model.visual.cls_token")
  assert name == "vision_encoder.visual.cls_token"
  assert mico.rename("contra_temp") == "contra_temp"


def test_safetensors_files(tmp_path):
  tensors = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(3, np.int64),
    "c": np.array([True, False]),
    "d": np.zeros((0, 4), np.float16),
  }
  ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
  safetensors_writer.write_arrays(ours, tensors)
  save_file(tensors, theirs)
  for found in (
    load_file(ours),
    safetensors_file.read(ours),
    safetensors_file.read(theirs),
  ):
    assert set(found) == set(tensors)
    for name, value in tensors.items():
      assert found[name].dtype == value.dtype
      np.testing.assert_array_equal(found[name], value)
  data = theirs.read_bytes()
  ours.write_bytes(data[:-4])
  with pytest.raises(ValueError, match="cut short"):
    safetensors_file.read(ours)
  ours.write_bytes(data[:5])
  with pytest.raises(ValueError, match="cut short"):
    safetensors_file.read(ours)
