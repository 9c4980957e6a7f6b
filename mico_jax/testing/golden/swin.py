"""Case vision_swin: the encoder block by block, its names and its buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mico_jax.config import ModelConfig, TextConfig
from mico_jax.interop.names import staged_vision
from mico_jax.models import build
from mico_jax.models.staged import PatchStem
from mico_jax.models.swin import PatchMerging
from mico_jax.testing.golden.case import Check, Folder, Unsupported
from mico_jax.testing.golden.vision import eps


def _check_supported(settings: Mapping[str, Any]) -> None:
  """Raises Unsupported for an option of Swin that the library lacks."""
  for option, usual, feature in (
    ("ape", False, "absolute positions"),
    ("patch_norm", True, "patches without LayerNorm"),
    ("qkv_bias", True, "attention without bias"),
    ("qk_scale", None, "another scale of attention"),
  ):
    if settings.get(option, usual) != usual:
      raise Unsupported(f"Swin with {feature}")


def vision_swin(folder: Folder) -> Iterator[Check]:
  """Tokens, pooling, every block, downsampling, and the way back to names."""
  settings = folder.config["swin"]
  _check_supported(settings)
  stored = {k: np.asarray(v) for k, v in folder.weights.items()}
  vision = staged_vision.swin_config(stored)
  vision = dataclasses.replace(
    vision,
    image_size=settings["img_size"],
    window_size=settings["window_size"],
  )
  yield from eps(folder, vision)
  text = TextConfig(
    vocab_size=8, width=8, depth=1, num_heads=1, mlp_dim=8, max_positions=8
  )
  config = ModelConfig(vision=vision, text=text, matmul_precision="highest")
  params = staged_vision.from_tensors(stored, vision, layout="official")
  params = {"vision": jax.tree.map(jnp.asarray, params)}
  model, outputs = build(config), folder.outputs
  pixels = jnp.asarray(folder.inputs["pixels"]).transpose(0, 2, 3, 1)
  tokens, hidden = model.encode(
    params, "image", pixels[:, None], return_hidden=True
  )
  yield Check("tokens", tokens[:, 0], outputs["tokens"])
  pooled = model.pool(params, "image", tokens)
  yield Check("pooled_contra", pooled, outputs["pooled_contra"])

  with jax.default_matmul_precision("highest"):
    stem = PatchStem(vision).apply({"params": params["vision"]["stem"]}, pixels)
  name = "hidden.patch_embed"
  flat = np.asarray(stem).reshape(outputs[name].shape)
  yield Check(name, flat, outputs[name])
  blocks = iter(hidden)
  for s, depth in enumerate(vision.stage_depths):
    block = None
    for j in range(depth):
      block = next(blocks)[:, 0]
      name = f"hidden.layer{s}.block{j}"
      yield Check(name, block, outputs[name])
    assert block is not None  # every stage has blocks
    name = f"hidden.layer{s}.out"
    if s + 1 < len(vision.stage_depths):
      side = round(block.shape[1] ** 0.5)
      merge = PatchMerging(vision.stage_widths[s + 1], vision.norm_eps)
      merging = params["vision"][f"stage{s + 1}"]["downsample"]
      with jax.default_matmul_precision("highest"):
        block = merge.apply(
          {"params": merging}, block.reshape(-1, side, side, block.shape[-1])
        )
    out = np.asarray(block).reshape(outputs[name].shape)
    yield Check(name, out, outputs[name])

  back = staged_vision.to_tensors(params["vision"], vision, layout="official")
  names = sorted({*back, *stored})
  same = [
    n in back and n in stored and np.array_equal(back[n], stored[n])
    for n in names
  ]
  yield Check(
    "official names, weights and buffers", same, [True] * len(names), 0
  )
