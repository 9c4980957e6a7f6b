"""Swin, ConvNeXt V2 and UniRepLKNet: sizes, contracts and training."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import axes, models
from mico_jax.config import ConfigError
from mico_jax.config import VisionConfig as Vision
from mico_jax.interop.names import staged_vision
from mico_jax.models import swin
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
)

STAGES = {
  "image_size": 16,
  "patch_size": 4,
  "width": 16,
  "depth": 6,
  "mlp_dim": 32,
  "stage_depths": (2, 4),
  "stage_widths": (8, 16),
}
CONFIGS = {
  "swin": Vision(
    **STAGES,
    encoder="swin",
    num_heads=4,
    stage_heads=(2, 4),
    window_size=2,
    norm_eps=1e-5,
  ),
  "convnext": Vision(**STAGES, encoder="convnext"),
  "unireplknet": Vision(
    **STAGES, encoder="unireplknet", stage_kernels=((3,), (13, 3))
  ),
}
# Millions with a classifier of 1000 classes. Swin: arXiv:2103.14030, table 1,
# and its repository; ConvNeXt V2: arXiv:2301.00808, table 9, to three digits as
# in timm's; UniRepLKNet: arXiv:2311.15599, table 4 (see `counted`).
PUBLISHED = {
  "swin": {"t": 28.288, "s": 49.606, "b": 87.768, "l": 196.532},
  "convnext": {
    "atto": 3.708,
    "femto": 5.233,
    "pico": 9.066,
    "nano": 15.624,
    "tiny": 28.635,
    "base": 88.718,
    "large": 197.957,
    "huge": 660.290,
  },
  "unireplknet": {
    "a": 4.4,
    "f": 6.2,
    "p": 10.7,
    "n": 18.3,
    "t": 31.0,
    "s": 55.6,
    "b": 97.9,
    "l": 218.3,
    "xl": 386.4,
  },
}


def _config(name, **changes):
  return dataclasses.replace(CONFIGS[name], **changes)


def _encoder(name, *, scan=True, remat="none", dtype=jnp.float32, **changes):
  config = _config(name, **changes)
  return models.ENCODERS[name](config, scan=scan, remat=remat, dtype=dtype)


@pytest.fixture(scope="module")
def params():
  """Random parameters, so that no residual branch starts at 0."""
  found = {}
  for name in CONFIGS:
    tree = jax.jit(_encoder(name).init)(jax.random.key(0), _pixels())["params"]
    leaves, structure = jax.tree.flatten(nn.meta.unbox(tree))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    found[name] = structure.unflatten(
      x + 0.2 * jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    )
  return found


def _pixels(rows=3, size=16):
  return jax.random.normal(jax.random.key(2), (rows, size, size, 3))


def _model(name, **changes):
  return models.build(
    dataclasses.replace(TINY_MODEL, vision=CONFIGS[name], **changes)
  )


def counted(name, tree):
  """Parameters as the authors' tables count them, classifier included."""
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    # The table of UniRepLKNet agrees with the merged form but for the scales of
    # the response norms, which are no layers of their own in its code.
    if name == "unireplknet" and "grn" in jax.tree_util.keystr(path):
      continue
    total += leaf.size
  width = tree["norm"]["scale"].size
  return total + 1000 * width + 1000


@pytest.mark.parametrize(
  ("name", "size"), [(n, s) for n in PUBLISHED for s in PUBLISHED[n]]
)
def test_published_sizes(name, size):
  config = staged_vision.SIZES[name][size]
  assert models.VISION[f"{name}_{size}"] == config
  encoder = models.ENCODERS[name](config)
  encoder.check()
  boxed = jax.eval_shape(
    encoder.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )["params"]
  known = {axis for axis, _ in axes.DDP_RULES}
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  for box in jax.tree.leaves(boxed, is_leaf=is_box):
    assert is_box(box)
    assert len(box.names) == len(box.value.shape)
    assert set(box.names) <= known
    assert box.value.dtype == jnp.float32
  found = counted(name, nn.meta.unbox(boxed)) / 1e6
  digits = 1 if name == "unireplknet" else 3
  assert round(found, digits) == pytest.approx(PUBLISHED[name][size])


def test_every_family_and_size_is_here():
  staged = {n for n, e in models.ENCODERS.items() if not e.has_class_token}
  assert staged == set(PUBLISHED) == set(CONFIGS) == set(staged_vision.SIZES)
  for name in staged:
    assert set(PUBLISHED[name]) == set(staged_vision.SIZES[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_and_hidden(name, params):
  encoder = _encoder(name)
  assert encoder.num_tokens == 4
  apply = jax.jit(encoder.apply, static_argnames="return_hidden")
  tokens, none = apply({"params": params[name]}, _pixels())
  assert tokens.shape == (3, 4, 16)
  assert none is None
  again, hidden = apply({"params": params[name]}, _pixels(), return_hidden=True)
  np.testing.assert_allclose(again, tokens, atol=1e-6)
  assert [h.shape for h in hidden] == [(3, 16, 8)] * 2 + [(3, 4, 16)] * 4
  last = np.asarray(hidden[-1])
  normed = (last - last.mean(-1, keepdims=True)) / np.sqrt(
    last.var(-1, keepdims=True) + CONFIGS[name].norm_eps
  )
  norm = params[name]["norm"]
  want = normed * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
  np.testing.assert_allclose(tokens, want, atol=2e-5)
  for a, b in itertools.pairwise(hidden):  # every block does work
    assert a.shape != b.shape or np.abs(np.asarray(a - b)).max() > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_a_frame_depends_on_itself_only(name, params):
  encoder = _encoder(name)
  apply = jax.jit(lambda x: encoder.apply({"params": params[name]}, x)[0])
  pixels = _pixels()
  other = pixels.at[1:].set(0.0)
  np.testing.assert_allclose(apply(pixels)[0], apply(other)[0], atol=1e-6)


@pytest.mark.parametrize(
  "name",
  [
    "swin",  # its blocks take turns with shifted windows
    pytest.param("convnext", marks=pytest.mark.slow),
    pytest.param("unireplknet", marks=pytest.mark.slow),
  ],
)
def test_unrolled_and_rematerialised_are_the_same(name, params):
  keys = jax.random.split(jax.random.key(3), 3)

  def value(**options):
    encoder = _encoder(name, drop_path_rate=0.3, **options)

    def loss(params):
      tokens, _ = encoder.apply({"params": params}, _pixels(), row_keys=keys)
      return jnp.sum(tokens[:, 0, :3])

    return jax.jit(jax.value_and_grad(loss))(params[name])

  base = value()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3),
    value(scan=False, remat="attention"),
    base,
  )


@pytest.mark.parametrize("name", CONFIGS)
def test_stochastic_depth_belongs_to_the_row(name, params):
  encoder = _encoder(name, drop_path_rate=0.5)
  keys = jax.random.split(jax.random.key(3), 3)

  @jax.jit
  def run(pixels, keys):
    return encoder.apply({"params": params[name]}, pixels, row_keys=keys)[0]

  order = jnp.array([2, 0, 1])
  whole = run(_pixels(), keys)
  moved = run(_pixels()[order], keys[order])
  np.testing.assert_allclose(moved, whole[order], atol=1e-6)
  other = run(_pixels(), keys[order])
  assert np.abs(np.asarray(whole - other)).max() > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_stays_close(name, params):
  @functools.partial(jax.jit, static_argnums=0)
  def run(dtype):
    encoder = _encoder(name, dtype=dtype)
    return encoder.apply({"params": params[name]}, _pixels())[0]

  tokens, want = run(jnp.bfloat16), run(jnp.float32)
  assert tokens.dtype == jnp.bfloat16
  error = jnp.abs(tokens.astype(jnp.float32) - want).mean()
  assert float(error) < 0.1 * float(jnp.abs(want).mean())


def test_black_frames_have_finite_gradients(params):
  """Norms over a map of equal values: the root has no infinite slope."""
  for name in CONFIGS:
    zeros = jax.tree.map(jnp.zeros_like, params[name])

    def loss(params, name=name):
      tokens, _ = _encoder(name).apply({"params": params}, 0.0 * _pixels())
      return jnp.sum(tokens)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(zeros)):
      assert np.isfinite(np.asarray(leaf)).all()


# -------------------------------------------------------------------- windows
def test_shifted_windows_see_their_neighbours_only():
  """A token's attention reaches the tokens of its shifted window, no others."""
  side, window = 4, 2
  module = swin.WindowAttention(2, window)
  x = jax.random.normal(jax.random.key(0), (1, side, side, 4))
  shifted = jnp.array(True)
  params = module.init(jax.random.key(1), x, shifted)
  unboxed = nn.meta.unbox(params)

  @jax.jit
  def reach(shifted):
    attend = lambda x: module.apply(unboxed, x, shifted)[0].sum(-1)
    return jnp.abs(jax.jacrev(attend)(x)).max(-1)[:, :, 0]

  found = {flag: np.asarray(reach(jnp.array(flag))) for flag in (False, True)}

  def row(place, shifted):
    cells = np.argwhere(found[shifted][place] > 1e-12)
    return {tuple(cell) for cell in cells.tolist()}

  block = lambda *cells: set(cells)
  assert row((0, 0), False) == block((0, 0), (0, 1), (1, 0), (1, 1))
  # Shifted by one, the corner is alone, an edge has two, the middle four.
  assert row((0, 0), True) == block((0, 0))
  assert row((0, 1), True) == block((0, 1), (0, 2))
  assert row((1, 2), True) == block((1, 1), (1, 2), (2, 1), (2, 2))


def test_relative_positions_share_their_row():
  index = swin.relative_index(3)
  assert index.shape == (9, 9)
  assert index.min() == 0
  assert index.max() == 24
  place = [(i // 3, i % 3) for i in range(9)]
  by_offset = {}
  for i, a in enumerate(place):
    for j, b in enumerate(place):
      offset = (a[0] - b[0], a[1] - b[1])
      assert by_offset.setdefault(offset, index[i, j]) == index[i, j]
  assert len(set(by_offset.values())) == 25


def test_swin_buffers_are_checked():
  config = _config("swin", window_size=2)
  encoder = _encoder("swin")
  params = nn.meta.unbox(encoder.init(jax.random.key(0), _pixels()))["params"]
  tensors = staged_vision.to_tensors(params, config, layout="official")
  assert staged_vision.swin_config(tensors) == config
  back = staged_vision.from_tensors(tensors, config, layout="official")
  jax.tree.map(np.testing.assert_array_equal, back, params)
  name = "vision_encoder.layers.0.blocks.1.attn_mask"
  with pytest.raises(ValueError, match=name):
    staged_vision.from_tensors(
      {**tensors, name: tensors[name] + 1}, config, layout="official"
    )
  norm = "vision_encoder.norm.bias"
  with pytest.raises(ValueError, match=rf"missing \['{norm}'\]"):
    staged_vision.from_tensors(
      {k: v for k, v in tensors.items() if k != norm}, config, layout="official"
    )
  with pytest.raises(ValueError, match=f"{norm}: shape"):
    staged_vision.from_tensors(
      {**tensors, norm: np.zeros(3)}, config, layout="official"
    )
  with pytest.raises(ValueError, match="known: swin: official, timm"):
    staged_vision.entries(config, layout="nope")


# ------------------------------------------------------------------- in MiCo
def test_pooling_and_short_contexts_without_a_class_token():
  model = _model("convnext", pool_frames=True)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda like: jnp.asarray(rng.normal(size=like.shape), like.dtype),
    model.abstract_params(),
  )
  pixels = jnp.stack([_pixels(2), _pixels(2) + 1.0], axis=1)
  tokens = model.encode(params, "video", pixels)
  assert tokens.shape == (2, 2, 4, 16)
  np.testing.assert_allclose(
    model.pool(params, "video", tokens), tokens.mean((1, 2)), atol=1e-6
  )
  context = model.context(params, "v", {"v": tokens})
  assert context.values.shape[1] == 2  # one token per frame
  with pytest.raises(ValueError, match="encodes whole frames"):
    model.encode(
      params, "video", pixels, token_indices=jnp.zeros((2, 1), jnp.int32)
    )


@pytest.mark.parametrize(
  ("name", "changes", "message"),
  [
    ("swin", {"stage_widths": (8,)}, "must name a depth and a width"),
    ("swin", {"depth": 5}, "must be the sum of stage_depths"),
    ("swin", {"width": 8}, "the last of stage_widths"),
    ("swin", {"mlp_dim": 33}, "mlp_dim=33 must be a multiple"),
    ("swin", {"image_size": 20}, "must be a multiple of 8"),
    ("swin", {"image_size": 24, "window_size": 4}, "window_size=4 must divide"),
    ("swin", {"stage_heads": (4,)}, "must name a count for each stage"),
    ("swin", {"stage_heads": (3, 4)}, "must divide stage_widths"),
    ("swin", {"stage_kernels": ((3,), (3,))}, "says nothing to encoder='swin'"),
    ("convnext", {"window_size": 4}, "says nothing to encoder='convnext'"),
    ("convnext", {"num_heads": 4}, "num_heads=4 says nothing"),
    ("unireplknet", {"patch_size": 2}, "patch_size=2 must be 4"),
    ("unireplknet", {"stage_kernels": ((3,),)}, "of the 2 stages"),
    ("unireplknet", {"stage_kernels": ((3, 3, 3), (3,))}, "whole number"),
    ("unireplknet", {"stage_kernels": ((4,), (3,))}, "kernel sizes are odd"),
  ],
)
def test_mistakes_are_named(name, changes, message):
  vision = dataclasses.replace(CONFIGS[name], **changes)
  with pytest.raises(ConfigError, match=message):
    models.build(dataclasses.replace(TINY_MODEL, vision=vision))


def test_stages_say_nothing_to_a_vit():
  vision = dataclasses.replace(TINY_MODEL.vision, stage_depths=(2,))
  with pytest.raises(ConfigError, match="says nothing to encoder='vit'"):
    models.build(dataclasses.replace(TINY_MODEL, vision=vision))
