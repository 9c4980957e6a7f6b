"""Reading a folder that `mico-jax export --to torch` wrote.

Its config.json, preprocessing.json and tokenizer say all that using the model
needs; what a run alone knows (data, schedules) is not there, so the checkpoint
has the defaults. The Python files of the folder are not read.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mico_jax import config as config_lib
from mico_jax.config import Config, ConfigError, ModelConfig
from mico_jax.data.tokenizer import Tokenizer, tokenizer_from_files
from mico_jax.inference.prepare import enabled_keys
from mico_jax.interop.files.opening import INDEX, open_tensors
from mico_jax.interop.files.tensors import MALFORMED, WeightsError
from mico_jax.interop.importing import towers
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import torch_modules
from mico_jax.interop.names.weight_map import Entry
from mico_jax.modalities import MODALITIES
from mico_jax.models import build

FORMAT = "mico_jax torch 1"  # of config.json
_SAMPLING = ("sampling", "fps", "stride")


@dataclasses.dataclass(frozen=True)
class StoredTokenizer:
  """The tokenizer of an exported folder, whatever its kind.

  Attributes:
    files: name -> content, as a checkpoint has them.
  """

  files: Mapping[str, bytes]

  def tokenizer(self) -> Tokenizer:
    """The tokenizer.

    Raises:
      ValueError: if a file is missing or damaged.
    """
    return tokenizer_from_files(self.files)


def table(config: ModelConfig) -> list[Entry]:
  """The weight map of `modeling_mico.py`."""
  return list(torch_modules.entries(build(config)))


def read(path: pathlib.Path) -> ForeignWeights:
  """Reads the folder, or its file of weights.

  Raises:
    WeightsError: if it is no such folder, or has what a config cannot say.
  """
  file = towers.weights_file(path)
  if not file.name.endswith((".safetensors", INDEX)):
    raise WeightsError(f"{file}: expected the .safetensors of an export.")
  folder = file.parent
  settings = towers.read_json(folder / "config.json")
  if settings.get("format") != FORMAT:
    raise WeightsError(
      f"{folder}: config.json has no format {FORMAT!r}, so no folder of "
      "mico-jax export --to torch."
    )
  about = towers.read_json(folder / "preprocessing.json")
  try:
    config = config_lib.from_dict(_config(settings, about))
  except (ConfigError, *MALFORMED) as error:
    raise WeightsError(
      f"{folder}: config.json or preprocessing.json does not fit this version "
      f"of mico_jax: {type(error).__name__}: {error}"
    ) from error
  _check_inputs(config, about, folder)
  files = {
    one.name: one.read_bytes()
    for one in sorted((folder / "tokenizer").glob("*"))
    if one.is_file()
  }
  return ForeignWeights(
    file=file,
    tensors=open_tensors(file),
    config=config,
    vocabulary=StoredTokenizer(files),
    hint="Was it exported by another version?",
    notes=(
      "data, schedules and settings of training are in no export: defaults",
    ),
  )


def _config(
  settings: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
  """The config of the checkpoint, as JSON types.

  Raises:
    ConfigError: for channels, which only sources of data name.
  """
  named = [k for k, one in about["inputs"].items() if one.get("channels")]
  if named:
    raise ConfigError(
      f"{', '.join(named)}: named channels are kept by sources of data; load "
      "the checkpoint instead of its export."
    )
  words = settings["tokenizer"]["kind"]
  generation = {
    k: v for k, v in settings["generation"].items() if k != "most_beams"
  }
  inputs = {
    key: {
      "frames": one["frames"],
      "mode": one["mode"],
      "eval_mode": one["mode"],
      **{name: one[name] for name in _SAMPLING if name in one},
    }
    for key, one in about["inputs"].items()
  }
  columns = {
    key: one["columns"]
    for key, one in about["inputs"].items()
    if "columns" in one
  }
  # A context takes the order of letters of the first group that has them.
  groups = [f"t{group}" for group in settings["groups"] if group != "t"]
  return {
    "name": settings["name"],
    "model": settings["model"],
    "generation": generation,
    "data": {
      "audio": about["audio"],
      "max_pixels": about["max_pixels"],
      "inputs": inputs,
      "columns": columns,
      "tokenizer": {"kind": words, "max_length": _lengths(settings)},
    },
    "tasks": {"exported": {"objectives": {"contrastive": groups}}},
  }


def _lengths(settings: Mapping[str, Any]) -> dict[str, int]:
  """Tokens of a text by its kind."""
  return {
    kind: about["max_length"]
    for key, about in settings["modalities"].items()
    if "max_length" in about
    for kind in MODALITIES[key].text_kinds
  }


def _check_inputs(
  config: Config, about: Mapping[str, Any], folder: pathlib.Path
) -> None:
  """Compares what preprocessing.json says with the model, and its units.

  Raises:
    WeightsError: for an input that it leaves out, another unit, or an unknown
      mode.
  """
  missing = [
    key
    for key in enabled_keys(config)
    if MODALITIES[key].kind == "knowledge" and key not in about["inputs"]
  ]
  if missing:
    raise WeightsError(
      f"{folder}: preprocessing.json says nothing of {', '.join(missing)}; "
      "export the checkpoint again."
    )
  for key, one in about["inputs"].items():
    try:
      unit = MODALITIES[key].mode(config.data.inputs[key].mode).unit
    except (KeyError, ValueError) as error:
      raise WeightsError(f"{folder}: input {key}: {error}") from error
    if unit != one.get("unit", ""):
      raise WeightsError(
        f"{folder}: {key} in {one.get('unit')!r}, but its mode {one['mode']!r} "
        f"has {unit!r} in this version of mico_jax."
      )
