"""Reading folders of Hugging Face: the vision models of transformers.

`model_type` in config.json names the family; config.json also states what no
tensor determines. Absent fields have the default of transformers' class. Text
towers, classifiers and mask tokens are kept beside the parameters.

Source: https://github.com/huggingface/transformers (configs and their
defaults).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mico_jax.config import ModelConfig, VisionConfig
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import (
  MALFORMED,
  Tensors,
  WeightsError,
  count_layers,
  renamed,
)
from mico_jax.interop.importing import (
  recognise,
  timm_staged,
  towers,
  vocabulary,
)
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import staged_vision, transformers_vision
from mico_jax.interop.names.weight_map import Entry
from mico_jax.modalities import spatial

CONFIG, PIXELS = "config.json", "preprocessor_config.json"
UNUSED = "the model does not use it"
IGNORED = {
  r"(^|\.)position_ids$": "buffer, computed here",
  staged_vision.BUFFERS.pattern: "buffer, computed here",
  r"^(text_model\.|text_projection\.|logit_(scale|bias)$)": UNUSED,
  r"^(classifier|pooler)\.": "a classification head",
  r"^embeddings\.mask_token$": "of masked training",
}
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_python": "gelu",
  "quick_gelu": "quick_gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
}
# Defaults of the classes of transformers, for absent fields.
_COMMON = {
  "image_size": 224,
  "hidden_size": 768,
  "num_hidden_layers": 12,
  "patch_size": 16,
  "num_attention_heads": 12,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-6,
  "num_channels": 3,
}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
  "clip": _COMMON
  | {
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "intermediate_size": 3072,
  },
  "siglip": _COMMON
  | {"hidden_act": "gelu_pytorch_tanh", "intermediate_size": 3072},
  "dinov2": _COMMON | {"mlp_ratio": 4, "qkv_bias": True},
  "vit": _COMMON
  | {"layer_norm_eps": 1e-12, "intermediate_size": 3072, "qkv_bias": True},
  "convnextv2": _COMMON
  | {
    "patch_size": 4,
    "depths": [3, 3, 9, 3],
    "hidden_sizes": [96, 192, 384, 768],
  },
  "swin": _COMMON
  | {
    "patch_size": 4,
    "layer_norm_eps": 1e-5,
    "window_size": 7,
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "mlp_ratio": 4.0,
    "qkv_bias": True,
  },
}
# Options that change the computation -> the only value that is supported here.
FIXED: Mapping[str, Any] = {
  "use_swiglu_ffn": False,
  "use_absolute_embeddings": False,
  "vision_use_head": True,
  "num_channels": 3,
}
SWIN_EPS = 1e-5  # of the norms of a Swin that no setting changes
STATS = {
  "clip": spatial.CLIP,
  "siglip": spatial.HALF,
  "vit": spatial.HALF,
}  # others: ImageNet's
CROPPING = ("CLIP", "Bit")  # processors that crop by default
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def table(config: ModelConfig) -> list[Entry]:
  """The weight map of the encoder, by the names of transformers."""
  return transformers_vision.entries(config.vision)


def family_of(kind: str) -> str:
  """The family of a model_type."""
  kind = kind.removesuffix("_vision_model")
  return "dinov2" if kind == "dinov2_with_registers" else kind


def read(path: pathlib.Path) -> ForeignWeights:
  """Reads a folder with config.json, or a file of weights beside one.

  Raises:
    WeightsError: if it holds no model of a known family, or its config
      contradicts the weights.
  """
  file = towers.weights_file(path)
  where = file.parent / CONFIG
  about = towers.read_json(where)
  recognise.check_layout(about, str(where), "hf")
  kind = about.get("model_type")
  if not isinstance(kind, str):
    raise WeightsError(f"{where}: no model_type; name the kind with --from.")
  family = family_of(kind)
  inner = about.get("vision_config") if kind in ("clip", "siglip") else about
  if not isinstance(inner, (dict, type(None))):
    raise WeightsError(f"{where}: vision_config is no JSON object.")
  settings = {**DEFAULTS[family], **(inner or {}), **_older(about, kind, where)}
  tensors = renamed(
    open_tensors(file),
    lambda name: transformers_vision.rename(
      recognise.without_prefix(name), family
    ),
  )
  try:
    vision = _config(tensors, family, settings, str(where))
  except WeightsError:
    raise
  except (*MALFORMED, LookupError, ArithmeticError) as error:
    raise WeightsError(
      f"{file}: not the {kind} of {where}: {error} is missing or malformed."
    ) from error
  if dim := vision.clip_embed_dim:
    towers.check_stated(str(where), about, {"projection_dim": dim})
  mode, notes, guesses = _frames(about, file.parent, kind, vision.image_size)
  text = [name for name in tensors if name.startswith("text_model.")]
  if text:
    notes.append(
      f"the text tower ({len(text)} tensors) is no BERT, so it is kept beside "
      "the parameters and not used"
    )
  if family == "convnextv2":
    notes.append(
      "the last LayerNorm is applied to each token, with eps 1e-6; "
      "transformers applies it to their mean"
    )
  return ForeignWeights(
    file=file,
    tensors=tensors,
    config=towers.run_config(file.parent.name or kind, vision, mode),
    parts=("vision",),
    ignored=IGNORED,
    optional=(r"^vision/logit_scale$",),
    vocabulary=vocabulary.find(file.parent),
    hint=f"Is {where} that of these weights?",
    positions="bicubic",
    notes=tuple(notes),
    guesses=guesses,
  )


def _frames(
  about: Mapping[str, Any], folder: pathlib.Path, kind: str, size: int
) -> tuple[str, list[str], dict[str, str]]:
  """The preprocessing mode of frames, notes and guesses."""
  if mode := towers.exported_mode(about):
    return mode, [], {}
  pixels = towers.read_json(folder / PIXELS)
  mode, notes = _mode(pixels, family_of(kind), size)
  if pixels:
    return mode, notes, {}
  guess = (
    f"no {PIXELS} beside the weights: pixels are taken to be those of the "
    f"published {kind} (mode {mode})"
  )
  return mode, notes, {"data.inputs": guess}


def _older(
  about: Mapping[str, Any], kind: str, where: pathlib.Path
) -> Mapping[str, Any]:
  """`vision_config_dict`, which in transformers wins over `vision_config`."""
  older = about.get("vision_config_dict") if kind == "clip" else None
  if not isinstance(older, (dict, type(None))):
    raise WeightsError(f"{where}: vision_config_dict is no JSON object.")
  return older or {}


def _config(
  tensors: Tensors, family: str, settings: Mapping[str, Any], where: str
) -> VisionConfig:
  """The encoder's config, from config.json and tensors."""
  for key, value in FIXED.items():
    if settings.get(key, value) != value:
      raise WeightsError(
        f"{where}: {key}={settings[key]!r}; the encoders here have {value!r} "
        "only, so these weights cannot be imported."
      )
  act = settings["hidden_act"]
  if not isinstance(act, str) or act not in ACTIVATIONS:
    raise WeightsError(
      f"{where}: hidden_act={act!r}; known: {', '.join(ACTIVATIONS)}."
    )
  size = towers.side(settings["image_size"], f"{where}: image_size")
  patch = towers.side(settings["patch_size"], f"{where}: patch_size")
  if family == "swin":
    return _swin(tensors, settings, size, act, where)
  if family == "convnextv2":
    vision = timm_staged.READERS["convnext"](tensors)
    if ACTIVATIONS[act] != "gelu":
      raise WeightsError(f"{where}: hidden_act={act!r}, a ConvNeXt has 'gelu'.")
    vision = dataclasses.replace(vision, image_size=size)
    towers.check_grid(vision, size, patch, where)
    towers.check_stated(
      where,
      settings,
      {"depths": vision.stage_depths, "hidden_sizes": vision.stage_widths},
    )
    return vision
  vision = _vit(tensors, family, settings, ACTIVATIONS[act])
  have = {
    "hidden_size": vision.width,
    "num_hidden_layers": vision.depth,
    "intermediate_size": vision.mlp_dim,
    "qkv_bias": vision.qkv_bias == "all",
    "num_register_tokens": vision.registers,
  }
  if family == "dinov2":  # which has a ratio in its place
    towers.check_hidden(settings, vision, where)
    del have["intermediate_size"]
  towers.check_stated(where, settings, have)
  rows = tensors["pos_embed"].shape[-2]
  single = int(vision.pooling == "class")
  have = (size // patch) ** 2 + single
  if rows != have:
    raise WeightsError(
      f"{where} and weights contradict: images of {size} in patches of {patch} "
      f"have {have} positions, the table has {rows}."
    )
  vision = dataclasses.replace(vision, image_size=size)
  towers.check_grid(vision, size, patch, where)
  return vision


def _vit(
  tensors: Tensors, family: str, settings: Mapping[str, Any], act: str
) -> VisionConfig:
  kernel = tensors["patch.weight"].shape
  patch = towers.side(list(kernel), "patch kernel")
  heads, width = settings["num_attention_heads"], kernel[0]
  if type(heads) is not int or heads < 1 or width % heads:
    raise ValueError(f"num_attention_heads={heads!r} of width {width}")
  fields: dict[str, Any] = {
    "patch_size": patch,
    "width": width,
    "depth": count_layers(tensors, r"blocks\.(\d+)\."),
    "num_heads": heads,
    "mlp_dim": tensors["blocks.0.fc1.weight"].shape[0],
    "norm_eps": float(settings["layer_norm_eps"]),
    "mlp": act,
    "qkv_bias": "all" if "blocks.0.q.bias" in tensors else "none",
    "patch_bias": "patch.bias" in tensors,
    "pre_norm": "norm_pre.weight" in tensors,
    "layer_scale": 1.0 if "blocks.0.scale1" in tensors else 0.0,
    "pooling": "map" if family == "siglip" else "class",
  }
  if "registers" in tensors:
    fields["registers"] = tensors["registers"].shape[-2]
  if "clip_head.weight" in tensors:
    dim = tensors["clip_head.weight"].shape[0]
    fields |= {"clip_embed_dim": dim, "clip_embed_bias": False}
  return VisionConfig(**fields)


def _swin(
  tensors: Tensors,
  settings: Mapping[str, Any],
  size: int,
  act: str,
  where: str,
) -> VisionConfig:
  pattern = r"layers\.(\d+)\.blocks\.(\d+)\."
  depths = staged_vision.stage_depths(tensors, pattern)
  if sum(depths) > len(tensors):
    raise ValueError("more blocks than tensors")
  if ACTIVATIONS[act] != "gelu":
    raise WeightsError(f"{where}: hidden_act={act!r}, a Swin has 'gelu'.")
  first = [f"layers.{s}.blocks.0." for s in range(len(depths))]
  tables = "attn.relative_position_bias_table"
  widths = tuple(tensors[f"{x}norm1.weight"].shape[0] for x in first)
  heads = tuple(tensors[x + tables].shape[1] for x in first)
  kernel = tensors["patch_embed.proj.weight"].shape
  patch = towers.side(list(kernel), "patch kernel")
  window = towers.side(settings["window_size"], f"{where}: window_size")
  if settings["layer_norm_eps"] != SWIN_EPS:
    raise WeightsError(
      f"{where}: layer_norm_eps={settings['layer_norm_eps']!r}; transformers "
      f"always uses {SWIN_EPS} in the patches and between stages, and the "
      "encoder here has one eps, so these weights cannot be imported."
    )
  if f"{first[0]}attn.q.bias" not in tensors:
    raise WeightsError(f"{where}: attention without biases (qkv_bias=false).")
  vision = VisionConfig(
    encoder="swin",
    image_size=size,
    patch_size=patch,
    width=widths[-1],
    depth=sum(depths),
    num_heads=heads[-1],
    mlp_dim=tensors[f"{first[-1]}mlp.fc1.weight"].shape[0],
    norm_eps=SWIN_EPS,
    stage_depths=depths,
    stage_widths=widths,
    stage_heads=heads,
    window_size=window,
  )
  stated = towers.side(settings["patch_size"], f"{where}: patch_size")
  towers.check_grid(vision, size, stated, where)
  towers.check_hidden(settings, vision, where)
  towers.check_stated(
    where,
    settings,
    {
      "embed_dim": widths[0],
      "depths": vision.stage_depths,
      "num_heads": heads,
      "qkv_bias": True,  # checked above
    },
  )
  staged_vision.check_buffers(tensors, vision)
  return vision


def _crops(pixels: Mapping[str, Any], family: str) -> bool:
  """Whether frames are cropped to a square.

  Raises:
    WeightsError: if do_center_crop is neither true nor false.
  """
  kind = str(pixels.get("image_processor_type", ""))
  kind = kind or str(pixels.get("feature_extractor_type", ""))
  usual = kind.startswith(CROPPING) if kind else family == "clip"
  crop = pixels.get("do_center_crop")
  crop = usual if crop is None else crop
  if type(crop) is not bool:
    raise WeightsError(f"{PIXELS}: do_center_crop={crop!r}, expected a bool.")
  return crop


def _mode(
  pixels: Mapping[str, Any], family: str, size: int
) -> tuple[str, list[str]]:
  """The closest mode to preprocessor_config.json, notes on the differences.

  Raises:
    WeightsError: for preprocessing that no mode is close to.
  """
  crop = _crops(pixels, family)
  modes = towers.CROPPED if crop else towers.SQUASHED
  if not pixels:
    stats = STATS.get(family, spatial.IMAGENET)
    return next(mode for mode, value in modes.items() if value == stats), []
  stated = {
    ours: pixels[theirs]
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
    if theirs in pixels
  }
  for key in ("do_normalize", "do_rescale", "do_resize"):
    if pixels.get(key, True) not in (True, None):
      raise WeightsError(
        f"{PIXELS}: {key}={pixels[key]!r}; no mode here is without, so its "
        "pixels would differ."
      )
  factor = pixels.get("rescale_factor", 1 / 255)
  if type(factor) not in (int, float) or not 0.99 < 255 * factor < 1.01:
    raise WeightsError(f"{PIXELS}: rescale_factor={factor!r}, expected 1/255.")
  mode = towers.pixel_mode(stated, PIXELS, modes)
  if not mode:
    stats = STATS.get(family, spatial.IMAGENET)
    mode = next(name for name, value in modes.items() if value == stats)
  how = pixels.get("resample", 2)
  known = RESAMPLE.get(how) if type(how) is int else None
  notes = [*towers.resample_note(known or str(how), mode)]
  frame_size = pixels.get("crop_size" if crop else "size")
  short = pixels.get("size")
  edge = short.get("shortest_edge") if isinstance(short, dict) else None
  if not crop and edge:  # as of ConvNeXt's processor
    notes.append(
      f"frames keep their shape in training (shortest_edge {edge}, crop_pct "
      f"{pixels.get('crop_pct', 'none')}); mode {mode} brings whole frames to "
      "a square"
    )
  short = edge if isinstance(short, dict) else short
  if isinstance(frame_size, dict):
    frame_size = [
      frame_size[k] for k in ("height", "width") if k in frame_size
    ] or None
  frame_size = towers.square(frame_size or None, f"{PIXELS}: size")
  if frame_size not in (None, size):
    notes.append(
      f"{PIXELS} makes frames of {frame_size} pixels, the encoder's are {size}"
    )
  if crop and type(short) is int and frame_size and short != frame_size:
    notes.append(
      f"frames are resized to {short} before the middle {frame_size} are "
      f"cropped; mode {mode} takes all of the short side"
    )
  return mode, notes
