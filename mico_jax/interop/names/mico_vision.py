"""Official names of the encoders: EVA-01, EVA-02, EVA-02-E and OpenAI's CLIP.

The official MiCo code has one class for the EVA encoders and one for CLIP's.
Both fix the activation, biases and eps in code, so a config with other values
cannot be written in the official layout and is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mico_jax.config import VisionConfig
from mico_jax.interop.files.tensors import count_layers
from mico_jax.interop.names.weight_map import Entry, layer_norm, linear
from mico_jax.layers.rotary import rotary_tables
from mico_jax.models.vit import grid_size

VISUAL = "vision_encoder.visual."
LOGIT_SCALE = "vision_encoder.logit_scale"
ROTARY = re.compile(r"(^|\.)rope\.freqs_(cos|sin)$")  # buffers of rotary tables
TOP = ("vision",)
BLOCKS = ("vision", "blocks")
# Encoder's width -> width of a head, where no config states it; others: 64.
HEAD_DIMS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def entries(config: VisionConfig) -> Iterator[Entry]:
  """Weight map of the encoder: CLIP's names with pre_norm, else EVA's.

  Raises:
    ValueError: naming options that the original's encoders do not have.
  """
  yield from (_clip if config.pre_norm else _eva)(config)
  if config.clip_embed_dim:
    yield Entry((*TOP, "logit_scale"), (LOGIT_SCALE,))


def _fits(
  config: VisionConfig, original: str, known: Mapping[str, Any]
) -> None:
  wrong = [
    f"{name}={getattr(config, name)!r}"
    for name, values in {"encoder": ("vit",), **known}.items()
    if getattr(config, name) not in values
  ]
  if wrong:
    raise ValueError(
      f"the official model's {original} encoder has no {', '.join(wrong)} "
      "(config.model.vision); its form cannot hold these weights."
    )


def _eva(config: VisionConfig) -> Iterator[Entry]:
  _fits(
    config,
    "EVA",
    {
      "norm_eps": (1e-6,),
      "qkv_bias": ("qv", "none"),
      "mlp": ("gelu", "swiglu"),
      "patch_bias": (True,),
      "clip_embed_bias": (True,),
    },
  )
  depth, block = config.depth, VISUAL + "blocks.{i}."
  attn, mlp = (*BLOCKS, "attn"), (*BLOCKS, "mlp")
  yield Entry((*TOP, "cls_token"), (VISUAL + "cls_token",), lead=2)
  yield Entry((*TOP, "pos_embed"), (VISUAL + "pos_embed",), lead=1)
  patch = (*TOP, "patch_embed", "proj")
  yield Entry((*patch, "kernel"), (VISUAL + "patch_embed.proj.weight",), "conv")
  yield Entry((*patch, "bias"), (VISUAL + "patch_embed.proj.bias",))
  apart = [f"{block}attn.{n}_proj" for n in "qkv"]
  packed = apart if config.sub_norm else [block + "attn.qkv"]
  yield from linear((*attn, "qkv"), packed, depth, bias=False)
  if config.qkv_bias == "qv":
    for bias in ("q_bias", "v_bias"):
      yield Entry((*attn, "qkv", bias), (f"{block}attn.{bias}",), layers=depth)
  yield from linear((*attn, "proj"), [block + "attn.proj"], depth)
  layers = {"fc1": "fc1", "fc2": "fc2"}
  if config.mlp == "swiglu":
    layers = {"gate": "w1", "fc1": "w2", "fc2": "w3"}
  for ours, theirs in layers.items():
    yield from linear((*mlp, ours), [f"{block}mlp.{theirs}"], depth)
  if config.sub_norm:
    yield from layer_norm((*attn, "norm"), block + "attn.inner_attn_ln", depth)
    yield from layer_norm((*mlp, "norm"), block + "mlp.ffn_ln", depth)
  for i in (1, 2):
    yield from layer_norm((*BLOCKS, f"norm{i}"), f"{block}norm{i}", depth)
    if config.layer_scale:
      name = f"{block}gamma_{i}"
      yield Entry((*BLOCKS, f"scale{i}"), (name,), layers=depth)
  yield from layer_norm((*TOP, "norm"), VISUAL + "norm")
  if config.clip_embed_dim:
    yield from linear((*TOP, "clip_head"), [VISUAL + "head"])


def _clip(config: VisionConfig) -> Iterator[Entry]:
  _fits(
    config,
    "CLIP",
    {
      "norm": ("pre",),
      "norm_eps": (1e-5,),
      "qkv_bias": ("all",),
      "mlp": ("quick_gelu",),
      "patch_bias": (False,),
      "sub_norm": (False,),
      "rope_grid": (0,),
      "layer_scale": (0.0,),
      "clip_embed_bias": (False,),
    },
  )
  depth, block = config.depth, VISUAL + "transformer.resblocks.{i}."
  attn, mlp = (*BLOCKS, "attn"), (*BLOCKS, "mlp")
  yield Entry((*TOP, "cls_token"), (VISUAL + "class_embedding",))
  yield Entry((*TOP, "pos_embed"), (VISUAL + "positional_embedding",))
  patch = (*TOP, "patch_embed", "proj", "kernel")
  yield Entry(patch, (VISUAL + "conv1.weight",), "conv")
  kernel, bias = (f"{block}attn.in_proj_{n}" for n in ("weight", "bias"))
  yield Entry((*attn, "qkv", "kernel"), (kernel,), "linear", layers=depth)
  yield Entry((*attn, "qkv", "bias"), (bias,), layers=depth)
  yield from linear((*attn, "proj"), [block + "attn.out_proj"], depth)
  for ours, theirs in (("fc1", "c_fc"), ("fc2", "c_proj")):
    yield from linear((*mlp, ours), [f"{block}mlp.{theirs}"], depth)
  for i in (1, 2):
    yield from layer_norm((*BLOCKS, f"norm{i}"), f"{block}ln_{i}", depth)
  yield from layer_norm((*TOP, "pre_norm"), VISUAL + "ln_pre")
  yield from layer_norm((*TOP, "norm"), VISUAL + "ln_post")
  if config.clip_embed_dim:
    yield Entry((*TOP, "clip_head", "kernel"), (VISUAL + "proj",))


# ------------------------------------------------------------- rotary buffers
def _rotary(config: VisionConfig, grid: int) -> dict[str, np.ndarray]:
  cos, sin = rotary_tables(
    grid, config.width // config.num_heads, base_grid=config.rope_grid
  )
  return {"cos": cos, "sin": sin}


def rotary_buffers(config: VisionConfig) -> dict[str, np.ndarray]:
  """The rotary tables of an official file, which holds them once and per block.

  They differ from those that PyTorch computes by at most one unit in the last
  place.
  """
  if not config.rope_grid:
    return {}
  tables = _rotary(config, grid_size(config))
  places = ["", *(f"blocks.{i}.attn." for i in range(config.depth))]
  return {
    f"{VISUAL}{place}rope.freqs_{name}": table
    for place in places
    for name, table in tables.items()
  }


def check_rotary_buffers(
  tensors: Mapping[str, Any], config: VisionConfig
) -> None:
  """Compares the rotary tables of a file with ours.

  A file of another resolution has the tables of its own grid.

  Args:
    tensors: arrays, or objects that NumPy can convert, by name.
    config: of the encoder.

  Raises:
    ValueError: naming a table of other positions than the config's.
  """
  for name, value in tensors.items():
    match = ROTARY.search(name)
    if not match:
      continue
    ours = None
    if config.rope_grid:
      ours = _rotary(config, math.isqrt(value.shape[0]))[match[2]]
    # Rounding of float32 as PyTorch computes it, or of a half-precision file.
    limit = 1e-5 if value.dtype.itemsize >= 4 else 1e-2
    theirs = np.asarray(value, np.float32)
    if (
      ours is None
      or ours.shape != theirs.shape
      or not (np.abs(ours - theirs).max() <= limit)
    ):
      raise ValueError(
        f"{name}: not the table of rotary positions of the config; set "
        f"config.model.vision.rope_grid={config.rope_grid} (0: none) or "
        f"num_heads={config.num_heads} as in the file's own config."
      )


# --------------------------------------------------------------------- config
def _rope_grid(cos: np.ndarray, sin: np.ndarray) -> int:
  """The pretraining grid of rotary tables, from their slowest frequency."""
  grid, half = math.isqrt(cos.shape[0]), cos.shape[1] // 2
  if grid < 2:
    raise ValueError(
      "rotary tables of one patch do not determine the pretraining grid; give "
      "rope_grid."
    )
  # The second patch: first row, column one; columns are the second half.
  angle = math.atan2(float(sin[1, -1]), float(cos[1, -1]))
  slowest = 10000.0 ** (-(half - 2) / half)
  return round(angle / slowest * grid)


def _clip_fields(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of OpenAI's CLIP encoder, its sizes aside."""
  first = VISUAL + "transformer.resblocks.0.mlp.c_fc.weight"
  layers = re.escape(VISUAL) + r"transformer\.resblocks\.(\d+)\."
  fields: dict[str, Any] = {
    "depth": count_layers(tensors, layers),
    "mlp_dim": tensors[first].shape[0],
    "norm_eps": 1e-5,
    "mlp": "quick_gelu",
    "qkv_bias": "all",
    "patch_bias": False,
    "pre_norm": True,
    "clip_embed_bias": False,
  }
  if VISUAL + "proj" in tensors:
    fields["clip_embed_dim"] = tensors[VISUAL + "proj"].shape[1]
  return fields


def _eva_fields(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of an EVA encoder, its sizes aside."""
  has = lambda name: VISUAL + name in tensors
  gated = has("blocks.0.mlp.w1.weight")
  first = f"{VISUAL}blocks.0.mlp.{'w1' if gated else 'fc1'}.weight"
  fields: dict[str, Any] = {
    "depth": count_layers(tensors, re.escape(VISUAL) + r"blocks\.(\d+)\."),
    "mlp_dim": tensors[first].shape[0],
    "mlp": "swiglu" if gated else "gelu",
    "qkv_bias": "qv" if has("blocks.0.attn.q_bias") else "none",
    "sub_norm": has("blocks.0.attn.inner_attn_ln.weight"),
    "layer_scale": 1e-5 if has("blocks.0.gamma_1") else 0.0,
  }
  if has("head.weight"):
    fields["clip_embed_dim"] = tensors[VISUAL + "head.weight"].shape[0]
  return fields


def config_from_tensors(
  tensors: Mapping[str, Any], *, num_heads: int | None, **options: Any
) -> VisionConfig | None:
  """The config of official tensors, from names and shapes; None: no encoder.

  Args:
    tensors: by official name; arrays, or objects with their shape.
    num_heads: number of heads; None: of the width of the official encoders'.
    **options: fields that no tensor determines, such as norm="post" of
      EVA-02-E.

  Raises:
    ValueError: for more layers than tensors, a kernel that is not square or a
      position table that is no class row plus a square grid.
    KeyError: naming a tensor that is missing.
  """
  if VISUAL + "positional_embedding" in tensors:
    length, width = tensors[VISUAL + "positional_embedding"].shape
    patch, fields = "conv1.weight", _clip_fields(tensors)
  elif VISUAL + "pos_embed" in tensors:
    _, length, width = tensors[VISUAL + "pos_embed"].shape
    patch, fields = "patch_embed.proj.weight", _eva_fields(tensors)
  else:
    return None
  if VISUAL + "rope.freqs_cos" in tensors:
    cos, sin = (tensors[f"{VISUAL}rope.freqs_{n}"] for n in ("cos", "sin"))
    if "rope_grid" not in options:
      fields["rope_grid"] = _rope_grid(np.asarray(cos), np.asarray(sin))
    num_heads = num_heads or width // cos.shape[1]
  kernel = tensors[VISUAL + patch].shape
  if len(kernel) != 4 or kernel[-1] != kernel[-2]:
    raise ValueError(f"a patch kernel {list(kernel)} (patches are square here)")
  grid = math.isqrt(max(length - 1, 0))
  if not grid or grid**2 != length - 1:
    raise ValueError(
      f"a position table of {length} rows (a class row and a square grid)"
    )
  fields |= {
    "image_size": grid * kernel[-1],
    "patch_size": kernel[-1],
    "width": width,
    "num_heads": num_heads or max(width // HEAD_DIMS.get(width, 64), 1),
  }
  return VisionConfig(**{**fields, **options})
