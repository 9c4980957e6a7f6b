"""Encoder and preprocessing settings of open_clip_config.json.

Source: https://github.com/mlfoundations/open_clip (configs and their defaults).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mico_jax.config import VisionConfig
from mico_jax.interop.files.tensors import WeightsError
from mico_jax.interop.importing.towers import (
  CROPPED,
  SQUASHED,
  check_grid,
  check_hidden,
  check_stated,
  grid_guess,
  heads_guess,
  pixel_mode,
  resample_note,
  square,
)
from mico_jax.interop.names.mico_vision import HEAD_DIMS
from mico_jax.modalities import spatial

CONFIG = "open_clip_config.json"
# vision_cfg of open_clip -> the values that this encoder computes.
FIXED: Mapping[str, tuple[Any, ...]] = {
  "pool_type": ("tok", None),
  "attentional_pool": (False, None),
  "pos_embed_type": ("learnable", None),
  "no_ln_pre": (False, None),
  "norm_kwargs": ({}, None),
  "act_kwargs": ({}, None),
  "block_type": (None,),
  **dict.fromkeys(
    (
      "qk_norm",
      "scaled_cosine_attn",
      "scale_heads",
      "scale_attn_inner",
      "scale_attn",
      "scale_fc",
    ),
    (False, None),
  ),
}


def encoder_config(
  vision: VisionConfig, about: Mapping[str, Any], *, heads_known: bool = False
) -> tuple[VisionConfig, dict[str, str]]:
  """The encoder with the settings of open_clip_config.json, and guesses.

  Args:
    vision: sized by its tensors.
    about: content of the file; {}: there is none.
    heads_known: whether the tensors determine the number of heads.

  Raises:
    WeightsError: if the file contradicts the tensors, or has options that the
      encoder here lacks.
  """
  where = CONFIG
  inner = _vision_cfg(about)
  for key, known in FIXED.items():
    if inner.get(key, known[0]) not in known:
      raise WeightsError(
        f"{where}: vision_cfg.{key}={inner[key]!r}; this encoder has "
        f"{known[0]!r} only, so its outputs would differ."
      )
  size = square(inner.get("image_size"), f"{where}: image_size")
  patch = square(inner.get("patch_size"), f"{where}: patch_size")
  check_grid(vision, size, patch, where)
  if not inner.get("timm_model_name"):
    check_stated(where, inner, {"layers": vision.depth, "width": vision.width})
    check_hidden(inner, vision, where)
  if vision.clip_embed_dim:
    stated = about.get("model_cfg") or {}
    check_stated(where, stated, {"embed_dim": vision.clip_embed_dim})
  guesses = {} if size else grid_guess(vision)
  head = inner.get("head_width")
  if head is None and "width" in inner and not inner.get("timm_model_name"):
    head = 64  # open_clip's default, absent from its files
  if head is not None and (type(head) is not int or not head > 0):
    raise WeightsError(
      f"{where}: head_width={head!r}, expected a whole number."
    )
  if heads_known:
    if head not in (None, vision.width // vision.num_heads):
      raise WeightsError(
        f"{where}: head_width={head}, but the weights' rotary positions are of "
        f"heads {vision.width // vision.num_heads} wide. Correct the file."
      )
    return vision, guesses
  if head is None:
    head = HEAD_DIMS.get(vision.width, 64)
    vision = dataclasses.replace(vision, num_heads=max(vision.width // head, 1))
    return vision, guesses | heads_guess(vision)
  if vision.width % head:
    raise WeightsError(
      f"{where}: head_width={head} does not divide the width {vision.width}."
    )
  return dataclasses.replace(vision, num_heads=vision.width // head), guesses


def as_timm(
  settings: Mapping[str, Any], about: Mapping[str, Any]
) -> Mapping[str, Any]:
  """config.json of timm with the image size of open_clip_config.json.

  Args:
    settings: content of config.json, which wins; {}: there is none.
    about: content of open_clip_config.json; {}: there is none.
  """
  size = _vision_cfg(about).get("image_size")
  stated = settings.get("pretrained_cfg") or {}
  if size is None or not isinstance(stated, Mapping):
    return settings
  return {**settings, "pretrained_cfg": {"input_size": size, **stated}}


def _vision_cfg(about: Mapping[str, Any]) -> Mapping[str, Any]:
  """The settings of the encoder; {}: there are none.

  Raises:
    WeightsError: if they are no JSON object.
  """
  model = about.get("model_cfg") or {}
  inner = model.get("vision_cfg") if isinstance(model, dict) else None
  if not isinstance(inner or {}, dict) or not isinstance(model, dict):
    raise WeightsError(f"{CONFIG}: expected objects model_cfg and vision_cfg.")
  return inner or {}


def frame_mode(
  about: Mapping[str, Any], size: int
) -> tuple[str, tuple[str, ...]]:
  """The closest mode to `preprocess_cfg`, and notes on the differences.

  Args:
    about: content of open_clip_config.json; {}: there is none.
    size: pixels of the encoder's images.

  Raises:
    WeightsError: for preprocessing that no mode is close to.
  """
  where = f"{CONFIG}: preprocess_cfg"
  stated = about.get("preprocess_cfg")
  if not isinstance(stated, (dict, type(None))):
    raise WeightsError(f"{where}: expected a JSON object.")
  stated = stated or {}
  place = stated.get("resize_mode") or "shortest"
  tables = {"shortest": CROPPED, "squash": SQUASHED}
  if not isinstance(place, str) or place not in tables:
    raise WeightsError(
      f"{where}: resize_mode={place!r}; known here: {', '.join(tables)}. Set "
      "it to one of them to import the weights all the same."
    )
  shape = square(stated.get("size"), f"{where}: size")
  if shape not in (None, size):
    raise WeightsError(
      f"{where}: size {shape}, the encoder takes images of {size} pixels."
    )
  mode = pixel_mode(stated, where, tables[place]) or next(
    name for name, stats in tables[place].items() if stats == spatial.CLIP
  )
  return mode, resample_note(stated.get("interpolation") or "bicubic", mode)
