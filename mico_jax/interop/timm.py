"""Encoders of timm: ViT, plain, of CLIP and EVA; Swin and ConvNeXt V2.

Also towers that open_clip holds as timm models (`visual.trunk.`). The
classification head is kept beside the parameters. What no tensor tells is in
`config.json` of timm's repositories and of exports: statistics of pixels, the
activation by the name of the architecture, arguments of the class.

Source: https://github.com/huggingface/pytorch-image-models (names of the
weights).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from mico_jax.config import ConfigError, ModelConfig, VisionConfig
from mico_jax.interop import timm_staged, tower_names, towers
from mico_jax.interop.entries import Entry
from mico_jax.interop.source import Source, find_vocabulary
from mico_jax.interop.tensors import (
  Tensors,
  WeightsError,
  count_layers,
  open_tensors,
  renamed,
)
from mico_jax.modalities import spatial

IGNORED = {
  r"^head\.": "a classification head",
  r"\.k_bias$": "a buffer of zeros",
  r"^(text\.|logit_scale$|logit_bias$)": "the model does not use it",
  r"^rope\.": "buffer, computed here",
}
# Mode -> mean and deviation of the pixels in timm's config.
MODES: Mapping[str, spatial.Stats] = {
  "plain": spatial.HALF,
  "mico_demo": spatial.IMAGENET,
  "mico_train": spatial.CLIP,
}
ROPE_GRID = 16  # of EVA-02's pretraining; timm keeps it out of the weights
POST_NORM_WIDTH = 1792  # EVA-02-E: no tensor tells where its norms stand
_FIRST = "blocks.0."


def rename(name: str) -> str:
  """A name without what wrappers and open_clip put before it."""
  return towers.without_prefix(name, ("module.", "visual.trunk."))


def table(config: ModelConfig) -> list[Entry]:
  """Where the encoder's parameters come from, its head aside.

  Raises:
    ConfigError: for options that timm's classes do not combine.
  """
  if config.vision.encoder in tower_names.STAGED:
    return tower_names.staged_entries(config.vision)
  vision = dataclasses.replace(config.vision, clip_embed_dim=0)
  return tower_names.timm_entries(vision)


def read(path: pathlib.Path) -> Source:
  """Reads a file, or a folder with one and its config.json.

  Raises:
    WeightsError: if it holds no encoder of a kind of `table`.
  """
  file = towers.weights_file(path)
  tensors = renamed(open_tensors(file), rename)
  settings = towers.read_json(file.parent / "config.json")
  ignored, notes = IGNORED, ()
  hint = "Is it a vision transformer with a class token?"
  if timm_staged.kind_of(tensors):
    tensors, linear = timm_staged.as_linear(timm_staged.timm_names(tensors))
    vision, notes = timm_staged.config_of(tensors, settings, file)
    notes = (*notes, *linear)
    ignored = timm_staged.IGNORED
    hint = "Is it a Swin, or a ConvNeXt V2 of timm 0.9 or later?"
  else:
    vision = _config(tensors, file, settings)
  try:
    table(ModelConfig(vision=vision))
  except ConfigError as error:
    raise WeightsError(f"{file}: {error}") from error
  mode = towers.own_mode(settings)
  if not mode:
    told = settings.get("pretrained_cfg")
    mode = towers.pixel_mode(told, "config.json: pretrained_cfg", MODES)
  if not mode:
    mode = "plain"
    notes = (
      *notes,
      "no mean of the pixels in a config.json beside the weights: they are "
      "taken to be -1..1 (mode plain); set --config.data.inputs otherwise",
    )
  return Source(
    file=file,
    tensors=tensors,
    config=towers.run_config(file.stem, vision, mode),
    parts=("vision",),
    ignored=ignored,
    vocabulary=find_vocabulary(file.parent),
    hint=hint,
    positions="bicubic",
    notes=notes,
  )


def _config(
  tensors: Tensors, file: pathlib.Path, settings: Mapping[str, Any]
) -> VisionConfig:
  """The encoder, from names, shapes and what config.json says."""
  has = tensors.__contains__
  try:
    _, length, width = tensors["pos_embed"].shape
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    gated = has(_FIRST + "mlp.fc1_g.weight")
    first = f"{_FIRST}mlp.{'fc1_g' if gated else 'fc1'}.weight"
    mlp_dim = tensors[first].shape[0]
    depth = count_layers(tensors, r"blocks\.(\d+)\.")
  except (KeyError, ValueError, IndexError) as error:
    raise WeightsError(
      f"{file}: no vision transformer of timm: {error} is missing or of "
      "another form; see --from for other kinds of weights."
    ) from error
  grid = math.isqrt(max(length - 1, 0))
  if not grid or grid**2 != length - 1:
    raise WeightsError(
      f"{file}: pos_embed has {length} rows, expected a class row plus a "
      "square grid."
    )
  qv = has(_FIRST + "attn.q_bias") or has(_FIRST + "attn.q_proj.bias")
  bias = "all" if has(_FIRST + "attn.qkv.bias") else "none"
  scaled = has(_FIRST + "ls1.gamma") or has(_FIRST + "gamma_1")
  found: dict[str, Any] = {
    "image_size": grid * patch,
    "patch_size": patch,
    "width": width,
    "depth": depth,
    "num_heads": max(width // towers.HEAD_DIMS.get(width, 64), 1),
    "mlp_dim": mlp_dim,
    "mlp": "swiglu" if gated else "gelu",
    "qkv_bias": "qv" if qv else bias,
    "sub_norm": has(_FIRST + "attn.norm.weight"),
    "rope_grid": ROPE_GRID if gated else 0,
    "norm": "post" if width == POST_NORM_WIDTH else "pre",
    "patch_bias": has("patch_embed.proj.bias"),
    "layer_scale": 1e-5 if scaled else 0.0,
  }
  named, found["pre_norm"] = str(settings.get("architecture", "")), False
  if has("norm_pre.weight"):  # as in CLIP
    found["pre_norm"] = True
  if not tower_names.is_eva(VisionConfig(**found)):
    found["norm_eps"] = tower_names.plain_eps(named, found["pre_norm"])
  if "quickgelu" in named:
    found["mlp"] = "quick_gelu"
  return VisionConfig(**{**found, **_told(settings, file)})


def _told(settings: Mapping[str, Any], file: pathlib.Path) -> dict[str, Any]:
  """Fields that the arguments of timm's class in config.json give.

  Raises:
    WeightsError: if they are of another form.
  """
  model = settings.get("model") or {}
  arguments = dict(settings.get("model_args") or {})
  found: dict[str, Any] = {}
  try:
    arguments |= model.get("arguments") or {}
    for ours, theirs in (("num_heads", "num_heads"), ("norm_eps", "norm_eps")):
      if theirs in arguments:
        found[ours] = type(getattr(VisionConfig(), ours))(arguments[theirs])
    if "act_layer" in arguments:
      found["mlp"] = str(arguments["act_layer"])
    if "use_post_norm" in arguments:
      found["norm"] = "post" if arguments["use_post_norm"] else "pre"
    if "use_rot_pos_emb" in arguments and not arguments["use_rot_pos_emb"]:
      found["rope_grid"] = 0
    elif arguments.get("ref_feat_shape"):
      found["rope_grid"] = int(arguments["ref_feat_shape"][0])
  except (TypeError, ValueError, AttributeError, IndexError) as error:
    raise WeightsError(
      f"{file.parent / 'config.json'}: arguments of the model are of another "
      f"form ({error})."
    ) from error
  return found
