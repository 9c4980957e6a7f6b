"""Configs beside foreign weights that tell of another model than these."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.interop.files import safetensors_writer
from mico_jax.interop.importing import formats, run_config
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.testing import official_folder as tiny

WIDTH, HIDDEN, PATCH, SIZE = 8, 12, 4, 8
VIT = {
  "model_type": "vit",
  "hidden_size": WIDTH,
  "intermediate_size": HIDDEN,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "image_size": SIZE,
  "patch_size": PATCH,
}


def arrays(layers=2):
  """A ViT as transformers names it."""
  shapes = {
    "embeddings.cls_token": (1, 1, WIDTH),
    "embeddings.position_embeddings": (1, 1 + (SIZE // PATCH) ** 2, WIDTH),
    "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
    "embeddings.patch_embeddings.projection.bias": (WIDTH,),
    "layernorm.weight": (WIDTH,),
    "layernorm.bias": (WIDTH,),
  }
  for i in range(layers):
    block = f"encoder.layer.{i}."
    for name, rows, columns in (
      *((f"attention.attention.{x}", WIDTH, WIDTH) for x in QKV),
      ("attention.output.dense", WIDTH, WIDTH),
      ("intermediate.dense", HIDDEN, WIDTH),
      ("output.dense", WIDTH, HIDDEN),
    ):
      shapes[f"{block}{name}.weight"] = (rows, columns)
      shapes[f"{block}{name}.bias"] = (rows,)
    for name in ("layernorm_before", "layernorm_after"):
      shapes[f"{block}{name}.weight"] = (WIDTH,)
      shapes[f"{block}{name}.bias"] = (WIDTH,)
  return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


QKV = ("query", "key", "value")


def write(folder, tensors, **files):
  safetensors_writer.write_arrays(folder / "model.safetensors", tensors)
  for name, value in files.items():
    text = value if isinstance(value, str) else json.dumps(value)
    name = name if "." in name else f"{name}.json"
    (folder / name).write_text(text)
  return folder


def of(vision):
  return dataclasses.replace(tiny.MODEL, vision=vision)


def read(form, folder):
  return FORMATS[formats.settle(form, folder)].read(folder)


def refused(form, folder, match):
  with pytest.raises(CheckpointError, match=match) as caught:
    read(form, folder)
  assert "\n" not in str(caught.value)


def test_the_folder_itself_is_read(tmp_path):
  vision = read("hf", write(tmp_path, arrays(), config=VIT)).config.model.vision
  assert (vision.depth, vision.width, vision.mlp_dim) == (2, WIDTH, HIDDEN)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("num_hidden_layers", 1),
    ("num_hidden_layers", 3),
    ("hidden_size", 16),
    ("intermediate_size", 32),
    ("qkv_bias", False),
  ],
)
def test_sizes_of_transformers(tmp_path, key, value):
  folder = write(tmp_path, arrays(), config={**VIT, key: value})
  refused("hf", folder, rf"contradict: {key} {value}")


def test_a_file_without_its_last_layer(tmp_path):
  refused("hf", write(tmp_path, arrays(1), config=VIT), "the weights have 1")


def test_what_a_config_leaves_out_is_the_default(tmp_path):
  config = {k: v for k, v in VIT.items() if k != "num_hidden_layers"}
  folder = write(tmp_path, arrays(), config=config)
  refused("hf", folder, "num_hidden_layers 12, the weights have 2")


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("depth", 12),
    ("embed_dim", 99),
    ("mlp_ratio", 1),
    ("qkv_bias", False),
    ("class_token", False),
    ("no_embed_class", True),
    ("reg_tokens", 4),
    ("qk_norm", True),
    ("num_heads", 2.5),
    ("num_heads", True),
  ],
)
def test_arguments_of_timm(tmp_path, key, value):
  tensors = tiny.tower_tensors("timm", of(tiny.PLAIN), "")
  config = {"architecture": "vit", "model_args": {key: value}}
  refused("timm", write(tmp_path, tensors, config=config), key)


@pytest.mark.parametrize("value", [5, "x", ["depth", 2]])
def test_arguments_of_timm_of_another_form(tmp_path, value):
  tensors = tiny.tower_tensors("timm", of(tiny.PLAIN), "")
  config = {"architecture": "vit", "model_args": value}
  refused("timm", write(tmp_path, tensors, config=config), "expected an object")


@pytest.mark.parametrize(
  ("model", "vision", "message"),
  [
    ({}, {"layers": 12}, "contradict: layers 12"),
    ({}, {"width": 99}, "contradict: width 99"),
    ({}, {"mlp_ratio": 1}, "contradict: mlp_ratio 1"),
    ({"embed_dim": 99}, {}, "contradict: embed_dim 99"),
    ({"quick_gelu": "false"}, {}, "quick_gelu='false'"),
    ({}, {"qk_norm": True}, "qk_norm=True"),
  ],
)
def test_configs_of_open_clip(tmp_path, model, vision, message):
  tensors = tiny.tower_tensors("clip", of(tiny.CLIP), "vision_encoder.")
  about = {"model_cfg": {"vision_cfg": vision, **model}}
  folder = write(tmp_path, tensors, open_clip_config=about)
  refused("clip", folder, message)


@pytest.mark.parametrize("place", [{"a": 1}, ["squash"]])
def test_a_resize_mode_that_is_no_name(tmp_path, place):
  tensors = tiny.tower_tensors("clip", of(tiny.CLIP), "vision_encoder.")
  about = {"model_cfg": [], "preprocess_cfg": {"resize_mode": place}}
  refused("clip", write(tmp_path, tensors, open_clip_config=about), "resize")


# ------------------------------------------------------------------- pixels
@pytest.mark.parametrize(
  ("pixels", "message"),
  [
    ({"do_rescale": False}, "do_rescale=False"),
    ({"do_resize": False}, "do_resize=False"),
    ({"do_normalize": 0}, "do_normalize=0"),
    ({"do_center_crop": "false"}, "do_center_crop='false'"),
    ({"rescale_factor": "1/255"}, "rescale_factor='1/255'"),
    ({"rescale_factor": None}, "rescale_factor=None"),
    ({"image_mean": [0.5] * 3}, "mean without std"),
    ({"image_std": [0.5] * 3}, "std without mean"),
  ],
)
def test_pixels_that_no_mode_makes(tmp_path, pixels, message):
  folder = write(tmp_path, arrays(), config=VIT, preprocessor_config=pixels)
  refused("hf", folder, message)


@pytest.mark.parametrize(
  ("pixels", "mode"),
  [
    ({"image_processor_type": "ViTImageProcessor"}, "plain"),
    ({"image_processor_type": "BitImageProcessor"}, "crop_flip_smooth"),
    (
      {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
      "plain",
    ),
    ({"resample": [2]}, "plain"),
  ],
)
def test_whether_a_processor_crops(tmp_path, pixels, mode):
  folder = write(tmp_path, arrays(), config=VIT, preprocessor_config=pixels)
  assert read("hf", folder).config.data.inputs["image"].mode == mode


def test_frames_that_keep_their_shape_are_noted(tmp_path):
  pixels = {"size": {"shortest_edge": SIZE}, "crop_pct": 0.875}
  folder = write(tmp_path, arrays(), config=VIT, preprocessor_config=pixels)
  assert any("crop_pct 0.875" in note for note in read("hf", folder).notes)


# --------------------------------------------------------------- tokenizers
def words(**more):
  return {
    "normalizer": {"type": "BertNormalizer", "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {
      "type": "WordPiece",
      "vocab": {piece: i for i, piece in enumerate(tiny.PIECES)},
    },
    **more,
  }


ADDED = {"id": len(tiny.PIECES), "content": "<new>", "special": True}


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"tokenizer": words(added_tokens=[ADDED])}, "<new>"),
    ({"tokenizer": words(), "added_tokens": {"<new>": 99}}, "<new>"),
    (
      {
        "tokenizer": words(),
        "tokenizer_config": {"added_tokens_decoder": {"99": ADDED}},
      },
      "<new>",
    ),
    (
      {"tokenizer": words(), "tokenizer_config": {"do_lower_case": False}},
      "contradict: lower_case True and False",
    ),
  ],
)
def test_tokens_that_another_reader_would_give_otherwise(
  tmp_path, files, message
):
  tensors = tiny.tower_tensors("bert", tiny.MODEL, "multimodal_encoder.")
  config = {"num_attention_heads": 2}
  refused("bert", write(tmp_path, tensors, config=config, **files), message)


def test_special_tokens_may_be_listed(tmp_path):
  tensors = tiny.tower_tensors("bert", tiny.MODEL, "multimodal_encoder.")
  own = [{"id": 0, "content": "[PAD]"}, {"id": 1, "content": "[UNK]"}]
  folder = write(
    tmp_path,
    tensors,
    config={"num_attention_heads": 2},
    tokenizer=words(added_tokens=own),
    tokenizer_config={"do_lower_case": True},
  )
  source = read("bert", folder)
  config = run_config.run_config(source, None, ())
  assert run_config.tokenizer(source, config, None, None).info.vocab_size


def test_a_decoder_is_noted(tmp_path):
  tensors = tiny.tower_tensors("bert", tiny.MODEL, "multimodal_encoder.")
  config = {"num_attention_heads": 2}
  assert not read("bert", write(tmp_path, tensors, config=config)).notes
  config["is_decoder"] = True
  (note,) = read("bert", write(tmp_path, tensors, config=config)).notes
  assert "is_decoder" in note


def test_token_types_of_a_config(tmp_path):
  tensors = tiny.tower_tensors("bert", tiny.MODEL, "multimodal_encoder.")
  config = {"num_attention_heads": 2, "type_vocab_size": 9}
  refused("bert", write(tmp_path, tensors, config=config), "type_vocab_size 9")
