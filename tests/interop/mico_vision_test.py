"""Official names of every encoder, both ways."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from mico_jax.config import ModelConfig, TextConfig
from mico_jax.interop.names import mico, mico_vision
from mico_jax.models import PRESETS, VISION, build
from mico_jax.testing.tiny_model import tiny_vision

TINY = tiny_vision(image_size=12, mlp_dim=24, clip_embed_dim=6)
CLIP = VISION["clip_b16"]
VARIANTS = {
  "eva01": {},
  "eva01_scaled": {"layer_scale": 1e-5, "qkv_bias": "none"},
  "eva02": {"mlp": "swiglu", "sub_norm": True, "rope_grid": 16},
  "eva02_336": {"mlp": "swiglu", "sub_norm": True, "rope_grid": 9},
  "eva02_e": {"norm": "post"},
  "clip": {
    name: getattr(CLIP, name)
    for name in (
      "norm_eps",
      "mlp",
      "qkv_bias",
      "patch_bias",
      "pre_norm",
      "clip_embed_bias",
    )
  },
}


def model_config(name, **changes):
  return ModelConfig(
    vision=dataclasses.replace(TINY, **{**VARIANTS[name], **changes})
  )


def random_vision(config):
  rng = np.random.default_rng(0)
  shapes = build(config).abstract_params()["vision"]
  return {
    "vision": jax.tree.map(
      lambda s: rng.normal(size=s.shape).astype(np.float32), shapes
    )
  }


def official(name, **changes):
  """Config, parameters, and the official form of the encoder alone."""
  config = model_config(name, **changes)
  params = random_vision(config)
  return config, params, mico.to_official(params, config, parts=["vision"])


def shapes_of(config):
  """Official name -> shape, without any array of that size."""
  leaves = jax.tree_util.tree_leaves_with_path(
    {"vision": build(config).abstract_params()["vision"]}
  )
  shapes = {tuple(k.key for k in path): x.shape for path, x in leaves}
  found = {}
  for entry in mico.entries(config, ["vision"]):
    shape = shapes[entry.path][bool(entry.layers) :]
    shape = (*shape[:-1], shape[-1] // len(entry.names)) if shape else ()
    if entry.kind == "linear":
      shape = shape[::-1]
    elif entry.kind == "conv":
      patch = config.vision.patch_size
      shape = (shape[1], 3, patch, patch)
    for name in entry.names:
      for i in range(max(entry.layers, 1)):
        found[name.format(i=i)] = (1,) * entry.lead + shape
  return found


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_is_exact(name):
  config, params, tensors = official(name)
  back = mico.from_official(tensors, config, parts=["vision"])
  jax.tree.map(np.testing.assert_array_equal, back, params)
  unpacked = mico.to_official(params, config, parts=["vision"], copies=False)
  leaves = sum(x.size for x in jax.tree.leaves(params))
  assert sum(x.size for x in unpacked.values()) == leaves
  assert {k: v.shape for k, v in unpacked.items()} == shapes_of(config)


@pytest.mark.parametrize("name", VARIANTS)
def test_config_is_found(name):
  config, _, tensors = official(name)
  told = {"norm": "post"} if name == "eva02_e" else {}
  found = mico.config_from_official(
    tensors, vision_heads=2, vision_options=told
  )
  assert found.vision == config.vision
  # Heads of rotary encoders are told by their tables, others are 64 wide.
  found = mico.config_from_official(tensors, vision_options=told).vision
  assert found.num_heads == (2 if config.vision.rope_grid else 1)


@pytest.mark.parametrize(
  ("width", "heads"), [(1408, 16), (1792, 16), (768, 12), (1024, 16)]
)
def test_heads_of_the_released_encoders(width, heads):
  known = [v for v in VISION.values() if v.width == width]
  assert heads in {v.num_heads for v in known}
  tensors = {
    mico_vision.VISUAL + name: np.broadcast_to(np.float32(0), shape)
    for name, shape in {
      "pos_embed": (1, 5, width),
      "patch_embed.proj.weight": (width, 3, 4, 4),
      "blocks.0.mlp.fc1.weight": (2 * width, width),
    }.items()
  }
  assert mico.config_from_official(tensors).vision.num_heads == heads


def test_names_and_layouts():
  _, params, tensors = official("eva02")
  blocks = params["vision"]["blocks"]
  block = "vision_encoder.visual.blocks.1."
  qkv = blocks["attn"]["qkv"]["kernel"][1]
  for i, letter in enumerate("qkv"):
    want = qkv[:, 16 * i : 16 * (i + 1)].T
    got = tensors[f"{block}attn.{letter}_proj.weight"]
    np.testing.assert_array_equal(got, want)
  for theirs, ours in (("w1", "gate"), ("w2", "fc1"), ("w3", "fc2")):
    np.testing.assert_array_equal(
      tensors[f"{block}mlp.{theirs}.weight"], blocks["mlp"][ours]["kernel"][1].T
    )
  _, params, tensors = official("clip")
  np.testing.assert_array_equal(
    tensors["vision_encoder.visual.proj"],
    params["vision"]["clip_head"]["kernel"],
  )
  block = "vision_encoder.visual.transformer.resblocks.0."
  qkv = params["vision"]["blocks"]["attn"]["qkv"]
  np.testing.assert_array_equal(
    tensors[block + "attn.in_proj_weight"], qkv["kernel"][0].T
  )
  np.testing.assert_array_equal(
    tensors[block + "attn.in_proj_bias"], qkv["bias"][0]
  )
  assert tensors["vision_encoder.visual.class_embedding"].shape == (16,)


def test_rotary_tables_are_written_and_checked():
  config, params, tensors = official("eva02")
  tables = {k: v for k, v in tensors.items() if "rope.freqs" in k}
  assert len(tables) == 2 * (1 + config.vision.depth)
  assert all(v.shape == (9, 8) for v in tables.values())
  name = mico_vision.VISUAL + "blocks.1.attn.rope.freqs_sin"
  load = lambda t, c=config: mico.from_official(t, c, parts=["vision"])
  without = {k: v for k, v in tensors.items() if k not in tables}
  jax.tree.map(np.testing.assert_array_equal, load(without), params)
  rounded = {**tensors, name: tensors[name].astype(np.float16)}
  jax.tree.map(np.testing.assert_array_equal, load(rounded), params)
  with pytest.raises(ValueError, match=r"blocks\.1\.attn\.rope\.freqs_sin"):
    load({**tensors, name: tensors[name] + np.float32(1e-3)})
  with pytest.raises(ValueError, match="rope_grid=3"):
    load(tensors, model_config("eva02_336", rope_grid=3))
  with pytest.raises(ValueError, match="rope_grid=0"):
    load(tables, model_config("eva01"))
  # A file of another resolution brings the tables of its own grid.
  _, _, larger = official("eva02", image_size=20)
  theirs = {k: larger[k] for k in tables}
  jax.tree.map(
    np.testing.assert_array_equal, load({**tensors, **theirs}), params
  )


def test_text_towers_are_ignored():
  text = TextConfig(
    vocab_size=9, width=4, depth=1, num_heads=1, mlp_dim=4, max_positions=4
  )
  config = dataclasses.replace(
    model_config("clip"),
    text=text,
    heads=("t",),
    frame_table={"video": 1, "audio": 1, "depth": 1},
    normals_as="depth",
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: rng.normal(size=s.shape).astype(np.float32),
    build(config).abstract_params(),
  )
  tensors = mico.to_official(params, config)
  for name in (
    "transformer.resblocks.0.ln_1.weight",
    "token_embedding.weight",
    "positional_embedding",
    "ln_final.bias",
    "text_projection",
  ):
    tensors["vision_encoder." + name] = np.zeros(3, np.float32)
  jax.tree.map(
    np.testing.assert_array_equal, mico.from_official(tensors, config), params
  )
  tensors["vision_encoder.visual.transformer.extra"] = np.zeros(3)
  with pytest.raises(ValueError, match=r"visual\.transformer\.extra"):
    mico.from_official(tensors, config)


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("eva01", {"qkv_bias": "all"}, "EVA encoder has no qkv_bias='all'"),
    ("eva02", {"norm_eps": 1e-5}, "EVA encoder has no norm_eps=1e-05"),
    ("clip", {"mlp": "gelu", "rope_grid": 3}, "no mlp='gelu', rope_grid=3"),
  ],
)
def test_what_the_original_cannot_hold_is_named(name, changes, message):
  config = dataclasses.replace(
    model_config(name),
    vision=dataclasses.replace(model_config(name).vision, **changes),
  )
  with pytest.raises(ValueError, match=message):
    mico.to_official({"vision": {}}, config, parts=["vision"])


@pytest.mark.golden
@pytest.mark.parametrize(
  ("file", "preset", "embed_dim"),
  [
    ("layout", "mico_g14", 1024),
    ("layout_evaclip02_base", "mico_eva02_b16", 512),
    ("layout_evaclip02_large", "mico_eva02_l14", 768),
    ("layout_evaclip02_bige", "mico_eva02_bige14_plus", 1024),
  ],
)
def test_full_size_names_and_shapes(golden_dir, file, preset, embed_dim):
  path = golden_dir / "ckpt_layout" / f"{file}.json"
  entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
  want = {
    name: tuple(entry["shape"])
    for name, entry in entries.items()
    if name.startswith("vision_encoder.")
  }
  config = PRESETS[preset]
  config = dataclasses.replace(
    config,
    vision=dataclasses.replace(config.vision, clip_embed_dim=embed_dim),
  )
  got = shapes_of(config)
  buffers = mico_vision.rotary_buffers(config.vision)
  assert got | {k: v.shape for k, v in buffers.items()} == want
  assert sum(map(math.prod, got.values())) > 8e7
