"""Reading EVA-CLIP files: a whole model, or a bare encoder.

A whole one has `visual.*`, `text.*` and `logit_scale`. The position table is
resized bicubically, as the official MiCo code does with bare EVA-CLIP weights;
the text tower is kept beside the parameters.

Source: https://github.com/baaivision/EVA (names of the published files).
"""

from __future__ import annotations

import dataclasses
import pathlib

from mico_jax.config import ModelConfig
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import renamed
from mico_jax.interop.importing import (
  mico_folder,
  openclip_config,
  recognise,
  towers,
  vocabulary,
)
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import mico
from mico_jax.interop.names.mico_vision import VISUAL
from mico_jax.interop.names.weight_map import Entry

POST_NORM_WIDTH = 1792  # of EVA-02-E, which has post-norm blocks


def rename(name: str) -> str:
  """The official name of a tensor of EVA-CLIP."""
  name = recognise.without_prefix(name)
  if name.startswith(("visual.", "text.")) or name == "logit_scale":
    return f"vision_encoder.{name}"
  return VISUAL + name


def table(config: ModelConfig) -> list[Entry]:
  """The weight map of the encoder, by official names."""
  return mico.entries(config, ["vision"])


def read(path: pathlib.Path) -> ForeignWeights:
  """Reads a file, or a folder with one.

  Raises:
    WeightsError: if it holds no EVA encoder.
  """
  file = towers.weights_file(path)
  tensors = renamed(open_tensors(file), rename)
  vision = towers.vision_config(tensors, file, "EVA-CLIP")
  if vision.width == POST_NORM_WIDTH:
    vision = dataclasses.replace(vision, norm="post")
  about = towers.read_json(file.parent / openclip_config.CONFIG)
  vision, guesses = openclip_config.encoder_config(
    vision,
    about,
    heads_known=VISUAL + "rope.freqs_cos" in tensors,  # by its columns
  )
  mode, notes = "mico_train", ()
  if about.get("preprocess_cfg"):
    mode, notes = openclip_config.frame_mode(about, vision.image_size)
  return ForeignWeights(
    file=file,
    tensors=tensors,
    config=towers.run_config(file.stem, vision, mode),
    parts=("vision",),
    ignored=mico_folder.IGNORED,
    optional=(r"^vision/logit_scale$",),
    vocabulary=vocabulary.find(file.parent),
    hint="Is it an EVA-CLIP file?",
    positions="bicubic",
    notes=notes,
    guesses=guesses,
  )
