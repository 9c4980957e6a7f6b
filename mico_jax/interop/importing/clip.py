"""Reading OpenAI's CLIP and open_clip files: `visual.*` and a text tower.

OpenAI's weights use QuickGELU, most of open_clip's the exact GELU, which no
tensor determines: `open_clip_config.json` beside the weights does, else
QuickGELU is assumed and noted. The published TorchScript archives are read
without running their code.

Source: https://github.com/openai/CLIP, https://github.com/mlfoundations/
open_clip (names of the published files).
"""

from __future__ import annotations

import dataclasses
import pathlib

from mico_jax.config import ModelConfig
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import WeightsError, renamed
from mico_jax.interop.importing import (
  mico_folder,
  openclip_config,
  recognise,
  towers,
  vocabulary,
)
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import mico
from mico_jax.interop.names.weight_map import Entry

CONFIG = openclip_config.CONFIG
VISION_CONFIG = "open_clip_vision.json"  # in an export of the encoder alone
IGNORED = {
  **mico_folder.IGNORED,
  r"^vision_encoder\.(input_resolution|context_length|vocab_size)$": (
    "a size, known from the shapes"
  ),
  r"^vision_encoder\.logit_(scale|bias)$": "the model does not use it",
  r"^vision_encoder\.attn_mask$": "buffer, computed here",
}


def rename(name: str) -> str:
  """The official name of a tensor of CLIP."""
  return f"vision_encoder.{recognise.without_prefix(name)}"


def table(config: ModelConfig) -> list[Entry]:
  """The weight map of the encoder; both GELUs have these names."""
  vision = dataclasses.replace(config.vision, mlp="quick_gelu")
  return mico.entries(dataclasses.replace(config, vision=vision), ["vision"])


def read(path: pathlib.Path) -> ForeignWeights:
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
  notes: tuple[str, ...] = ()
  mode = towers.exported_mode(towers.read_json(file.parent / "config.json"))
  if not mode:
    mode, notes = openclip_config.frame_mode(about, vision.image_size)
  vision, guesses = openclip_config.encoder_config(vision, about)
  settings = about.get("model_cfg")  # an object, as `encoder_config` verified
  if settings is None:
    guesses["model.vision.mlp"] = (
      "taken for OpenAI's weights, with QuickGELU; weights of open_clip "
      "without -quickgelu in the name have mlp=gelu"
    )
  else:
    quick = (settings or {}).get("quick_gelu") or False
    if type(quick) is not bool:
      raise WeightsError(
        f"{CONFIG}: quick_gelu={quick!r}, expected true or false."
      )
    kind = "quick_gelu" if quick else "gelu"
    vision = dataclasses.replace(vision, mlp=kind)
  return ForeignWeights(
    file=file,
    tensors=tensors,
    config=towers.run_config(file.stem, vision, mode),
    parts=("vision",),
    ignored=IGNORED,
    optional=(r"^vision/logit_scale$",),
    vocabulary=vocabulary.find(file.parent),
    hint="Is it a CLIP with a vision transformer?",
    positions="bicubic",
    notes=notes,
    guesses=guesses,
  )
