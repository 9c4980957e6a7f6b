"""Cases vision_*: the encoder, block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mico_jax.config import VisionConfig
from mico_jax.interop.names import mico as official
from mico_jax.interop.names import mico_vision
from mico_jax.layers.embed import PatchEmbed
from mico_jax.layers.mlp import Dense
from mico_jax.layers.norm import LayerNorm
from mico_jax.models import MiCo, build
from mico_jax.testing.golden.case import Check, Folder, Unsupported


def encoder(
  folder: Folder, num_heads: int, **options: Any
) -> tuple[MiCo, dict[str, Any]]:
  """A model with the encoder of a folder that holds only that.

  Args:
    folder: with weights under the original's names.
    num_heads: heads.
    **options: fields of the encoder's config that no tensor tells.
  """
  prefix = folder.config.get("key_prefix", mico_vision.VISUAL)
  weights = {
    mico_vision.VISUAL + name.removeprefix(prefix): value
    for name, value in folder.weights.items()
  }
  config = official.config_from_official(
    weights, vision_heads=num_heads, vision_options=options
  )
  config = dataclasses.replace(config, matmul_precision="highest")
  params = official.from_official(weights, config, parts=["vision"])
  return build(config), jax.tree.map(jnp.asarray, params)


def eps(folder: Folder, vision: VisionConfig) -> Iterator[Check]:
  """The encoder's own eps, which few outputs would show, against the stored."""
  if "layernorm_eps" in folder.config:
    want = folder.config["layernorm_eps"]
    yield Check("layernorm_eps", vision.norm_eps, want, 0.0)


def vision_eva(folder: Folder) -> Iterator[Check]:
  """EVA-01, EVA-02, EVA-02-E: also patch embedding, rotary tables and head."""
  settings = folder.config["vision_cfg"]
  if settings.get("global_average_pool"):
    raise Unsupported("mean pooling")
  options = {"norm": "post"} if settings.get("postnorm") else {}
  if settings.get("rope"):
    grid = settings["image_size"] // settings["patch_size"]
    base = settings["pt_hw_seq_len"] if settings.get("intp_freq") else grid
    options["rope_grid"] = base
  heads = settings["width"] // settings["head_width"]
  model, params = encoder(folder, heads, **options)
  yield from eps(folder, model.config.vision)
  yield from _tokens(folder, model, params, "cls_head")
  name = "hidden.patch_embed"
  if name in folder.outputs:
    yield Check(name, _patches(folder, model, params), folder.outputs[name])
  for name, table in mico_vision.rotary_buffers(model.config.vision).items():
    if name in folder.weights:
      yield Check(name, table, folder.weights[name])


def vision_clip(folder: Folder) -> Iterator[Check]:
  """OpenAI's CLIP: also the tokens before the blocks, and CLIP's own head."""
  heads = folder.config.get("heads") or folder.config["width"] // 64
  model, params = encoder(folder, heads)
  yield from eps(folder, model.config.vision)
  yield from _tokens(folder, model, params, "cls_proj")
  name = "hidden.ln_pre"
  if name in folder.outputs:
    x, vision = _patches(folder, model, params), params["vision"]
    first = jnp.broadcast_to(
      vision["cls_token"][None, None], (len(x), 1, x.shape[-1])
    )
    x = jnp.concatenate([first, x], axis=1) + vision["pos_embed"][None]
    norm = LayerNorm(model.config.vision.norm_eps)
    got = norm.apply({"params": vision["pre_norm"]}, x)
    yield Check(name, got, folder.outputs[name])


def _pixels(folder: Folder) -> Float[Array, "B Y X 3"]:
  return jnp.asarray(folder.inputs["pixels"]).transpose(0, 2, 3, 1)


def _patches(folder: Folder, model: MiCo, params: Any) -> Any:
  """Embedded patches, before class token and positions."""
  vision = model.config.vision
  embed = PatchEmbed(
    vision.width, vision.patch_size, use_bias=vision.patch_bias
  )
  with jax.default_matmul_precision("highest"):
    return embed.apply(
      {"params": params["vision"]["patch_embed"]}, _pixels(folder)
    )


def _tokens(
  folder: Folder, model: MiCo, params: Any, head: str
) -> Iterator[Check]:
  """Tokens, the residual stream after every block, and the unused head."""
  outputs, vision = folder.outputs, model.config.vision
  tokens, hidden = model.encode(
    params, "image", _pixels(folder)[:, None], return_hidden=True
  )
  yield Check("tokens", tokens[:, 0], outputs["tokens"])
  for i, block in enumerate(hidden):
    name = f"hidden.block{i}"
    if name in outputs:
      yield Check(name, block[:, 0], outputs[name])
  if head in outputs:
    dense = Dense(vision.clip_embed_dim, use_bias=vision.clip_embed_bias)
    with jax.default_matmul_precision("highest"):
      got = dense.apply(
        {"params": params["vision"]["clip_head"]}, tokens[:, 0, 0]
      )
    yield Check(head, np.asarray(got), outputs[head])
