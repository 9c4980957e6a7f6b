"""Case vision_eva01: the encoder, block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mico_jax.interop import mico as released
from mico_jax.layers.embed import PatchEmbed
from mico_jax.layers.mlp import Dense
from mico_jax.models import build
from mico_jax.testing.golden.case import Check, Folder, Unsupported


def vision_eva01(folder: Folder) -> Iterator[Check]:
  """Tokens, every block, the patch embedding and EVA-CLIP's own head."""
  settings = folder.config["vision_cfg"]
  for option, feature in (
    ("rope", "rotary positions"),
    ("naiveswiglu", "SwiGLU"),
    ("subln", "sub-LN"),
    ("postnorm", "post-norm blocks"),
    ("ls_init_value", "layer scale"),
    ("global_average_pool", "mean pooling"),
  ):
    if settings.get(option):
      raise Unsupported(feature)
  prefix = folder.config.get("key_prefix", released.VISUAL)
  weights = {
    released.VISUAL + name.removeprefix(prefix): value
    for name, value in folder.weights.items()
  }
  config = released.config_from_released(
    weights, vision_heads=settings["width"] // settings["head_width"]
  )
  config = dataclasses.replace(config, matmul_precision="highest")
  params = released.from_released(weights, config, parts=["vision"])
  params = jax.tree.map(jnp.asarray, params)
  model = build(config)
  pixels = jnp.asarray(folder.inputs["pixels"]).transpose(0, 2, 3, 1)
  tokens, hidden = model.encode(
    params, "image", pixels[:, None], return_hidden=True
  )
  outputs = folder.outputs
  yield Check("tokens", tokens[:, 0], outputs["tokens"])
  for i, block in enumerate(hidden):
    name = f"hidden.block{i}"
    yield Check(name, block[:, 0], outputs[name])
  vision = config.vision
  name = "hidden.patch_embed"
  embed = PatchEmbed(vision.width, vision.patch_size)
  got = embed.apply({"params": params["vision"]["patch_embed"]}, pixels)
  yield Check(name, np.asarray(got), outputs[name])
  if "cls_head" in outputs:
    head = Dense(vision.clip_embed_dim)
    got = head.apply({"params": params["vision"]["clip_head"]}, tokens[:, 0, 0])
    yield Check("cls_head", np.asarray(got), outputs["cls_head"])
