"""The table of formats of foreign weights.

To add a format, write a module with `read` (a file or folder to
`ForeignWeights`) and `table` (a config to its weight map), and add its line
here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mico_jax.config import ModelConfig
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import WeightsError
from mico_jax.interop.importing import (
  bert,
  clip,
  evaclip,
  exported,
  mico_folder,
  recognise,
  timm_vision,
  towers,
  transformers_vision,
)
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import mico
from mico_jax.interop.names.weight_map import Entry


@dataclass(frozen=True)
class Format:
  """A format of weights.

  Attributes:
    read: names the tensors of a file or folder and determines their config.
    table: weight map of a model.
    about: one line of help.
  """

  read: Callable[[pathlib.Path], ForeignWeights]
  table: Callable[[ModelConfig], Sequence[Entry]]
  about: str


FORMATS: dict[str, Format] = {
  "mico": Format(
    mico_folder.read,
    mico.entries,
    "an official folder: ckpt/model_step_*.pt and log/hps.json",
  ),
  "evaclip": Format(
    evaclip.read, evaclip.table, "EVA-CLIP, EVA-01 and EVA-02: the encoder"
  ),
  "clip": Format(
    clip.read, clip.table, "OpenAI's CLIP and open_clip: the encoder"
  ),
  "timm": Format(
    timm_vision.read,
    lambda config: list(timm_vision.table(config)),
    "vision transformers, Swin and ConvNeXt V2 of timm",
  ),
  "hf": Format(
    transformers_vision.read,
    transformers_vision.table,
    "folders of Hugging Face: CLIP, SigLIP, DINOv2, ViT, ConvNeXt V2, Swin",
  ),
  "bert": Format(bert.read, bert.table, "BERT of Hugging Face: the text tower"),
  "torch": Format(
    exported.read, exported.table, "a folder of mico-jax export --to torch"
  ),
}


def _named(path: pathlib.Path) -> str:
  """The format of the names of the tensors; "": unknown."""
  try:
    file = towers.weights_file(path)
    return recognise.layout_of(open_tensors(file))[1]
  except WeightsError:
    return ""  # the reader raises the proper error


def settle(form: str, path: pathlib.Path) -> str:
  """The format of weights, by the user's choice and the configs beside them.

  Folders of Hugging Face state their model, so "clip" or "timm" are accepted
  for them too, and "hf" for any folder with a config.

  Args:
    form: key of `FORMATS`, the user's choice.
    path: file or folder.

  Raises:
    WeightsError: for weights that cannot be read, naming model and advice.
  """
  if form in ("mico", "torch"):
    return form
  folder = path if path.is_dir() else path.parent
  settings = towers.read_json(folder / "config.json")
  kind = settings.get("model_type")
  if form == "bert":
    return form  # its reader names other models
  if form != "hf" and _named(path) not in ("", "hf"):
    return form  # such as open_clip's file in a repository that has both
  if isinstance(kind, str) and kind in recognise.LAYOUTS:
    reader = recognise.LAYOUTS[kind][0]
    if form in ("hf", reader) or reader == "hf":
      return reader
  if kind is not None:
    recognise.check_layout(settings, str(folder / "config.json"), form)
  if form != "hf":
    return form
  if (folder / clip.CONFIG).is_file():
    return "clip"
  if {"architecture", "pretrained_cfg"} & set(settings):
    return "timm"
  raise WeightsError(
    f"{folder}: no config.json with a model_type, so no folder of Hugging "
    "Face; name the kind of its weights with --from."
  )
