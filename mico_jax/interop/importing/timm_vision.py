"""Reading encoders of timm: ViT (plain, CLIP's, EVA), Swin, ConvNeXt V2.

Also towers that open_clip holds as timm models (`visual.trunk.`). The
classification head is kept beside the parameters. `config.json` of timm's
repositories and of exports states what no tensor determines: statistics of
pixels, the activation (by the name of the architecture), arguments of the
class.

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
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import (
  Tensors,
  WeightsError,
  count_layers,
  renamed,
)
from mico_jax.interop.importing import (
  openclip_config,
  recognise,
  timm_staged,
  towers,
  vocabulary,
)
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import mico_vision, timm_vision
from mico_jax.interop.names.weight_map import Entry

IGNORED = {
  r"^head\.": "a classification head",
  r"\.k_bias$": "a buffer of zeros",
  r"^(text\.|logit_scale$|logit_bias$)": "the model does not use it",
  r"^rope\.": "buffer, computed here",
}
ROPE_GRID = 16  # of EVA-02's pretraining; timm's weights do not state it
# Arguments of timm's class -> the values that this encoder computes.
FIXED: Mapping[str, tuple[Any, ...]] = {
  "class_token": (True,),
  "no_embed_class": (False,),
  "reg_tokens": (0,),
  "num_reg_tokens": (0,),
  "qk_norm": (False,),
  "final_norm": (True,),
  "in_chans": (3,),
  "global_pool": ("token", ""),
}
POST_NORM_WIDTH = 1792  # of EVA-02-E, which has post-norm blocks
_FIRST = "blocks.0."


def rename(name: str) -> str:
  """A name without the prefixes of wrappers and of open_clip."""
  return recognise.without_prefix(name).removeprefix("visual.trunk.")


def table(config: ModelConfig) -> list[Entry]:
  """The weight map of the encoder, without its head.

  Raises:
    ConfigError: for options that timm's classes do not combine.
  """
  if config.vision.encoder in timm_vision.STAGED:
    return timm_vision.staged_entries(config.vision)
  vision = dataclasses.replace(config.vision, clip_embed_dim=0)
  return timm_vision.timm_entries(vision)


def read(path: pathlib.Path) -> ForeignWeights:
  """Reads a file, or a folder with one and its config.json.

  Raises:
    WeightsError: if it holds no encoder that `table` has names for.
  """
  file = towers.weights_file(path)
  tensors = renamed(open_tensors(file), rename)
  about = towers.read_json(file.parent / openclip_config.CONFIG)
  settings = openclip_config.as_timm(
    towers.read_json(file.parent / "config.json"), about
  )
  ignored, notes, guesses = IGNORED, (), {}
  hint = "Is it a vision transformer with a class token?"
  if timm_staged.kind_of(tensors):
    tensors, linear = timm_staged.as_linear(timm_staged.timm_names(tensors))
    vision, notes = timm_staged.config_of(tensors, settings, file)
    notes = (*notes, *linear)
    ignored = timm_staged.IGNORED
    hint = "Is it a Swin, or a ConvNeXt V2 of timm 0.9 or later?"
  else:
    vision, guesses = _config(tensors, file, settings)
  try:
    table(ModelConfig(vision=vision))
  except ConfigError as error:
    raise WeightsError(f"{file}: {error}") from error
  mode, mode_notes = _mode(settings, about, vision.image_size)
  notes = (*notes, *mode_notes)
  if not mode:
    mode = "plain"
    guesses["data.inputs"] = (
      "no mean of the pixels in a config.json beside the weights: they are "
      "taken to be -1..1 (mode plain)"
    )
  return ForeignWeights(
    file=file,
    tensors=tensors,
    config=towers.run_config(file.stem, vision, mode),
    parts=("vision",),
    ignored=ignored,
    vocabulary=vocabulary.find(file.parent),
    hint=hint,
    positions="bicubic",
    notes=notes,
    guesses=guesses,
  )


def _mode(
  settings: Mapping[str, Any], about: Mapping[str, Any], size: int
) -> tuple[str, tuple[str, ...]]:
  """The preprocessing mode of frames, and notes; "": no file states it.

  Args:
    settings: of timm's config.json.
    about: of open_clip_config.json.
    size: of the encoder's frames, in pixels.
  """
  if mode := towers.exported_mode(settings):
    return mode, ()
  pixels = settings.get("pretrained_cfg") or {}
  mode = towers.pixel_mode(
    pixels, "config.json: pretrained_cfg", towers.SQUASHED
  )
  crop = (pixels.get("crop_mode", "center"), pixels.get("crop_pct"))
  if mode and crop != ("squash", 1.0):
    return mode, (
      "timm resizes the short side (crop_pct "
      f"{pixels.get('crop_pct', 0.875)}, {pixels.get('interpolation', '?')}) "
      f"and crops the middle; mode {mode} brings whole frames to a square",
    )
  if not mode and about.get("preprocess_cfg"):
    return openclip_config.frame_mode(about, size)
  return mode, ()


def _config(
  tensors: Tensors, file: pathlib.Path, settings: Mapping[str, Any]
) -> tuple[VisionConfig, dict[str, str]]:
  """The encoder's config, from tensors and config.json; guesses."""
  has = tensors.__contains__
  try:
    _, length, width = tensors["pos_embed"].shape
    kernel = tensors["patch_embed.proj.weight"].shape
    patch = towers.side(list(kernel), f"{file}: patch_embed.proj.weight")
    gated = has(_FIRST + "mlp.fc1_g.weight")
    first = f"{_FIRST}mlp.{'fc1_g' if gated else 'fc1'}.weight"
    mlp_dim = tensors[first].shape[0]
    depth = count_layers(tensors, r"blocks\.(\d+)\.")
  except (KeyError, ValueError, IndexError) as error:
    raise WeightsError(
      f"{file}: no vision transformer of timm: {error} is missing or of "
      f"another form; {recognise.other_layout(tensors)}"
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
  fields: dict[str, Any] = {
    "image_size": grid * patch,
    "patch_size": patch,
    "width": width,
    "depth": depth,
    "mlp_dim": mlp_dim,
    "mlp": "swiglu" if gated else "gelu",
    "qkv_bias": "qv" if qv else bias,
    "sub_norm": has(_FIRST + "attn.norm.weight"),
    "rope_grid": ROPE_GRID if gated else 0,
    "norm": "post" if width == POST_NORM_WIDTH else "pre",
    "patch_bias": has("patch_embed.proj.bias"),
    "layer_scale": 1e-5 if scaled else 0.0,
  }
  named, fields["pre_norm"] = str(settings.get("architecture", "")), False
  if has("norm_pre.weight"):  # as in CLIP
    fields["pre_norm"] = True
  if not timm_vision.is_eva(VisionConfig(**fields)):
    fields["norm_eps"] = timm_vision.plain_eps(named, fields["pre_norm"])
  if "quickgelu" in named:
    fields["mlp"] = "quick_gelu"
  stated: dict[str, Any] = _stated(settings, file)
  heads = width // mico_vision.HEAD_DIMS.get(width, 64)
  fields = {"num_heads": max(heads, 1), **fields, **stated}
  vision = VisionConfig(**fields)
  where = str(file.parent / "config.json")
  size, told_patch = sizes(settings, where)
  towers.check_grid(vision, size, told_patch, where)
  _check(vision, timm_staged.arguments(settings, where), where)
  guesses = {} if size else towers.grid_guess(vision)
  return vision, guesses | (
    {} if "num_heads" in stated else towers.heads_guess(vision)
  )


def _check(vision: VisionConfig, stated: Mapping[str, Any], where: str) -> None:
  """Compares arguments of timm's class with the weights.

  Raises:
    WeightsError: if they contradict, or name options the encoder here lacks.
  """
  for key, known in FIXED.items():
    if stated.get(key) is not None and stated[key] not in known:
      raise WeightsError(
        f"{where}: {key}={stated[key]!r}; this encoder has {known[0]!r} only, "
        "so its outputs would differ."
      )
  towers.check_hidden(stated, vision, where)
  have = {"embed_dim": vision.width, "depth": vision.depth}
  if not timm_vision.is_eva(vision):
    have["qkv_bias"] = vision.qkv_bias == "all"
  towers.check_stated(where, stated, have)


def sizes(
  settings: Mapping[str, Any], where: str
) -> tuple[int | None, int | None]:
  """Sides in pixels of image and patch in timm's config.json; None: unknown.

  Raises:
    WeightsError: if they are rectangular.
  """
  pixels = settings.get("pretrained_cfg")
  options = timm_staged.arguments(settings, where)
  size = options.get("img_size")
  if not size and isinstance(pixels, Mapping):
    size = pixels.get("input_size")
  patch = options.get("patch_size")
  return (
    towers.square(size, f"{where}: img_size"),
    towers.square(patch, f"{where}: patch_size"),
  )


def _stated(settings: Mapping[str, Any], file: pathlib.Path) -> dict[str, Any]:
  """Fields of the encoder by the arguments of timm's class in config.json.

  Raises:
    WeightsError: if they are malformed.
  """
  where = str(file.parent / "config.json")
  options = timm_staged.arguments(settings, where)
  fields: dict[str, Any] = {}
  try:
    for ours, theirs in (("num_heads", "num_heads"), ("norm_eps", "norm_eps")):
      if theirs in options:
        value = options[theirs]
        fields[ours] = type(getattr(VisionConfig(), ours))(value)
        if isinstance(value, bool) or fields[ours] != value:
          raise ValueError(f"{theirs}={value!r}")
    if "act_layer" in options:
      fields["mlp"] = str(options["act_layer"])
    if "use_post_norm" in options:
      fields["norm"] = "post" if options["use_post_norm"] else "pre"
    if "use_rot_pos_emb" in options and not options["use_rot_pos_emb"]:
      fields["rope_grid"] = 0
    elif options.get("ref_feat_shape"):
      fields["rope_grid"] = int(options["ref_feat_shape"][0])
  except (TypeError, ValueError, AttributeError, IndexError) as error:
    raise WeightsError(
      f"{where}: arguments of the model are of another form ({error})."
    ) from error
  return fields
