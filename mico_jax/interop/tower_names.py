"""Single towers in the names of timm, open_clip and transformers.

Each form is a table from our parameters to theirs. What a form cannot express
is refused by name. timm has two vision transformers: `VisionTransformer` (plain
ViT, CLIP) and `Eva` (EVA-01, EVA-02, EVA-02-E); Swin and ConvNeXt V2 have their
own. open_clip names CLIP's towers itself and holds all others as timm models
under `visual.trunk`.

Source: timm 1.0 (`vision_transformer.py`, `eva.py`), open_clip 2.30
(`transformer.py`, `timm_model.py`), transformers 4.31 (`modeling_bert.py`), by
their names of parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.checkpoint.manifest import flatten
from mico_jax.config import Config, ConfigError, VisionConfig
from mico_jax.interop import families, mico, mico_vision
from mico_jax.interop.entries import Entry, layer_norm, linear, to_theirs
from mico_jax.interop.sharded import Item, item
from mico_jax.types import Params

TOP, BLOCKS = ("vision",), ("vision", "blocks")
BLOCK = "blocks.{i}."
STAGED = ("swin", "convnext")  # that timm has too
# What the code of timm's classes fixes.
EVA_EPS, SWIN_EPS = 1e-6, 1e-5
CONVNEXT_RATIO, CONVNEXT_STAGES = 4, 4
# Behind a stem of stride 2 it halves once more; at a stride of 32 no more.
CONVNEXT_PATCHES = (1, 3, 4, 5, 6, 7)


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
  """Norms, output projections and the head: the same in both classes."""
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


def timm_entries(config: VisionConfig) -> list[Entry]:
  """The table of a vision transformer in timm's names.

  Raises:
    ConfigError: naming the options that timm's classes do not combine.
  """
  wrong = []
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
  _refuse("timm", wrong)
  return list((_eva if is_eva(config) else _plain)(config))


def vision_entries(config: VisionConfig, form: str) -> list[Entry]:
  """The table of a vision transformer in the names of "timm" or "openclip".

  Raises:
    ConfigError: naming what the form cannot express.
  """
  if form != "openclip" or not config.pre_norm:
    return timm_entries(config)
  if config.mlp == "gelu":  # It has either GELU, with the same names.
    config = dataclasses.replace(config, mlp="quick_gelu")
  try:
    return list(mico_vision.entries(config))
  except ValueError as e:
    raise ConfigError(str(e)) from e


def left_out(params: Params, config: VisionConfig, form: str) -> list[str]:
  """Parameters of the encoder that a form has no place for."""
  if config.encoder in STAGED:
    return []
  known = {"/".join(entry.path) for entry in vision_entries(config, form)}
  held = flatten({"vision": params["vision"]})
  return [path for path in held if path not in known]


def _check_staged(config: VisionConfig) -> None:
  """Refuses what timm's Swin and ConvNeXt take no argument for."""
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
  """The table of a Swin or a ConvNeXt V2 in timm's names.

  Raises:
    ConfigError: naming the options that timm's classes do not have.
  """
  _check_staged(config)
  return families.import_entries(config, layout="timm")


def timm_model(config: VisionConfig) -> dict[str, Any]:
  """Class and arguments that build the encoder in timm.

  The classifier is left out (`num_classes=0`) unless the encoder carries one.
  """
  common: dict[str, Any] = {
    "img_size": config.image_size,
    "num_classes": config.clip_embed_dim,
    "global_pool": "token",
  }
  if config.encoder == "swin":
    return {
      "class": "SwinTransformer",
      "arguments": {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.stage_widths[0],
        "depths": list(config.stage_depths),
        "num_heads": list(config.stage_heads),
        "window_size": config.window_size,
        "mlp_ratio": config.mlp_dim / config.width,
        "num_classes": 0,
      },
    }
  if config.encoder == "convnext":
    return {
      "class": "ConvNeXt",
      "arguments": {
        "patch_size": config.patch_size,
        "depths": list(config.stage_depths),
        "dims": list(config.stage_widths),
        "norm_eps": config.norm_eps,
        "use_grn": True,
        "ls_init_value": None,
        "num_classes": 0,
      },
    }
  common |= {
    "patch_size": config.patch_size,
    "embed_dim": config.width,
    "depth": config.depth,
    "num_heads": config.num_heads,
    "mlp_ratio": config.mlp_dim / config.width,
  }
  scale = config.layer_scale or None
  if not is_eva(config):
    common |= {
      "qkv_bias": config.qkv_bias == "all",
      "pre_norm": config.pre_norm,
      "init_values": scale,
      "norm_eps": config.norm_eps,
      "act_layer": config.mlp,
    }
    return {"class": "VisionTransformer", "arguments": common}
  swiglu = config.mlp == "swiglu"
  common |= {
    "qkv_bias": config.qkv_bias == "qv",
    "qkv_fused": not swiglu,
    "swiglu_mlp": swiglu,
    "scale_mlp": config.sub_norm,
    "scale_attn_inner": config.sub_norm,
    "use_rot_pos_emb": bool(config.rope_grid),
    "use_post_norm": config.norm == "post",
    "init_values": scale,
  }
  if config.rope_grid:
    common["ref_feat_shape"] = [config.rope_grid, config.rope_grid]
  return {"class": "Eva", "arguments": common}


def openclip_config(config: VisionConfig) -> dict[str, Any]:
  """The part of `open_clip_config.json` that describes CLIP's image tower."""
  return {
    "model_cfg": {
      "embed_dim": config.clip_embed_dim,
      "quick_gelu": config.mlp == "quick_gelu",
      "vision_cfg": {
        "image_size": config.image_size,
        "layers": config.depth,
        "width": config.width,
        "head_width": config.width // config.num_heads,
        "mlp_ratio": config.mlp_dim / config.width,
        "patch_size": config.patch_size,
      },
    }
  }


def entry_items(
  params: Params, table: Sequence[Entry], *, patch_size: int, prefix: str = ""
) -> Iterator[Item]:
  """Tensors of a table of entries, each read when it is written.

  Args:
    params: nested dict of host arrays.
    table: what to write.
    patch_size: of the encoder, for its patch embedding.
    prefix: of every name.
  """
  flat = flatten(params)
  for entry in table:
    stacked = np.asarray(flat["/".join(entry.path)])
    one = stacked.shape[bool(entry.layers) :]
    width = one[-1] // len(entry.names) if one else 0
    # The same for all: to lay out a large array, if only a byte each, is slow.
    shape = _shape((*one[:-1], width) if one else (), entry, patch_size)
    for i in range(max(entry.layers, 1)):
      value = stacked[i] if entry.layers else stacked
      for part, name in enumerate(entry.names):
        piece = value
        if len(entry.names) > 1:
          piece = value[..., part * width : (part + 1) * width]
        read = lambda p=piece, e=entry: to_theirs(p, e, patch_size=patch_size)
        yield Item(prefix + name.format(i=i), shape, piece.dtype, read)


def _shape(
  shape: tuple[int, ...], entry: Entry, patch_size: int
) -> tuple[int, ...]:
  like = np.broadcast_to(np.zeros((), np.int8), shape)
  return to_theirs(like, entry, patch_size=patch_size).shape


def vision_items(
  params: Params, config: VisionConfig, form: str
) -> Iterator[Item]:
  """The encoder's tensors in the names of "timm" or "openclip".

  Raises:
    ConfigError: naming what the form cannot express.
  """
  trunk = "visual.trunk." if form == "openclip" else ""
  if config.encoder in STAGED:
    _check_staged(config)
    found = families.to_tensors(params["vision"], config, layout="timm")
    for name, value in found.items():
      yield item(trunk + name, np.asarray(value))
    return
  table = vision_entries(config, form)
  if form == "openclip" and config.pre_norm:
    for one in entry_items(params, table, patch_size=config.patch_size):
      name = one.name.removeprefix("vision_encoder.")
      yield Item(name, one.shape, one.dtype, one.read)
    return
  yield from entry_items(
    params, table, patch_size=config.patch_size, prefix=trunk
  )
  if config.clip_embed_dim and not config.clip_embed_bias:
    # timm's head always has a bias, and a strict load asks for it.
    zeros = np.zeros(config.clip_embed_dim, np.float32)
    yield item(f"{trunk}head.bias", zeros)


def text_items(params: Params, config: Config) -> Iterator[Item]:
  """The text tower as transformers' BertForMaskedLM names it."""
  table = mico.entries(config.model, ["text"])
  for one in entry_items(params, table, patch_size=1):
    name = one.name.removeprefix(mico.BERT)
    yield Item(name, one.shape, one.dtype, one.read)


def text_config(config: Config, pad: int) -> Mapping[str, Any]:
  """The config.json of transformers for the text tower.

  There cross-attention needs `is_decoder`, and with it a padding mask becomes
  causal; give a mask per query ([B, L, L]) to read in both directions.
  """
  text = config.model.text
  return {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "vocab_size": text.vocab_size,
    "hidden_size": text.width,
    "num_hidden_layers": text.depth,
    "num_attention_heads": text.num_heads,
    "intermediate_size": text.mlp_dim,
    "max_position_embeddings": text.max_positions,
    "type_vocab_size": text.type_vocab_size,
    "layer_norm_eps": text.norm_eps,
    "hidden_act": "gelu",
    "hidden_dropout_prob": text.dropout,
    "attention_probs_dropout_prob": text.dropout,
    "pad_token_id": pad,
    "is_decoder": True,
    "add_cross_attention": True,
    "tie_word_embeddings": True,
  }
