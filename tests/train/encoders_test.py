"""Every form of the encoder trains through the same step."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mico_jax.config import OptimizerConfig, ParallelConfig
from mico_jax.models import VISION, build
from mico_jax.objectives import compute
from mico_jax.parallel.mesh import make_mesh
from mico_jax.parallel.sharding import put_batch, replicated
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train import lora, optimizer, selection
from mico_jax.train.state import abstract_params, create_state
from mico_jax.train.step import make_train_step

SIZES = ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim")
ENCODERS = ("eva01_g14", "eva02_b16", "eva02_bige14_plus", "clip_b16")
STAGES = {
  "image_size": 16,
  "patch_size": 4,
  "width": 16,
  "depth": 4,
  "mlp_dim": 32,
  "stage_depths": (2, 2),
  "stage_widths": (8, 16),
}
STAGED = {
  "swin_t": {"num_heads": 4, "stage_heads": (2, 4), "window_size": 2},
  "convnext_tiny": {},
  "unireplknet_t": {"stage_kernels": ((3,), (13, 3))},
}


def tiny(name, **changes):
  """A tiny model with the options of a packaged encoder."""
  sizes = {size: getattr(TINY_MODEL.vision, size) for size in SIZES}
  if name in STAGED:
    sizes = {**STAGES, **STAGED[name]}
  vision = dataclasses.replace(VISION[name], **sizes, **changes)
  return dataclasses.replace(TINY_MODEL, vision=vision)


def drawn_state(model, config, mesh):
  """A state with drawn parameters, which takes no compiling; none is 0."""
  rng = np.random.default_rng(0)

  def draw(path, like):
    noise = rng.normal(size=like.shape).astype(np.float32)
    if path[-1].key == "temperature":
      return np.full(like.shape, 0.1, np.float32)
    if path[-1].key == "kernel":
      return noise / np.sqrt(np.prod(like.shape[-2:-1]))
    return 0.1 * noise + float(path[-1].key.startswith("scale"))

  params = jax.tree_util.tree_map_with_path(
    draw, abstract_params(model, config)
  )
  made = optimizer.make_optimizer(config.optimizer, params, 10)
  return jax.device_put(create_state(params, made), replicated(mesh))


BOTH = {"contrastive": ("tv",), "masked_modelling": ("tv",)}
ONE = {"contrastive": ("tv",)}


@pytest.mark.parametrize(
  ("name", "changes", "objectives"),
  [
    *((name, {}, ONE) for name in ("eva02_b16", "clip_b16", *STAGED)),
    # Masked modelling shows the encoder a subset of the patches.
    *(
      pytest.param(name, changes, BOTH, marks=pytest.mark.slow)
      for name, changes in (
        *((name, {}) for name in ENCODERS),
        ("vit_b16", {"layer_scale": 0.1, "drop_path_rate": 0.1}),
      )
    ),
  ],
)
def test_pretrains_through_the_same_step(name, changes, objectives):
  """Two steps lower the loss of the batch and reach every parameter."""
  mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
  config = tiny_config(
    objectives,
    model=tiny(name, **changes),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.0, weight_decay=0.0),
  )
  model = build(config.model)
  step = make_train_step(
    model, config, config.tasks["main"], TOKENIZER, mesh, donate=False
  )
  state = drawn_state(model, config, mesh)
  before = jax.device_get(state.params["vision"])
  size = config.model.vision.image_size
  batch = put_batch(fake_batch(("tv",), size=size), mesh)
  losses = []
  for _ in range(3):
    after = jax.device_get(state.params["vision"])
    state, metrics = step(state, batch)
    losses.append(float(compute(metrics["loss"])))
    assert compute(metrics["skipped"]) == 0
  assert losses[2] < losses[0]
  # Without weight decay, only a gradient moves a parameter; each layer's own.
  for path, old in jax.tree_util.tree_leaves_with_path(before):
    new = after
    for key in path:
      new = new[key.key]
    stacked = any(key.key == "blocks" for key in path)
    moved = (new != old).reshape((old.shape[0] if stacked else 1), -1)
    assert moved.any(axis=1).all(), selection.path_name(path)


def test_selections_know_the_names_of_every_form():
  for name in (*ENCODERS, "vit_b16"):
    model = build(tiny(name, layer_scale=0.1))
    params = model.abstract_params()
    config = OptimizerConfig(lora_rank=2, layer_decay=0.5)
    deltas = lora.init(jax.random.key(0), params, config)
    assert sum(path.startswith("vision/") for path in deltas) == 2
    mlps = dataclasses.replace(
      config, lora_targets=(r"^vision/.*mlp/\w+/kernel$",)
    )
    gated = model.config.vision.mlp == "swiglu"
    assert len(lora.init(jax.random.key(0), params, mlps)) == 2 + gated
    # No weight decay on anything that is no kernel, table or token.
    decayed = {
      path
      for path in selection.paths(params["vision"])
      if not selection.matches(config.no_decay, path)
    }
    assert {p.split("/")[-1] for p in decayed} == {
      "kernel",
      "pos_embed",
      "cls_token",
    }
    # Layer-wise decay: what stands before the blocks has the lowest rate.
    whole = dataclasses.replace(config, lora_rank=0)
    made = optimizer.make_optimizer(whole, params, 10)
    factors = selection.map_paths(
      lambda path, f: float(np.min(f)), made.factors["vision"]
    )
    for first in ("patch_embed", "pos_embed", "cls_token", "pre_norm"):
      for value in jax.tree.leaves(factors.get(first, {})):
        assert value == pytest.approx(0.5**3)
    for value in jax.tree.leaves(factors["blocks"]):
      assert value == pytest.approx(0.5**2)
    assert set(jax.tree.leaves(factors["norm"])) == {1.0}
