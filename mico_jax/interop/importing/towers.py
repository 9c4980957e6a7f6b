"""Helpers of the readers of single towers: files, sizes, pixels, configs."""

from __future__ import annotations

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
from mico_jax.interop.files.opening import INDEX
from mico_jax.interop.files.tensors import Tensors, WeightsError
from mico_jax.interop.importing import recognise
from mico_jax.interop.names import mico_vision
from mico_jax.modalities import MODALITIES, spatial

# Mode -> mean and deviation of its pixels: of whole frames resized to a square,
# and of square center crops.
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
    WeightsError: if a folder holds no such file, or several.
  """
  if path.is_file():
    return path
  files = sorted(p for p in path.iterdir() if p.is_file())
  index = [p for p in files if p.name.endswith(INDEX)]
  if index:
    return index[0]
  for suffix in SUFFIXES:
    matches = [p for p in files if p.suffix == suffix]
    if len(matches) == 1:
      return matches[0]
    if matches:
      names = ", ".join(p.name for p in matches[:8])
      raise WeightsError(f"{path}: holds several files ({names}); name one.")
  raise WeightsError(
    f"{path}: no file of weights in it ({', '.join(SUFFIXES)})."
  )


def read_json(file: pathlib.Path) -> Mapping[str, Any]:
  """The JSON object of a file beside the weights; {}: there is no such file.

  Raises:
    WeightsError: if it is not valid JSON, or no object.
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


def square(value: Any, what: str) -> int | None:
  """The side of a square given as N, [N, N] or [channels, N, N].

  Args:
    value: of a config; None: it states no size.
    what: name and place of the value, for messages.

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


def side(value: Any, what: str) -> int:
  """As `square`, of a size that must be stated."""
  length = square(value, what)
  if length is None:
    raise WeightsError(f"{what}={value!r}, expected a size in whole pixels.")
  return length


def check_grid(
  vision: VisionConfig, size: int | None, patch: int | None, where: str
) -> None:
  """Compares the sizes of an encoder with those of a config.

  Args:
    vision: encoder, sized by its position table and patch kernel.
    size: pixels of an image in the config; None: not stated.
    patch: pixels of a patch in the config; None: not stated.
    where: name of the config, for messages.

  Raises:
    WeightsError: if they contradict.
  """
  for what, stated, have in (
    ("image size", size, vision.image_size),
    ("patch size", patch, vision.patch_size),
  ):
    if stated is not None and stated != have:
      raise WeightsError(
        f"{where} and weights contradict: {what} {stated}, the position table "
        f"and the patch kernel say {have}. Correct the file."
      )


def check_stated(
  where: str, stated: Mapping[str, Any], have: Mapping[str, Any]
) -> None:
  """Compares the sizes of a config with those of the weights.

  A file that lacks its last layers has the shapes of a smaller model; only the
  config beside it reveals that.

  Args:
    where: name of the config, for messages.
    stated: fields of the config; absent ones and None are not compared.
    have: values of fields, from the weights.

  Raises:
    WeightsError: naming the first field that differs.
  """
  for key, value in have.items():
    theirs = stated.get(key)
    if theirs is None:
      continue
    plain = list(value) if isinstance(value, tuple) else value
    if theirs != plain or isinstance(theirs, bool) != isinstance(plain, bool):
      raise WeightsError(
        f"{where} and weights contradict: {key} {theirs!r}, the weights have "
        f"{plain!r}. Is the file whole?"
      )


def check_hidden(
  stated: Mapping[str, Any], vision: VisionConfig, where: str
) -> None:
  """Compares `mlp_ratio` of a config with the weights.

  Args:
    stated: fields of the config.
    vision: the encoder of the weights.
    where: name of the config, for messages.

  Raises:
    WeightsError: if it is no number, or contradicts the weights.
  """
  ratio = stated.get("mlp_ratio")
  if ratio is None:
    return
  if type(ratio) not in (int, float) or not 0 < ratio < 1e6:
    raise WeightsError(f"{where}: mlp_ratio={ratio!r}, expected a number.")
  hidden = int(vision.width * ratio)
  if abs(hidden - vision.mlp_dim) > 1:  # A ratio may have few digits.
    raise WeightsError(
      f"{where} and weights contradict: mlp_ratio {ratio} is {hidden} "
      f"channels, the weights have {vision.mlp_dim}."
    )


def grid_guess(vision: VisionConfig) -> dict[str, str]:
  """The assumption made where no config states the shape of the grid."""
  side = vision.image_size // vision.patch_size
  return {
    "model.vision.image_size": (
      f"no config beside the weights states the image size: the position table "
      f"of {side**2} patches is taken as a square of {side}x{side}, images of "
      f"{vision.image_size}x{vision.image_size}"
    )
  }


def heads_guess(vision: VisionConfig) -> dict[str, str]:
  """The assumption made where no file states the number of heads."""
  return {
    "model.vision.num_heads": (
      f"no file states the number of heads: taken to be {vision.num_heads}, "
      f"{vision.width // vision.num_heads} wide each"
    )
  }


def vision_config(
  tensors: Tensors, file: pathlib.Path, kind: str, **options: Any
) -> VisionConfig:
  """The config of the encoder of tensors under official names.

  Args:
    tensors: by official name.
    file: of the tensors, for messages.
    kind: of the encoder, for messages.
    **options: fields that no tensor determines.

  Raises:
    WeightsError: if there is no such encoder.
  """
  try:
    config = mico_vision.config_from_tensors(tensors, num_heads=None, **options)
  except (LookupError, ValueError, ArithmeticError) as error:
    raise WeightsError(
      f"{file}: no {kind} encoder: {error} is missing or of another form; "
      f"{recognise.other_layout(tensors)}"
    ) from error
  if config is None:
    raise WeightsError(
      f"{file}: no {kind} encoder in it (no position table by that name); "
      f"{recognise.other_layout(tensors)}"
    )
  return config


def resample_note(how: str, mode: str) -> tuple[str, ...]:
  """A note if frames are resized differently here than in training."""
  if how == "bilinear":
    return ()
  return (
    f"frames were resized by {how} interpolation in training; mode {mode} "
    "resizes bilinearly, antialiased",
  )


def exported_mode(settings: Mapping[str, Any]) -> str:
  """The mode that an export of ours states in config.json; "": none."""
  stated = settings.get("preprocessing")
  mode = stated.get("mode") if isinstance(stated, dict) else None
  return mode if mode in list(MODALITIES["image"].modes) else ""


def pixel_mode(
  stated: Any, where: str, modes: Mapping[str, spatial.Stats]
) -> str:
  """The mode with the pixel statistics of a file; "": it states none.

  Args:
    stated: object with "mean" and "std" of values in [0, 1]; None: none.
    where: name of the file, for messages.
    modes: mode -> its mean and standard deviation.

  Raises:
    WeightsError: if they are not three numbers each, one of them is missing, or
      no mode has them.
  """
  if not isinstance(stated, (dict, type(None))):
    raise WeightsError(f"{where}: expected a JSON object.")
  stats: dict[str, list[float]] = {}
  for key in ("mean", "std"):
    value = (stated or {}).get(key)
    if value is None:
      continue
    numbers = isinstance(value, list) and {type(x) for x in value} <= {
      int,
      float,
    }
    if not numbers or len(value) != 3:
      raise WeightsError(f"{where}: {key}={value!r}, expected three numbers.")
    stats[key] = value
  if not stats:
    return ""
  if len(stats) == 1:
    (name,) = stats
    other = "std" if name == "mean" else "mean"
    raise WeightsError(f"{where}: {name} without {other}; give both.")
  for mode, (mean, std) in modes.items():
    known = {"mean": mean, "std": std}
    if all(
      abs(x - y) < 1e-4
      for key, value in stats.items()
      for x, y in zip(value, known[key], strict=True)
    ):
      return mode
  listed = ", ".join(f"{name} {value}" for name, value in stats.items())
  raise WeightsError(
    f"{where}: no preprocessing with {listed} here; known means: "
    f"{', '.join(str(list(mean)) for mean, _ in modes.values())}."
  )


def run_config(
  name: str, vision: VisionConfig, mode: str, **model: Any
) -> Config:
  """A config with the given encoder and default other parts.

  Args:
    name: of the run.
    vision: the encoder.
    mode: preprocessing of frames in the encoder's training.
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
