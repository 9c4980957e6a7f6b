"""The encoder in the names of timm and open_clip.

Each form is a weight map; options that it cannot express are refused by name.
timm has two vision transformers: `VisionTransformer` (plain ViT, CLIP) and
`Eva` (EVA-01, EVA-02, EVA-02-E), and classes for Swin and ConvNeXt V2.
open_clip has names of its own for CLIP's towers and holds all others as timm
models under `visual.trunk`.

Source: timm 1.0 (`vision_transformer.py`, `eva.py`), open_clip 2.30
(`transformer.py`, `timm_model.py`), by their names of parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from mico_jax.aliases import Params
from mico_jax.checkpoint.manifest import flatten
from mico_jax.config import ConfigError, VisionConfig
from mico_jax.interop.files.tensors import Item, item
from mico_jax.interop.names import mico_vision, staged_vision, weight_map
from mico_jax.interop.names.weight_map import (
  Entry,
  layer_norm,
  linear,
)

TOP, BLOCKS = ("vision",), ("vision", "blocks")
BLOCK = "blocks.{i}."
# Epsilon of LayerNorm -> an architecture of timm's plain ViT that has it.
PLAIN = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
STAGED = ("swin", "convnext")  # staged encoders that timm has too
# Constants in the code of timm's classes.
EVA_EPS, SWIN_EPS = 1e-6, 1e-5
CONVNEXT_RATIO, CONVNEXT_STAGES = 4, 4
# Patch sizes of timm's stems; stride 2 is followed by another downsampling,
# stride 32 by none.
CONVNEXT_PATCHES = (1, 3, 4, 5, 6, 7)


def plain_eps(architecture: str, pre_norm: bool) -> float:
  """Epsilon of a plain ViT's LayerNorm.

  Args:
    architecture: timm's name; "": unknown.
    pre_norm: whether it has a norm before the first block.
  """
  clip = "_clip_" in architecture if architecture else pre_norm
  return 1e-5 if clip else 1e-6


def _refuse(form: str, reasons: Sequence[str]) -> None:
  if reasons:
    raise ConfigError(
      f"{form} has no encoder with {', '.join(reasons)} (config.model.vision);"
      " export to torch or safetensors instead."
    )


def _patches(config: VisionConfig) -> Iterator[Entry]:
  yield Entry((*TOP, "cls_token"), ("cls_token",), lead=2)
  yield Entry((*TOP, "pos_embed"), ("pos_embed",), lead=1)
  patch = (*TOP, "patch_embed", "proj")
  yield Entry((*patch, "kernel"), ("patch_embed.proj.weight",), "conv")
  if config.patch_bias:
    yield Entry((*patch, "bias"), ("patch_embed.proj.bias",))


def _ends(config: VisionConfig) -> Iterator[Entry]:
  """Norms, output projections and the head, equal in both classes."""
  depth = config.depth
  for i in (1, 2):
    yield from layer_norm((*BLOCKS, f"norm{i}"), f"{BLOCK}norm{i}", depth)
  yield from linear((*BLOCKS, "attn", "proj"), [BLOCK + "attn.proj"], depth)
  yield from layer_norm((*TOP, "norm"), "norm")
  if config.clip_embed_dim:
    head = (*TOP, "clip_head")
    yield from linear(head, ["head"], bias=config.clip_embed_bias)


def _plain(config: VisionConfig) -> Iterator[Entry]:
  """Timm's VisionTransformer."""
  depth, attn, mlp = config.depth, (*BLOCKS, "attn"), (*BLOCKS, "mlp")
  bias = config.qkv_bias == "all"
  yield from _patches(config)
  if config.pre_norm:
    yield from layer_norm((*TOP, "pre_norm"), "norm_pre")
  yield from linear((*attn, "qkv"), [BLOCK + "attn.qkv"], depth, bias)
  for name in ("fc1", "fc2"):
    yield from linear((*mlp, name), [f"{BLOCK}mlp.{name}"], depth)
  if config.layer_scale:
    for i in (1, 2):
      name = f"{BLOCK}ls{i}.gamma"
      yield Entry((*BLOCKS, f"scale{i}"), (name,), layers=depth)
  yield from _ends(config)


def _eva(config: VisionConfig) -> Iterator[Entry]:
  """Timm's Eva."""
  depth, attn, mlp = config.depth, (*BLOCKS, "attn"), (*BLOCKS, "mlp")
  yield from _patches(config)
  name, apart = BLOCK + "attn.", config.mlp == "swiglu"
  packed = [f"{name}{x}_proj" for x in "qkv"] if apart else [f"{name}qkv"]
  yield from linear((*attn, "qkv"), packed, depth, bias=False)
  if config.qkv_bias == "qv":
    for x in "qv":
      theirs = f"{name}{x}_proj.bias" if apart else f"{name}{x}_bias"
      yield Entry((*attn, "qkv", f"{x}_bias"), (theirs,), layers=depth)
  layers = {"fc1": "fc1", "fc2": "fc2"}
  if config.mlp == "swiglu":
    layers = {"gate": "fc1_g", "fc1": "fc1_x", "fc2": "fc2"}
  for ours, theirs in layers.items():
    yield from linear((*mlp, ours), [f"{BLOCK}mlp.{theirs}"], depth)
  if config.sub_norm:
    yield from layer_norm((*attn, "norm"), name + "norm", depth)
    yield from layer_norm((*mlp, "norm"), BLOCK + "mlp.norm", depth)
  if config.layer_scale:
    for i in (1, 2):
      name = f"{BLOCK}gamma_{i}"
      yield Entry((*BLOCKS, f"scale{i}"), (name,), layers=depth)
  yield from _ends(config)


def is_eva(config: VisionConfig) -> bool:
  """Whether timm holds the encoder as an `Eva`."""
  return bool(
    config.qkv_bias == "qv"
    or config.sub_norm
    or config.rope_grid
    or config.mlp == "swiglu"
    or config.norm == "post"
  )


def _unnamed(config: VisionConfig) -> list[str]:
  """Options that these forms have no names for."""
  wrong = [f"registers={config.registers}"] if config.registers else []
  if config.pooling != "class":
    wrong.append(f"pooling={config.pooling!r}")
  return wrong


def timm_entries(config: VisionConfig) -> list[Entry]:
  """The weight map of a vision transformer in timm's names.

  Raises:
    ConfigError: naming the options that timm's classes do not combine.
  """
  wrong = _unnamed(config)
  if config.encoder != "vit":
    wrong.append(f"encoder={config.encoder!r}")
  elif is_eva(config):
    if config.qkv_bias == "all":
      wrong.append("qkv_bias='all' beside EVA's options")
    if config.mlp not in ("gelu", "swiglu"):
      wrong.append(f"mlp={config.mlp!r} beside EVA's options")
    if config.pre_norm:
      wrong.append("pre_norm beside EVA's options")
    if config.mlp == "swiglu" and not config.sub_norm:
      wrong.append("mlp='swiglu' without sub_norm")
    if config.norm_eps != EVA_EPS:
      wrong.append(f"norm_eps={config.norm_eps} beside EVA's options")
  if config.encoder == "vit" and config.patch_bias == config.pre_norm:
    wrong.append(
      f"patch_bias={config.patch_bias} beside pre_norm={config.pre_norm}"
    )
  _refuse("timm", wrong)
  return list((_eva if is_eva(config) else _plain)(config))


def vision_entries(config: VisionConfig, form: str) -> list[Entry]:
  """The weight map of a vision transformer, form "timm" or "openclip".

  Raises:
    ConfigError: naming what the form cannot express.
  """
  if form != "openclip" or not config.pre_norm:
    return timm_entries(config)
  _refuse(form, _unnamed(config))
  if config.mlp == "gelu":  # Both GELUs have the same names.
    config = dataclasses.replace(config, mlp="quick_gelu")
  try:
    return list(mico_vision.entries(config))
  except ValueError as e:
    raise ConfigError(str(e)) from e


def left_out(params: Params, config: VisionConfig, form: str) -> list[str]:
  """Paths of the encoder's parameters that a form has no names for."""
  if config.encoder in STAGED:
    return []
  known = {"/".join(entry.path) for entry in vision_entries(config, form)}
  held = flatten({"vision": params["vision"]})
  return [path for path in held if path not in known]


def _check_staged(config: VisionConfig) -> None:
  """Refuses sizes that timm's Swin and ConvNeXt take no argument for."""
  wrong = []
  if config.encoder == "swin" and config.norm_eps != SWIN_EPS:
    wrong.append(f"norm_eps={config.norm_eps} in a Swin")
  if config.encoder == "convnext":
    if config.mlp_dim != CONVNEXT_RATIO * config.width:
      wrong.append(f"mlp_dim={config.mlp_dim} of width {config.width}")
    if config.patch_size not in CONVNEXT_PATCHES:
      wrong.append(f"patch_size={config.patch_size} in a ConvNeXt")
    if len(config.stage_depths) != CONVNEXT_STAGES:
      wrong.append(f"stage_depths={config.stage_depths} in a ConvNeXt")
  _refuse("timm", wrong)


def staged_entries(config: VisionConfig) -> list[Entry]:
  """The weight map of a Swin or a ConvNeXt V2 in timm's names.

  Raises:
    ConfigError: naming the options that timm's classes do not have.
  """
  _check_staged(config)
  return staged_vision.entries(config, layout="timm")


def ratio(part: int, whole: int) -> float:
  """The ratio with `int(whole * ratio) == part`, as libraries compute it."""
  quotient = part / whole
  while int(whole * quotient) < part:
    quotient = math.nextafter(quotient, math.inf)
  return quotient


def vision_items(
  params: Params, config: VisionConfig, form: str
) -> Iterator[Item]:
  """The encoder's tensors in the names of "timm" or "openclip".

  Raises:
    ConfigError: naming what the form cannot express.
  """
  trunk = "visual.trunk." if form == "openclip" else ""
  if config.encoder in STAGED:
    table = staged_entries(config)
    for one in weight_map.items(params, table, patch_size=config.patch_size):
      # With timm's `head_norm_first` the last norm precedes pooling, as here.
      name = one.name.replace("head.norm.", "norm_pre.")
      yield dataclasses.replace(one, name=trunk + name)
    return
  table = vision_entries(config, form)
  if form == "openclip" and config.pre_norm:
    for one in weight_map.items(params, table, patch_size=config.patch_size):
      name = one.name.removeprefix("vision_encoder.")
      yield Item(name, one.shape, one.dtype, one.read)
    return
  yield from weight_map.items(
    params, table, patch_size=config.patch_size, prefix=trunk
  )
  if config.clip_embed_dim and not config.clip_embed_bias:
    # timm's head always has a bias, and a strict load asks for it.
    zeros = np.zeros(config.clip_embed_dim, np.float32)
    yield item(f"{trunk}head.bias", zeros)
