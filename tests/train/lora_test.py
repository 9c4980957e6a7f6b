"""Low-rank deltas."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import ConfigError, OptimizerConfig
from mico_jax.train import lora
from mico_jax.train.optimizer import make_optimizer

CONFIG = OptimizerConfig(lora_rank=2, lora_alpha=4.0)


def params():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  attn = {"qkv": {"kernel": normal(3, 4, 6), "bias": normal(3, 6)}}
  attn["proj"] = {"kernel": normal(3, 4, 4)}
  head = {"attn": {"qkv": {"kernel": normal(4, 2)}}}
  return {"vision": {"blocks": {"attn": attn}}, "head": head}


def test_shapes_and_start():
  base = params()
  deltas = lora.init(jax.random.key(0), base, CONFIG)
  assert jax.tree.map(jnp.shape, deltas) == {
    "vision/blocks/attn/qkv/kernel": {"a": (3, 4, 2), "b": (3, 2, 6)},
    "vision/blocks/attn/proj/kernel": {"a": (3, 4, 2), "b": (3, 2, 4)},
    "head/attn/qkv/kernel": {"a": (4, 2), "b": (2, 2)},
  }
  merged = lora.merge({**base, "lora": deltas}, alpha=4.0)
  jax.tree.map(np.testing.assert_array_equal, merged, base)


def test_merge_is_the_scaled_product_per_layer():
  base = params()
  deltas = lora.init(jax.random.key(0), base, CONFIG)
  deltas = jax.tree.map(lambda x: x + 0.5, deltas)
  merged = lora.merge({**base, "lora": deltas}, alpha=4.0)
  own = jax.tree.map(np.asarray, deltas["vision/blocks/attn/qkv/kernel"])
  for layer in range(3):
    want = base["vision"]["blocks"]["attn"]["qkv"]["kernel"][layer]
    want = want + 2.0 * own["a"][layer] @ own["b"][layer]
    got = merged["vision"]["blocks"]["attn"]["qkv"]["kernel"][layer]
    np.testing.assert_allclose(got, want, rtol=1e-5)
  same = merged["vision"]["blocks"]["attn"]["qkv"]["bias"]
  np.testing.assert_array_equal(
    same, base["vision"]["blocks"]["attn"]["qkv"]["bias"]
  )


def test_only_deltas_are_trained():
  base = params()
  tree = {**base, "lora": lora.init(jax.random.key(0), base, CONFIG)}
  optimizer = make_optimizer(CONFIG, tree, 10)
  grads = jax.tree.map(jnp.ones_like, tree)
  moved, _ = optimizer.update(
    grads, optimizer.init(tree), tree, step=jnp.int32(3)
  )
  for key in base:
    jax.tree.map(np.testing.assert_array_equal, moved[key], base[key])
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), moved["lora"], tree["lora"]
  )
  assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize(
  ("targets", "message"),
  [(("nowhere",), "matches no parameter"), (("bias$",), "not a kernel")],
)
def test_targets_must_be_kernels(targets, message):
  config = dataclasses.replace(CONFIG, lora_targets=targets)
  with pytest.raises(ConfigError, match=message):
    lora.init(jax.random.key(0), params(), config)
