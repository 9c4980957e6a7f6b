"""Optimizers against hand-written arithmetic; schedules; parameter groups."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import ConfigError, OptimizerConfig
from mico_jax.train.optimizer import OPTIMIZERS, make_optimizer, make_schedule

STEPS = 3
BASE = OptimizerConfig(
  learning_rate=0.1,
  schedule="constant",
  warmup=0.0,
  clip_norm=0.0,
  weight_decay=0.05,
)


def tree(seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  return {
    "vision": {
      "blocks": {
        "attn": {"qkv": {"kernel": normal(2, 4, 6), "bias": normal(2, 6)}}
      },
      "pos_embed": normal(5, 4),
    },
    "temperature": normal(),
  }


def run(config, gradients, params=None):
  params = jax.tree.map(jnp.asarray, params or tree())
  optimizer = make_optimizer(config, params, STEPS)
  state = optimizer.init(params)
  update = jax.jit(lambda g, s, p, n: optimizer.update(g, s, p, step=n))
  for step, grads in enumerate(gradients):
    grads = jax.tree.map(jnp.asarray, grads)
    params, state = update(grads, state, params, jnp.int32(step))
  return jax.tree.map(np.asarray, params)


def wide(x):
  return jax.tree.map(lambda a: np.asarray(a, np.float64), x)


def hand(rule, config, gradients):
  """Applies `rule(p, g, slots, t) -> p` leaf by leaf in float64."""
  params = wide(tree())
  paths = jax.tree_util.tree_leaves_with_path(params)
  leaves, slots = [p for _, p in paths], [{} for _ in paths]
  decays = []
  for path, _ in paths:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    free = name.endswith(("bias", "temperature"))
    decays.append(0.0 if free else config.weight_decay)
  for t, grads in enumerate(gradients, start=1):
    for i, g in enumerate(jax.tree.leaves(wide(grads))):
      leaves[i] = rule(leaves[i], g, slots[i], t, decays[i])
  return jax.tree.unflatten(jax.tree.structure(params), leaves)


def check(got, want, atol=2e-6):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want
  )


def moments(g, slots, config):
  slots["m"] = config.b1 * slots.get("m", 0) + (1 - config.b1) * g
  slots["v"] = config.b2 * slots.get("v", 0) + (1 - config.b2) * g * g
  return slots["m"], slots["v"]


def test_adamw():
  def rule(p, g, slots, t, decay):
    m, v = moments(g, slots, BASE)
    m, v = m / (1 - BASE.b1**t), v / (1 - BASE.b2**t)
    return p - 0.1 * (m / (np.sqrt(v) + BASE.eps) + decay * p)

  grads = [tree(i + 1) for i in range(STEPS)]
  check(run(BASE, grads), hand(rule, BASE, grads))


def test_adamw_mico_and_its_skipped_leaves():
  config = dataclasses.replace(BASE, name="adamw_mico", eps=1e-3)

  def rule(p, g, slots, t, decay):
    if not g.any():
      return p
    t = slots["t"] = slots.get("t", 0) + 1
    m, v = moments(g, slots, config)
    scale = math.sqrt(1 - config.b2**t) / (1 - config.b1**t)
    p = p - 0.1 * scale * m / (np.sqrt(v) + config.eps)
    return p - 0.1 * decay * p

  grads = [tree(i + 1) for i in range(STEPS)]
  grads[1]["vision"]["pos_embed"] = np.zeros((5, 4), np.float32)
  check(run(config, grads), hand(rule, config, grads))


def test_lion():
  config = dataclasses.replace(BASE, name="lion", b2=0.95)

  def rule(p, g, slots, t, decay):
    m = slots.get("m", np.zeros_like(g))
    direction = np.sign(config.b1 * m + (1 - config.b1) * g)
    slots["m"] = config.b2 * m + (1 - config.b2) * g
    return p - 0.1 * (direction + decay * p)

  grads = [tree(i + 1) for i in range(STEPS)]
  check(run(config, grads), hand(rule, config, grads))


def test_adafactor_on_small_leaves():
  config = dataclasses.replace(BASE, name="adafactor")

  def rule(p, g, slots, t, decay):
    rate = 1 - float(t) ** -0.8
    slots["v"] = rate * slots.get("v", 0) + (1 - rate) * (g * g + 1e-30)
    u = g / np.sqrt(slots["v"])
    u = u / max(1.0, math.sqrt((u * u).mean()))
    return p - 0.1 * (u + decay * p)

  grads = [tree(i + 1) for i in range(STEPS)]
  check(run(config, grads), hand(rule, config, grads), atol=2e-5)


def test_muon_orthogonalises_kernels_of_blocks_only():
  config = dataclasses.replace(BASE, name="muon", weight_decay=0.0)
  before, grads = tree(), tree(1)
  got = run(config, [grads])
  adam = run(dataclasses.replace(BASE, weight_decay=0.0), [grads])
  # The first step of Nesterov Adam is a fixed multiple of Adam's.
  moved = lambda t: before["vision"]["pos_embed"] - t["vision"]["pos_embed"]
  ratio = (BASE.b1 * (1 - BASE.b1) / (1 - BASE.b1**2)) + 1
  np.testing.assert_allclose(moved(got), ratio * moved(adam), atol=1e-5)
  name = ("vision", "blocks", "attn", "qkv", "kernel")
  pick = lambda t: t[name[0]][name[1]][name[2]][name[3]][name[4]]
  for layer in range(2):
    move = (pick(before) - pick(got))[layer] / 0.1
    singular = np.linalg.svd(move, compute_uv=False)
    want = 0.2 * math.sqrt(6)  # consistent RMS: 0.2 * sqrt(max(shape))
    assert (singular > 0.5 * want).all()
    assert (singular < 1.4 * want).all()
    assert (move * pick(grads)[layer]).sum() > 0  # a descent direction


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic(name):
  config = dataclasses.replace(BASE, name=name, learning_rate=0.02)
  params = jax.tree.map(jnp.asarray, tree())
  optimizer = make_optimizer(config, params, 40)
  loss = lambda p: sum(jnp.square(x).sum() for x in jax.tree.leaves(p))

  @jax.jit
  def update(params, state, step):
    return optimizer.update(jax.grad(loss)(params), state, params, step=step)

  state, first = optimizer.init(params), loss(params)
  for step in range(40):
    params, state = update(params, state, jnp.int32(step))
  assert loss(params) < 0.6 * first


def test_clipping_by_the_global_norm_of_trained_leaves():
  config = dataclasses.replace(
    BASE, clip_norm=0.5, weight_decay=0.0, freeze=("pos_embed",)
  )
  params = jax.tree.map(jnp.asarray, tree())
  optimizer = make_optimizer(config, params, STEPS)
  grads = tree(1)
  trained = [
    grads["temperature"],
    *jax.tree.leaves(grads["vision"]["blocks"]),
  ]
  norm = math.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in trained))
  np.testing.assert_allclose(optimizer.norm(grads), norm, rtol=1e-6)
  scaled = jax.tree.map(lambda g: np.asarray(g * 0.5 / norm), grads)
  config = dataclasses.replace(config, eps=1.0)
  check(
    run(config, [grads]),
    run(dataclasses.replace(config, clip_norm=0.0), [scaled]),
  )


# ------------------------------------------------------------- parameter groups
def test_frozen_leaves_stay_and_have_no_state():
  config = dataclasses.replace(BASE, freeze=("^vision/blocks/",))
  got, before = run(config, [tree(1)]), tree()
  check(got["vision"]["blocks"], before["vision"]["blocks"], atol=0)
  assert (got["vision"]["pos_embed"] != before["vision"]["pos_embed"]).any()
  optimizer = make_optimizer(config, before, STEPS)
  state = jax.tree.leaves(optimizer.init(jax.tree.map(jnp.asarray, before)))
  assert (2, 4, 6) not in {leaf.shape for leaf in state}
  frozen = optimizer.freeze(jax.tree.map(jnp.asarray, before))
  check(frozen, before, atol=0)


def test_multipliers_first_match_wins_and_zero_freezes():
  config = dataclasses.replace(
    BASE,
    weight_decay=0.0,
    lr_multipliers={"pos_embed": 0.5, "^vision/": 0.0},
  )
  before, grads = tree(), tree(1)
  got = run(config, [grads])
  full = run(dataclasses.replace(BASE, weight_decay=0.0), [grads])
  move = lambda t: before["vision"]["pos_embed"] - t["vision"]["pos_embed"]
  np.testing.assert_allclose(move(got), 0.5 * move(full), atol=1e-6)
  check(got["vision"]["blocks"], before["vision"]["blocks"], atol=0)


def test_layer_decay_is_per_layer_of_the_stack():
  config = dataclasses.replace(BASE, weight_decay=0.0, layer_decay=0.5)
  before, grads = tree(), tree(1)
  got = run(config, [grads])
  full = run(dataclasses.replace(BASE, weight_decay=0.0), [grads])
  move = lambda t: jax.tree.map(lambda a, b: a - b, before, t)
  ours, plain = move(got), move(full)
  kernel = lambda t: t["vision"]["blocks"]["attn"]["qkv"]["kernel"]
  np.testing.assert_allclose(
    kernel(ours)[0], 0.25 * kernel(plain)[0], atol=1e-6
  )
  np.testing.assert_allclose(kernel(ours)[1], 0.5 * kernel(plain)[1], atol=1e-6)
  np.testing.assert_allclose(
    ours["vision"]["pos_embed"], 0.125 * plain["vision"]["pos_embed"], atol=1e-6
  )
  np.testing.assert_allclose(
    ours["temperature"], plain["temperature"], atol=1e-6
  )


def test_layer_decay_counts_blocks_over_stages():
  """Two stages of 2 and 2 x 2 blocks: six layers, the stem before them."""
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  params = {
    "vision": {
      "stem": {"conv": {"kernel": leaf(3, 4)}},
      "stage0": {"blocks": {"block0": {"fc1": {"kernel": leaf(2, 4, 4)}}}},
      "stage1": {
        "downsample": {"kernel": leaf(4, 8)},
        "blocks": {
          "block0": {"fc1": {"kernel": leaf(2, 8, 8)}},
          "block1": {"fc1": {"kernel": leaf(2, 8, 8)}},
        },
      },
      "norm": {"scale": leaf(8)},
    }
  }
  config = dataclasses.replace(BASE, layer_decay=0.5)
  vision = make_optimizer(config, params, 10).factors["vision"]
  factors = lambda stage, block: np.log2(
    np.ravel(vision[stage]["blocks"][block]["fc1"]["kernel"])
  ).tolist()
  assert factors("stage0", "block0") == [-6, -5]
  assert factors("stage1", "block0") == [-4, -2]
  assert factors("stage1", "block1") == [-3, -1]
  assert vision["stage1"]["downsample"]["kernel"] == 0.5**4
  assert vision["stem"]["conv"]["kernel"] == 0.5**7
  assert vision["norm"]["scale"] == 1.0


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"freeze": ("^visoin/",)}, r"optimizer\.freeze: '\^visoin/' matches no"),
    ({"freeze": ("(",)}, "not a regular expression"),
    ({"freeze": ("",)}, "leave nothing to train"),
    ({"lr_multipliers": {"nothing": 0.1}}, r"optimizer\.lr_multipliers"),
    ({"name": "adam2"}, "known: adamw"),
    ({"schedule": "step"}, "known: linear"),
  ],
)
def test_mistakes_are_config_errors(changes, message):
  config = dataclasses.replace(BASE, **changes)
  with pytest.raises(ConfigError, match=message):
    make_optimizer(config, tree(), STEPS)


# -------------------------------------------------------------------- schedules
def rates(steps, **changes):
  config = dataclasses.replace(BASE, learning_rate=2.0, **changes)
  schedule = make_schedule(config, steps)
  return [float(schedule(jnp.int32(k))) for k in range(steps)]


def test_linear_cosine_constant():
  got = rates(10, schedule="linear", warmup=0.2)
  want = [1.0, 2.0, *(2 * (1 - k / 8) for k in range(8))]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  got = rates(10, schedule="cosine", warmup=2.0, end_fraction=0.1)
  want = [0.1 + 0.45 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
  np.testing.assert_allclose(got, [1, 2, *(2 * x for x in want)], rtol=1e-5)
  np.testing.assert_allclose(rates(3, schedule="constant"), 2.0)


def test_released_schedule():
  got = rates(20, schedule="linear_mico", warmup=0.1)
  x = np.arange(1, 21) / 20
  want = np.where(x < 0.1, x / 0.1, (x - 1) / (0.1 - 1))
  np.testing.assert_allclose(got, 2 * want, atol=1e-6)
