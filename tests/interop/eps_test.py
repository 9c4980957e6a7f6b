"""The LayerNorm eps that code of the originals fixes and no tensor tells."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.checkpoint import manifest
from mico_jax.config import ModelConfig, VisionConfig
from mico_jax.interop.names import mico, mico_vision, staged_vision, timm_vision
from mico_jax.interop.names.weight_map import to_theirs
from mico_jax.models import build, presets, swin
from mico_jax.testing.official_folder import staged_zeros
from mico_jax.testing.tiny_model import tiny_text, tiny_vision

EPS = 1e-5  # of both originals
WIDTH, PATCH = 8, 4
TEXT = tiny_text(
  vocab_size=8, width=8, depth=1, num_heads=1, mlp_dim=8, max_positions=8
)
CLIP = tiny_vision(
  image_size=2 * PATCH,
  patch_size=PATCH,
  width=WIDTH,
  depth=1,
  num_heads=1,
  mlp_dim=WIDTH,
  mlp="quick_gelu",
  qkv_bias="all",
  patch_bias=False,
  pre_norm=True,
  clip_embed_bias=False,
)
SWIN = VisionConfig(
  encoder="swin",
  image_size=4 * PATCH,
  patch_size=PATCH,
  width=2 * WIDTH,
  depth=2,
  num_heads=1,
  mlp_dim=2 * WIDTH,
  stage_depths=(1, 1),
  stage_widths=(WIDTH, 2 * WIDTH),
  stage_heads=(1, 1),
  window_size=4,
)


def clip_as_read():
  """The config that tensors of a CLIP give."""
  config = ModelConfig(
    vision=dataclasses.replace(CLIP, norm_eps=EPS), text=TEXT
  )
  shapes = manifest.flatten(build(config).abstract_params())
  tensors = {}
  for entry in mico.entries(config, ["vision"]):
    value = np.zeros(shapes["/".join(entry.path)].shape, np.float32)
    value = value[0] if entry.layers else value
    name = entry.names[0].format(i=0)
    tensors[name] = to_theirs(value, entry, patch_size=PATCH)
  return mico_vision.config_from_tensors(tensors, num_heads=1)


def swin_as_read():
  """The config that tensors of a Swin give."""
  tensors = staged_zeros(SWIN, "official")
  found = staged_vision.swin_config(tensors)
  return dataclasses.replace(found, image_size=SWIN.image_size)


def small_model(vision):
  """Small weights: what every norm sees varies about as little as its eps."""
  model = build(ModelConfig(vision=vision, text=TEXT))
  rng = np.random.default_rng(0)

  def draw(path, like):
    name = path[-1].key
    if name == "scale":  # of a norm: the last one shows, the others are small
      last = path[0].key == "norm"
      return np.full(like.shape, 1.0 if last else 4e-3, np.float32)
    if name == "kernel":
      return (rng.normal(size=like.shape) / 4).astype(np.float32)
    return np.zeros(like.shape, np.float32)

  params = jax.tree_util.tree_map_with_path(
    draw, model.abstract_params()["vision"]
  )
  pixels = 2e-3 * rng.normal(size=(vision.image_size, vision.image_size, 3))
  return model, params, pixels.astype(np.float32)


def encode(model, params, pixels):
  params = {"vision": jax.tree.map(jnp.asarray, params)}
  with jax.default_matmul_precision("highest"):
    tokens = model.encode(params, "image", jnp.asarray(pixels)[None, None])
  return np.asarray(tokens[0, 0])


def norm(x, weights, eps):
  centred = x - x.mean(-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
  return centred / deviation * weights["scale"]


def patches(pixels, kernel):
  side = pixels.shape[0] // PATCH
  x = pixels.reshape(side, PATCH, side, PATCH, 3).transpose(0, 2, 1, 3, 4)
  return x.reshape(side**2, -1).astype(np.float64) @ kernel


def block(x, weights, act, eps):
  """A block whose queries and keys are zero: attention is the mean."""
  layer = jax.tree.map(lambda value: value[0].astype(np.float64), weights)
  value = np.split(layer["attn"]["qkv"]["kernel"], 3, -1)[2]
  mean = (norm(x, layer["norm1"], eps) @ value).mean(0)
  x = x + mean @ layer["attn"]["proj"]["kernel"]
  hidden = act(norm(x, layer["norm2"], eps) @ layer["mlp"]["fc1"]["kernel"])
  return x + hidden @ layer["mlp"]["fc2"]["kernel"]


def without_queries(weights):
  """Zeroes what makes queries and keys, so that attention is uniform."""
  kernel = weights["attn"]["qkv"]["kernel"]
  kernel[..., : 2 * kernel.shape[-1] // 3] = 0


def clip_in_numpy(params, pixels, eps):
  x = patches(pixels, params["patch_embed"]["proj"]["kernel"])
  x = np.concatenate([np.zeros((1, WIDTH)), x])
  x = norm(x, params["pre_norm"], eps)
  quick = lambda x: x / (1 + np.exp(-1.702 * x))
  return norm(block(x, params["blocks"], quick, eps), params["norm"], eps)


def swin_in_numpy(params, pixels, eps):
  gelu = lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
  stem = params["stem"]
  x = patches(pixels, stem["patch_embed"]["proj"]["kernel"])
  x = block(norm(x, stem["norm"], eps), params["stage0"]["blocks"], gelu, eps)
  merge = params["stage1"]["downsample"]
  x = x.reshape(2, 2, 2, 2, WIDTH).transpose(0, 2, 3, 1, 4)
  x = norm(x.reshape(4, 4 * WIDTH), merge["norm"], eps)
  x = x @ merge["reduction"]["kernel"]
  x = block(x, params["stage1"]["blocks"], gelu, eps)
  return norm(x, params["norm"], eps)


def test_clip():
  vision = clip_as_read()
  assert vision.norm_eps == EPS
  model, params, pixels = small_model(vision)
  without_queries(params["blocks"])
  got = encode(model, params, pixels)
  want = clip_in_numpy(params, pixels, EPS)
  np.testing.assert_allclose(got, want, atol=2e-4)
  # The inputs show it: with EVA's eps the outputs are others.
  assert np.abs(got - clip_in_numpy(params, pixels, 1e-6)).max() > 0.1


def test_swin():
  vision = swin_as_read()
  assert vision.norm_eps == EPS
  model, params, pixels = small_model(vision)
  for stage in ("stage0", "stage1"):
    without_queries(params[stage]["blocks"])
  got = encode(model, params, pixels)
  want = swin_in_numpy(params, pixels, EPS)
  np.testing.assert_allclose(got, want, atol=2e-4)
  assert np.abs(got - swin_in_numpy(params, pixels, 1e-6)).max() > 0.1


def test_every_place_that_names_the_eps():
  assert timm_vision.SWIN_EPS == EPS
  assert {size.norm_eps for size in swin.SIZES.values()} == {EPS}
  clips = {k: v for k, v in presets.VISION.items() if v.pre_norm}
  assert clips
  assert {vision.norm_eps for vision in clips.values()} == {EPS}
  with pytest.raises(ValueError, match="norm_eps=1e-06"):
    list(mico_vision.entries(dataclasses.replace(CLIP, norm_eps=1e-6)))
