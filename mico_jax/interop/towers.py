"""What readers of single towers share: one file, a run around one encoder."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mico_jax.config import (
  Config,
  DataConfig,
  InputConfig,
  ModelConfig,
  TokenizerConfig,
  VisionConfig,
)
from mico_jax.interop import mico_vision
from mico_jax.interop.mico_vision import HEAD_DIMS as HEAD_DIMS
from mico_jax.interop.tensors import INDEX, Tensors, WeightsError
from mico_jax.modalities import MODALITIES, spatial

WRAPPERS = ("module.", "model.", "_orig_mod.")
COMPILED = "_orig_mod."
# model_type of transformers -> the form that reads it, and how its classes'
# names begin.
LAYOUTS: Mapping[str, tuple[str, str]] = {
  "bert": ("bert", "Bert"),
  "clip": ("hf", "CLIP"),
  "clip_vision_model": ("hf", "CLIPVision"),
  "siglip": ("hf", "Siglip"),
  "siglip_vision_model": ("hf", "SiglipVision"),
  "dinov2": ("hf", "Dinov2"),
  "dinov2_with_registers": ("hf", "Dinov2WithRegisters"),
  "vit": ("hf", "ViT"),
  "convnextv2": ("hf", "ConvNextV2"),
  "swin": ("hf", "Swin"),
}
# vision_cfg of open_clip -> the values that this encoder computes.
OPEN_CLIP_FIXED: Mapping[str, tuple[Any, ...]] = {
  "pool_type": ("tok", None),
  "attentional_pool": (False, None),
  "pos_embed_type": ("learnable", None),
  "no_ln_pre": (False, None),
  "norm_kwargs": ({}, None),
  "act_kwargs": ({}, None),
}
# Mode -> mean and deviation of its pixels: of whole frames brought to a square,
# and of the middle of frames whose short side fits.
SQUASHED: Mapping[str, spatial.Stats] = {
  "plain": spatial.HALF,
  "plain_imagenet": spatial.IMAGENET,
  "plain_clip": spatial.CLIP,
}
CROPPED: Mapping[str, spatial.Stats] = {
  "crop_flip_smooth": spatial.HALF,
  "crop_flip_smooth_imagenet": spatial.IMAGENET,
  "crop_flip_smooth_clip": spatial.CLIP,
}
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def weights_file(path: pathlib.Path) -> pathlib.Path:
  """The file of weights that a path names: itself, or the one in a folder.

  Raises:
    WeightsError: if a folder holds none, or several.
  """
  if path.is_file():
    return path
  files = sorted(p for p in path.iterdir() if p.is_file())
  index = [p for p in files if p.name.endswith(INDEX)]
  if index:
    return index[0]
  for suffix in SUFFIXES:
    found = [p for p in files if p.suffix == suffix]
    if len(found) == 1:
      return found[0]
    if found:
      names = ", ".join(p.name for p in found[:8])
      raise WeightsError(f"{path}: holds several files ({names}); name one.")
  raise WeightsError(
    f"{path}: no file of weights in it ({', '.join(SUFFIXES)})."
  )


def read_json(file: pathlib.Path) -> Mapping[str, Any]:
  """A JSON object that may lie beside the weights; {} if it does not.

  Raises:
    WeightsError: if it cannot be parsed.
  """
  if not file.is_file():
    return {}
  try:
    value = json.loads(file.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise WeightsError(f"{file}: not valid JSON ({error}).") from error
  if not isinstance(value, dict):
    raise WeightsError(f"{file}: expected a JSON object.")
  return value


def without_prefix(name: str) -> str:
  """A name without what wrappers of training put before it.

  `module.` (DDP), `model.` (Lightning) and `_orig_mod.` (torch.compile) go from
  the front, in any order and number; `_orig_mod.` from within too, where a part
  of a model was compiled.
  """
  name = name.replace(COMPILED, "")
  while name.startswith(WRAPPERS):
    name = name.partition(".")[2]
  return name


def check_layout(settings: Mapping[str, Any], where: str, form: str) -> None:
  """Refuses a config.json of transformers that is of another model.

  Args:
    settings: its content; {}: there is none.
    where: it stands, for messages.
    form: that reads the weights.

  Raises:
    WeightsError: naming the layout and what to do.
  """
  kind, classes = settings.get("model_type"), settings.get("architectures")
  known = LAYOUTS.get(kind) if isinstance(kind, str) else None
  what = " ".join(map(str, classes)) if isinstance(classes, list) else ""
  if settings.get("quantization_config"):
    raise WeightsError(
      f"{where}: quantised weights (quantization_config); take the repository "
      "of the full weights."
    )
  if kind is not None and known is None:
    raise WeightsError(
      f"{where}: the layout of {what or kind} (model_type {kind!r}), which "
      f"this model cannot hold; read here: {', '.join(LAYOUTS)}. Take weights "
      "of one of these."
    )
  if known is not None and known[0] != form:
    raise WeightsError(
      f"{where}: the layout of {what or kind} (model_type {kind!r}); import it "
      f"--from {known[0]}."
    )
  prefix = known[1] if known else ("Bert" if form == "bert" else "")
  if what and not all(str(one).startswith(prefix) for one in classes):
    raise WeightsError(
      f"{where}: architectures {what}, but model_type {kind!r}; expected names "
      f"that begin with {prefix}. Take weights of that class."
    )


def square(value: Any, what: str) -> int | None:
  """The side of a square given as N, [N, N] or [channels, N, N].

  Args:
    value: what a config says; None: nothing.
    what: it is, and where it stands, for messages.

  Raises:
    WeightsError: if it is rectangular or no size.
  """
  if value is None:
    return None
  sides = list(value)[-2:] if isinstance(value, (list, tuple)) else [value]
  if not sides or any(type(n) is not int or n < 1 for n in sides):
    raise WeightsError(f"{what}={value!r}, expected a size in whole pixels.")
  if len(set(sides)) > 1:
    raise WeightsError(
      f"{what}={value!r} is rectangular; frames and patches are square here, "
      "so these weights cannot be imported."
    )
  return sides[0]


def check_grid(
  vision: VisionConfig, size: int | None, patch: int | None, where: str
) -> None:
  """Compares an encoder, sized by its position table, with what a config says.

  Raises:
    WeightsError: if they contradict.
  """
  for what, told, have in (
    ("image size", size, vision.image_size),
    ("patch size", patch, vision.patch_size),
  ):
    if told is not None and told != have:
      raise WeightsError(
        f"{where} and weights contradict: {what} {told}, the position table "
        f"and the patch kernel say {have}. Correct the file."
      )


def grid_guess(vision: VisionConfig) -> dict[str, str]:
  """What is taken where no config tells the shape of the grid."""
  side = vision.image_size // vision.patch_size
  return {
    "model.vision.image_size": (
      f"no config beside the weights tells the image size: the position table "
      f"of {side**2} patches is taken as a square of {side}x{side}, images of "
      f"{vision.image_size}x{vision.image_size}"
    )
  }


def heads_guess(vision: VisionConfig) -> dict[str, str]:
  """What is taken where nothing tells the number of heads."""
  return {
    "model.vision.num_heads": (
      f"nothing tells the number of heads: taken to be {vision.num_heads}, "
      f"{vision.width // vision.num_heads} wide each"
    )
  }


def vision_config(
  tensors: Tensors, file: pathlib.Path, kind: str, **options: Any
) -> VisionConfig:
  """The encoder of tensors under released names.

  Raises:
    WeightsError: if there is none.
  """
  try:
    found = mico_vision.config_from_tensors(tensors, num_heads=None, **options)
  except (LookupError, ValueError, ArithmeticError) as error:
    raise WeightsError(
      f"{file}: no {kind} encoder: {error} is missing or of another form."
    ) from error
  if found is None:
    raise WeightsError(
      f"{file}: no {kind} encoder in it (no position table by that name); see "
      "--from for other kinds of weights."
    )
  return found


def told_by_open_clip(
  vision: VisionConfig, about: Mapping[str, Any]
) -> tuple[VisionConfig, dict[str, str]]:
  """The encoder with what open_clip_config.json tells, and what is guessed.

  Args:
    vision: sized by its tensors.
    about: content of the file; {}: there is none.

  Raises:
    WeightsError: if it contradicts the tensors, or names parts that the encoder
      here lacks.
  """
  where = "open_clip_config.json"
  model = about.get("model_cfg") or {}
  inner = model.get("vision_cfg") if isinstance(model, dict) else None
  if not isinstance(inner or {}, dict) or not isinstance(model, dict):
    raise WeightsError(f"{where}: expected objects model_cfg and vision_cfg.")
  inner = inner or {}
  for key, known in OPEN_CLIP_FIXED.items():
    if inner.get(key, known[0]) not in known:
      raise WeightsError(
        f"{where}: vision_cfg.{key}={inner[key]!r}; this encoder has "
        f"{known[0]!r} only, so its outputs would differ."
      )
  size = square(inner.get("image_size"), f"{where}: image_size")
  patch = square(inner.get("patch_size"), f"{where}: patch_size")
  check_grid(vision, size, patch, where)
  guesses = {} if size else grid_guess(vision)
  head = inner.get("head_width")
  if head is None and "width" in inner and not inner.get("timm_model_name"):
    head = 64  # the default of open_clip, which its files leave out
  if head is not None and (type(head) is not int or not head > 0):
    raise WeightsError(
      f"{where}: head_width={head!r}, expected a whole number."
    )
  if head is None:
    head = HEAD_DIMS.get(vision.width, 64)
    vision = dataclasses.replace(vision, num_heads=max(vision.width // head, 1))
    return vision, guesses | heads_guess(vision)
  if vision.width % head:
    raise WeightsError(
      f"{where}: head_width={head} does not divide the width {vision.width}."
    )
  return dataclasses.replace(vision, num_heads=vision.width // head), guesses


def open_clip_mode(
  about: Mapping[str, Any], size: int
) -> tuple[str, tuple[str, ...]]:
  """The mode of `preprocess_cfg`, and notes on what it does otherwise.

  Args:
    about: content of open_clip_config.json; {}: there is none.
    size: of the encoder's images.

  Raises:
    WeightsError: for preprocessing that no mode here is close to.
  """
  where = "open_clip_config.json: preprocess_cfg"
  told = about.get("preprocess_cfg")
  if not isinstance(told, (dict, type(None))):
    raise WeightsError(f"{where}: expected a JSON object.")
  told = told or {}
  place = told.get("resize_mode") or "shortest"
  tables = {"shortest": CROPPED, "squash": SQUASHED}
  if place not in tables:
    raise WeightsError(
      f"{where}: resize_mode={place!r}; known here: {', '.join(tables)}. Set "
      "it to one of them to import the weights all the same."
    )
  given = square(told.get("size"), f"{where}: size")
  if given not in (None, size):
    raise WeightsError(
      f"{where}: size {given}, but the encoder takes images of {size} pixels."
    )
  mode = pixel_mode(told, where, tables[place]) or next(
    name for name, stats in tables[place].items() if stats == spatial.CLIP
  )
  return mode, resample_note(told.get("interpolation") or "bicubic", mode)


def resample_note(how: str, mode: str) -> tuple[str, ...]:
  """A note if frames were resized otherwise in training than they are here."""
  if how == "bilinear":
    return ()
  return (
    f"frames were resized by {how} interpolation in training; mode {mode} "
    "resizes bilinearly, antialiased",
  )


def own_mode(settings: Mapping[str, Any]) -> str:
  """The mode that an export of ours names in config.json; "": none known."""
  told = settings.get("preprocessing")
  mode = told.get("mode") if isinstance(told, dict) else None
  return mode if mode in list(MODALITIES["image"].modes) else ""


def pixel_mode(
  told: Any, where: str, modes: Mapping[str, spatial.Stats]
) -> str:
  """The mode whose pixels a file asks for; "" if it says nothing of them.

  Args:
    told: object with "mean" and "std" of values from 0 to 1; None: none.
    where: it stands, for messages.
    modes: mode -> its mean and standard deviation.

  Raises:
    WeightsError: if they are no numbers of three channels, or of no mode.
  """
  if not isinstance(told, (dict, type(None))):
    raise WeightsError(f"{where}: expected a JSON object.")
  given: dict[str, list[float]] = {}
  for key in ("mean", "std"):
    value = (told or {}).get(key)
    if value is None:
      continue
    numbers = isinstance(value, list) and {type(x) for x in value} <= {
      int,
      float,
    }
    if not numbers or len(value) != 3:
      raise WeightsError(f"{where}: {key}={value!r}, expected three numbers.")
    given[key] = value
  if not given:
    return ""
  for mode, (mean, std) in modes.items():
    known = {"mean": mean, "std": std}
    if all(
      abs(x - y) < 1e-4
      for key, value in given.items()
      for x, y in zip(value, known[key], strict=True)
    ):
      return mode
  said = ", ".join(f"{key} {value}" for key, value in given.items())
  raise WeightsError(
    f"{where}: no preprocessing with {said} here; known means: "
    f"{', '.join(str(list(mean)) for mean, _ in modes.values())}."
  )


def run_config(
  name: str, vision: VisionConfig, mode: str, **model: Any
) -> Config:
  """A run around one encoder; its other parts are this library's own.

  Args:
    name: of the run.
    vision: the encoder.
    mode: preprocessing of frames that the encoder was trained with.
    **model: further fields of the model.
  """
  return Config(
    name=name,
    model=ModelConfig(vision=vision, **model),
    data=DataConfig(
      inputs={
        "image": InputConfig(1, mode),
        "video": InputConfig(4, mode),
      },
      tokenizer=TokenizerConfig(),
    ),
  )
