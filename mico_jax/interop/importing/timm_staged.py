"""Reading Swin and ConvNeXt V2 in timm's names: kind and config.

Swin's own files, and those of timm before 0.9, assign downsampling to the stage
before it: `timm_names` renumbers it as in current timm.

The weights do not determine the image size, except for masks in old files of
Swin. `config.json` does: `input_size` in timm's own repositories, arguments of
the class in exports.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mico_jax.config import VisionConfig
from mico_jax.interop.files.tensors import (
  MALFORMED,
  Tensors,
  WeightsError,
  renamed,
)
from mico_jax.interop.importing import towers
from mico_jax.interop.names import staged_vision

IGNORED = {
  r"^head\.": "a classification head",  # after the last norm of a ConvNeXt
  staged_vision.BUFFERS.pattern: "buffer, computed here",
  r"^(text\.|logit_scale$|logit_bias$)": "the model does not use it",
}
# A tensor that only one kind has -> that kind.
FIRST = {
  "layers.0.blocks.0.attn.qkv.weight": "swin",
  "stem.0.weight": "convnext",
}
POINTWISE = re.compile(r"^stages\.\d+\.blocks\.\d+\.mlp\.fc[12]\.weight$")
DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")
MASK = "layers.0.blocks.1.attn_mask"
IMAGE_SIZE = 224  # pixels, where no file states it
NORM_EPS = 1e-6  # of timm's ConvNeXt, unless its arguments say otherwise


def kind_of(tensors: Tensors) -> str:
  """The kind of encoder of a file; "": none of these."""
  return next((kind for name, kind in FIRST.items() if name in tensors), "")


def timm_names(tensors: Tensors) -> Tensors:
  """Tensors by one of the two orders of names that timm has.

  Downsampling of a Swin belongs to the stage after it; the last norm of a
  ConvNeXt has its name after the pooling.

  Raises:
    WeightsError: if two tensors get the same name.
  """
  if kind_of(tensors) == "convnext":
    first = lambda name: re.sub(r"^norm_pre\.", "head.norm.", name)
    return renamed(tensors, first)
  if "layers.0.downsample.reduction.weight" not in tensors:
    return tensors
  later = lambda match: f"layers.{int(match[1]) + 1}.downsample."
  return renamed(tensors, lambda name: DOWNSAMPLE.sub(later, name))


def as_linear(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]]:
  """MLPs of 1 x 1 convolutions as linear layers, and a note if there are any.

  timm's small ConvNeXts have such convolutions, its larger ones linear layers.
  """
  result: Tensors = {}
  for name, one in tensors.items():
    if POINTWISE.search(name) and one.shape[2:] == (1, 1):
      load = lambda one=one: one.load().reshape(one.shape[:2])
      one = dataclasses.replace(one, shape=one.shape[:2], load=load)
    result[name] = one
  if all(result[name] is one for name, one in tensors.items()):
    return tensors, ()
  note = "1 x 1 convolutions of the MLPs are taken, and given back, as linear"
  return result, (note,)


def config_of(
  tensors: Tensors, settings: Mapping[str, Any], file: pathlib.Path
) -> tuple[VisionConfig, tuple[str, ...]]:
  """The config of the encoder, and notes on assumptions.

  Args:
    tensors: by timm's names, of a kind of `FIRST`.
    settings: of the config.json beside the file.
    file: for errors.

  Raises:
    WeightsError: if the tensors or the settings are malformed.
  """
  kind = kind_of(tensors)
  try:
    config = READERS[kind](tensors)
    if max(config.stage_depths) > len(tensors):
      raise ValueError(f"block {max(config.stage_depths) - 1}")
  except (LookupError, ValueError, ArithmeticError) as error:
    raise WeightsError(
      f"{file}: no {kind} of timm: {error} is missing or of another form; see "
      "--from for other kinds of weights."
    ) from error
  stated = _stated(settings, kind, file)
  config = dataclasses.replace(config, **stated)
  notes: tuple[str, ...] = ()
  if "image_size" not in stated and MASK not in tensors:
    config = dataclasses.replace(config, image_size=IMAGE_SIZE)
    notes = (
      "no input_size in a config.json beside the weights: frames are taken to "
      f"be {IMAGE_SIZE} pixels wide; set --config.model.vision.image_size "
      "otherwise",
    )
  _check(config, settings, str(file.parent / "config.json"))
  try:
    staged_vision.check_buffers(tensors, config)
  except (ValueError, IndexError, ArithmeticError) as error:
    raise WeightsError(f"{file}: {error}") from error
  return config, notes


def arguments(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Arguments of timm's class, from its own config.json or that of an export.

  Raises:
    WeightsError: if they are no JSON object.
  """
  model = settings.get("model")
  inner = model.get("arguments") if isinstance(model, Mapping) else model
  for value in (settings.get("model_args"), inner):
    if not isinstance(value or {}, Mapping):
      raise WeightsError(
        f"{where}: arguments of the model are of another form; expected an "
        "object."
      )
  return {**(settings.get("model_args") or {}), **(inner or {})}


def _check(
  config: VisionConfig, settings: Mapping[str, Any], where: str
) -> None:
  """Compares arguments of timm's class with the weights, as `check_stated`."""
  options = arguments(settings, where)
  have: dict[str, Any] = {"depths": config.stage_depths, "in_chans": 3}
  if config.encoder == "swin":
    have["embed_dim"] = config.stage_widths[0]
    if isinstance(options.get("num_heads"), list):
      have["num_heads"] = config.stage_heads
    towers.check_hidden(options, config, where)
  else:
    have["dims"] = config.stage_widths
  towers.check_stated(where, options, have)


def _swin(tensors: Tensors) -> VisionConfig:
  return staged_vision.swin_config(tensors, top="")


def _convnext(tensors: Tensors) -> VisionConfig:
  pattern = r"stages\.(\d+)\.blocks\.(\d+)\."
  depths = staged_vision.stage_depths(tensors, pattern)
  first = [f"stages.{s}.blocks.0." for s in range(len(depths))]
  if f"{first[0]}mlp.grn.weight" not in tensors:
    raise KeyError(f"{first[0]}mlp.grn.weight (the response norm of V2)")
  widths = tuple(tensors[f"{name}norm.weight"].shape[0] for name in first)
  return VisionConfig(
    encoder="convnext",
    patch_size=tensors["stem.0.weight"].shape[-1],
    width=widths[-1],
    depth=sum(depths),
    mlp_dim=tensors[f"{first[-1]}mlp.fc1.weight"].shape[0],
    norm_eps=NORM_EPS,
    stage_depths=depths,
    stage_widths=widths,
  )


READERS = {"swin": _swin, "convnext": _convnext}


def _stated(
  settings: Mapping[str, Any], kind: str, file: pathlib.Path
) -> dict[str, Any]:
  """Fields of the encoder that config.json states.

  Raises:
    WeightsError: if they are malformed.
  """
  fields: dict[str, Any] = {}
  where = str(file.parent / "config.json")
  try:
    options = arguments(settings, where)
    size = options.get("img_size") or (
      settings.get("pretrained_cfg") or {}
    ).get("input_size")
    if size is not None:
      fields["image_size"] = towers.square(size, f"{where}: img_size")
    if kind == "swin" and "window_size" in options:
      fields["window_size"] = towers.square(
        options["window_size"], f"{where}: window_size"
      )
    if kind == "convnext" and "norm_eps" in options:
      fields["norm_eps"] = float(options["norm_eps"])
    if any(value <= 0 for value in fields.values()):
      raise ValueError(f"{fields}")
  except WeightsError:
    raise
  except (*MALFORMED, LookupError) as error:
    raise WeightsError(
      f"{where}: arguments of the model are of another form ({error})."
    ) from error
  return fields
