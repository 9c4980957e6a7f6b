"""The encoder's options: sizes, subsets, grids, precision, mistakes."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import ConfigError, ModelConfig
from mico_jax.models import PRESETS, VISION, build
from mico_jax.models.vit import ViT
from mico_jax.testing.tiny_model import tiny_vision

TINY = tiny_vision(image_size=12, mlp_dim=24)
CLIP = {
  "norm_eps": 1e-5,
  "mlp": "quick_gelu",
  "qkv_bias": "all",
  "patch_bias": False,
  "pre_norm": True,
}
VARIANTS = {
  "eva01": {},
  "eva02": {"mlp": "swiglu", "sub_norm": True, "rope_grid": 16},
  "eva02_e": {"norm": "post"},
  "clip": CLIP,
  "plain": {"qkv_bias": "all"},
  "mixed": {
    "norm": "post",
    "mlp": "gelu_tanh",
    "qkv_bias": "none",
    "sub_norm": True,
    "rope_grid": 3,
    "layer_scale": 0.1,
  },
}
# Parameters of the encoder alone. EVA: of the visual part of the released
# state dicts, without EVA-CLIP's head and the rotary buffers. CLIP: of the
# published visual towers (86,192,640; 304,293,888), without the projection to
# the joint space. Plain: of the ImageNet classifiers (timm's results table;
# 86,567,656 for B/16), without the head of 1000 classes.
PUBLISHED = {
  "eva01_g14": 1_011_146_112,
  "eva02_b16": 85_869_312,
  "eva02_l14": 303_317_952,
  "eva02_bige14_plus": 4_348_720_896,
  "clip_b16": 86_192_640 - 768 * 512,
  "clip_l14_336": 304_293_888 - 1024 * 768,
  "vit_ti16": 5_717_416 - 193_000,
  "vit_s16": 22_050_664 - 385_000,
  "vit_b16": 86_567_656 - 769_000,
  "vit_b32": 88_224_232 - 769_000,
  "vit_l16": 304_326_632 - 1_025_000,
  "vit_h14": 632_045_800 - 1_281_000,
  "vit_giant14": 1_012_611_432 - 1_409_000,
  "vit_gigantic14": 1_844_440_680 - 1_665_000,
}


def by_hand(v):
  """The number of parameters as a sum of products."""
  width, hidden = v.width, v.mlp_dim
  patches = (v.image_size // v.patch_size) ** 2
  first = 3 * v.patch_size**2 * width + width * v.patch_bias
  first += width + (1 + patches) * width + 2 * width * v.pre_norm
  attn = 3 * width**2 + {"qv": 2, "all": 3, "none": 0}[v.qkv_bias] * width
  attn += width**2 + width
  mlp = 2 * width * hidden + hidden + width
  if v.mlp == "swiglu":
    mlp += width * hidden + hidden
  norms = 4 * width + v.sub_norm * 2 * (width + hidden)
  scales = 2 * width * (v.layer_scale > 0)
  return first + v.depth * (attn + mlp + norms + scales) + 2 * width


def variant(name, **changes):
  return dataclasses.replace(TINY, **VARIANTS[name], **changes)


def abstract(vision):
  size = vision.image_size
  pixels = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  return jax.eval_shape(
    lambda key, x: ViT(vision).init_with_output(key, x),
    jax.random.key(0),
    pixels,
  )


@functools.cache
def start(vision):
  """Compiled module, random parameters without a zero or a one, pixels."""
  _, boxed = abstract(vision)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    value = rng.normal(size=leaf.shape).astype(np.float32)
    if path[-1].key == "kernel":
      return value * leaf.shape[-2] ** -0.5
    return 0.1 * value + (path[-1].key == "scale")

  variables = jax.tree.map_with_path(draw, nn.meta.unbox(boxed))
  size = vision.image_size
  pixels = rng.normal(size=(2, size, size, 3)).astype(np.float32)
  apply = jax.jit(ViT(vision).apply, static_argnames="return_hidden")
  return apply, variables, jnp.asarray(pixels)


@pytest.mark.parametrize("name", VISION)
def test_full_size(name):
  vision = VISION[name]
  (tokens, _), variables = abstract(vision)
  grid = vision.image_size // vision.patch_size
  assert tokens.shape == (2, 1 + grid**2, vision.width)
  count = sum(x.size for x in jax.tree.leaves(variables))
  assert count == by_hand(vision)
  assert count == PUBLISHED.get(name, count)


def test_models_of_the_release_use_these_encoders():
  encoders = list(VISION.values())
  for name, model in PRESETS.items():
    if "eva02" in name or "clip" in name:
      assert VISION[name.removeprefix("mico_")] == model.vision
  assert PRESETS["mico_g14"].vision == encoders[0]
  assert set(PUBLISHED) <= set(VISION)


@pytest.mark.parametrize("name", VARIANTS)
def test_any_subset_in_any_order(name):
  """Tokens carry their positions: permuted patches give permuted tokens."""
  apply, variables, pixels = start(variant(name))
  whole, _ = apply(variables, pixels)
  order = jax.random.permutation(jax.random.key(3), 9)
  indices = jnp.stack([order, order[::-1]])
  got, _ = apply(variables, pixels, token_indices=indices)
  for row in range(2):
    np.testing.assert_allclose(got[row, 0], whole[row, 0], atol=2e-5)
    np.testing.assert_allclose(
      got[row, 1:], whole[row, 1 + indices[row]], atol=2e-5
    )
  # A true subset differs, as its tokens see fewer others.
  few, _ = apply(variables, pixels, token_indices=indices[:, :4])
  assert few.shape == (2, 5, 16)
  assert np.abs(few[:, 0] - whole[:, 0]).max() > 1e-3


@pytest.mark.parametrize("name", VARIANTS)
def test_half_precision_stays_near_float32(name):
  apply, variables, pixels = start(variant(name))
  want, _ = apply(variables, pixels)
  half, _ = jax.jit(ViT(variant(name), jnp.bfloat16).apply)(variables, pixels)
  assert half.dtype == jnp.bfloat16
  error = np.abs(np.asarray(half, np.float32) - want)
  assert error.mean() < 0.03
  assert error.max() < 0.3


@pytest.mark.parametrize("name", ["eva02", "mixed"])
def test_unrolled_is_the_same(name):
  apply, variables, pixels = start(variant(name))
  want, hidden = apply(variables, pixels, return_hidden=True)
  other = ViT(variant(name), scan=False, remat="full")
  other = jax.jit(other.apply, static_argnames="return_hidden")
  got, blocks = other(variables, pixels, return_hidden=True)
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(blocks, hidden, atol=1e-5)


def test_each_option_changes_the_tokens():
  apply, variables, pixels = start(TINY)
  want, _ = apply(variables, pixels)
  for changes in (
    {"norm": "post"},
    {"mlp": "quick_gelu"},
    {"mlp": "gelu_tanh"},
    {"rope_grid": 16},
  ):
    vision = dataclasses.replace(TINY, **changes)
    got, _ = jax.jit(ViT(vision).apply)(variables, pixels)
    assert np.abs(got - want).max() > 1e-5, changes


def test_rotary_positions_follow_the_resolution():
  """Same weights, twice the resolution: attention sees the same distances."""
  vision = variant("eva02")
  apply, variables, pixels = start(vision)
  double = dataclasses.replace(vision, image_size=24)
  table = variables["params"]["pos_embed"]
  grid = table[1:].reshape(3, 3, 16)
  fine = grid.repeat(2, axis=0).repeat(2, axis=1).reshape(36, 16)
  params = {
    **variables["params"],
    "pos_embed": jnp.concatenate([table[:1], fine]),
  }
  # Every second patch of a finer grid stands where the coarse one has it.
  large = jnp.zeros((2, 6, 4, 6, 4, 3))
  coarse = pixels.reshape(2, 3, 4, 3, 4, 3)
  large = large.at[:, ::2, :, ::2].set(coarse).reshape(2, 24, 24, 3)
  chosen = jnp.array([6 * y + x for y in (0, 2, 4) for x in (0, 2, 4)])
  got, _ = jax.jit(ViT(double).apply)(
    {"params": params},
    large,
    token_indices=jnp.broadcast_to(chosen[None], (2, 9)),
  )
  np.testing.assert_allclose(got, apply(variables, pixels)[0], atol=2e-5)


def test_tokens_of_their_own_are_not_rotated():
  apply, variables, _ = start(variant("eva02"))
  tokens = jax.random.normal(jax.random.key(5), (2, 7, 16))
  got, _ = apply(variables, tokens=tokens)
  vision = dataclasses.replace(variant("eva02"), rope_grid=0)
  want, _ = jax.jit(ViT(vision).apply)(variables, tokens=tokens)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"norm": "middle"}, "norm='middle' is not one of pre, post"),
    ({"mlp": "relu"}, "mlp='relu' is not one of gelu, "),
    ({"qkv_bias": "k"}, "qkv_bias='k' is not one of all, qv, none"),
    ({"rope_grid": 16, "num_heads": 8}, "multiple of 4, got 2"),
  ],
)
def test_mistakes_are_named(changes, message):
  vision = dataclasses.replace(TINY, **changes)
  with pytest.raises(ConfigError, match=message):
    build(ModelConfig(vision=vision))
