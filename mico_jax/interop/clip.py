"""OpenAI's CLIP and open_clip files: `visual.*` and a text tower beside it.

OpenAI's weights use QuickGELU, most of open_clip's the exact GELU, and no
tensor tells which: `open_clip_config.json` beside the weights does, else
QuickGELU is taken and noted. The published TorchScript archives are read
without running their code.

Source: https://github.com/openai/CLIP, https://github.com/mlfoundations/
open_clip (names of the published files).
"""

from __future__ import annotations

import dataclasses
import pathlib

from mico_jax.config import ModelConfig
from mico_jax.interop import mico, mico_folder, towers
from mico_jax.interop.entries import Entry
from mico_jax.interop.source import Source, find_vocabulary
from mico_jax.interop.tensors import WeightsError, open_tensors, renamed
from mico_jax.modalities import spatial

CONFIG = "open_clip_config.json"
VISION_CONFIG = "open_clip_vision.json"  # of an export of the encoder alone
MODES = {"crop_flip": spatial.CLIP}  # mode -> mean and deviation of the pixels
IGNORED = {
  **mico_folder.IGNORED,
  r"^vision_encoder\.(input_resolution|context_length|vocab_size)$": (
    "a size, told by the shapes"
  ),
  r"^vision_encoder\.logit_(scale|bias)$": "the model does not use it",
  r"^vision_encoder\.attn_mask$": "buffer, computed here",
}


def rename(name: str) -> str:
  """The released name of a tensor of CLIP."""
  return f"vision_encoder.{towers.without_prefix(name)}"


def table(config: ModelConfig) -> list[Entry]:
  """Where the encoder's parameters come from; either GELU has these names."""
  vision = dataclasses.replace(config.vision, mlp="quick_gelu")
  return mico.entries(dataclasses.replace(config, vision=vision), ["vision"])


def read(path: pathlib.Path) -> Source:
  """Reads a file, or a folder with one.

  Raises:
    WeightsError: if it holds no CLIP vision transformer, or one of pixels with
      other statistics than CLIP's.
  """
  file = towers.weights_file(path)
  tensors = renamed(open_tensors(file), rename)
  if "vision_encoder.visual.layer1.0.conv1.weight" in tensors:
    raise WeightsError(
      f"{file}: a CLIP of the ResNet kind; expected a vision transformer "
      "(ViT-B/16, ViT-L/14@336px, ...)."
    )
  vision = towers.vision_config(tensors, file, "CLIP")
  if not vision.pre_norm:
    raise WeightsError(
      f"{file}: its encoder has EVA's names; import it --from evaclip."
    )
  about = towers.read_json(file.parent / CONFIG) or towers.read_json(
    file.parent / VISION_CONFIG
  )
  settings, notes = about.get("model_cfg"), ()
  mode = towers.own_mode(towers.read_json(file.parent / "config.json"))
  if not mode:
    told = about.get("preprocess_cfg")
    mode = towers.pixel_mode(told, f"{CONFIG}: preprocess_cfg", MODES)
  inner = (settings or {}).get("vision_cfg") or {}
  head = inner.get("head_width") or towers.HEAD_DIMS.get(vision.width, 64)
  vision = dataclasses.replace(vision, num_heads=max(vision.width // head, 1))
  if settings is None:
    notes = (
      "taken for OpenAI's weights, with QuickGELU; for weights of open_clip "
      "without -quickgelu in the name add --config.model.vision.mlp=gelu",
    )
  else:
    kind = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    vision = dataclasses.replace(vision, mlp=kind)
    size = inner.get("image_size")
    if size not in (None, vision.image_size):
      raise WeightsError(
        f"{CONFIG} and weights contradict: image_size {size}, the position "
        f"table says {vision.image_size}."
      )
  return Source(
    file=file,
    tensors=tensors,
    config=towers.run_config(file.stem, vision, mode or "crop_flip"),
    parts=("vision",),
    ignored=IGNORED,
    optional=(r"^vision/logit_scale$",),
    vocabulary=find_vocabulary(file.parent),
    hint="Is it a CLIP with a vision transformer?",
    positions="bicubic",
    notes=notes,
  )
