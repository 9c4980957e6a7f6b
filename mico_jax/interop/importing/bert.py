"""Reading BERT of Hugging Face, with or without cross-attention and decoder.

Cross-attention that the file lacks is reported as new. Pooler and next-sentence
head are kept beside the parameters.

Source: https://github.com/huggingface/transformers (names of the weights; the
older `gamma` and `beta` of LayerNorm included).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mico_jax.config import Config, ModelConfig, TextConfig
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import Tensors, WeightsError, renamed
from mico_jax.interop.importing import recognise, towers, vocabulary
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import mico
from mico_jax.interop.names.weight_map import Entry
from mico_jax.models import PRESETS

IGNORED = {
  r"\.position_ids$": "buffer, computed here",
  r"\.bert\.pooler\.": "the model does not use it",
  r"\.cls\.seq_relationship\.": "the model does not use it",
}
OPTIONAL = (
  r"^text/blocks/cross_(attn|norm)/",
  r"^text/lm_head/",
)
# Field of config.json -> the values that this model computes.
FIXED: Mapping[str, tuple[Any, ...]] = {
  "hidden_act": ("gelu", "gelu_python"),
  "position_embedding_type": ("absolute",),
  "pruned_heads": ({}, None),
}
TOKEN_TYPES = 2  # of BERT; RoBERTa has one


def rename(name: str) -> str:
  """The official name of a tensor of BERT."""
  name = recognise.without_prefix(name)
  name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
  name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
  if not name.startswith(("bert.", "cls.")):
    name = f"bert.{name}"
  return mico.BERT + name


def table(config: ModelConfig) -> list[Entry]:
  """The weight map of the text tower, by official names."""
  return mico.entries(config, ["text"])


def read(path: pathlib.Path) -> ForeignWeights:
  """Reads a file, or a folder with one and its config.json and vocab.txt.

  Raises:
    WeightsError: if it holds no BERT that the model computes, or config.json
      contradicts it.
  """
  file = towers.weights_file(path)
  tensors = renamed(open_tensors(file), rename)
  settings = towers.read_json(file.parent / "config.json")
  recognise.check_layout(settings, str(file.parent / "config.json"), "bert")
  if mico.BERT + "bert.embeddings.word_embeddings.weight" not in tensors:
    raise WeightsError(
      f"{file}: no BERT (no embeddings.word_embeddings.weight); "
      f"{recognise.other_layout(tensors)}"
    )
  text = _config(tensors, settings, file)
  guesses = {}
  if settings.get("num_attention_heads") is None:
    guesses["model.text.num_heads"] = (
      "no num_attention_heads in a config.json beside the weights: taken to be "
      f"{text.num_heads}, as wide as BERT's"
    )
  notes = []
  if settings.get("is_decoder"):
    notes.append(
      "config.json says is_decoder, a model that reads from left to right; the "
      "text tower here encodes in both directions, and from left to right in "
      "captioning alone"
    )
  base = PRESETS["mico_b16"]
  return ForeignWeights(
    file=file,
    tensors=tensors,
    config=Config(
      name=file.parent.name, model=dataclasses.replace(base, text=text)
    ),
    parts=("text",),
    ignored=IGNORED,
    optional=OPTIONAL,
    ties=mico.TIED,
    vocabulary=vocabulary.find(file.parent, text=True),
    hint="Is it a BERT?",
    guesses=guesses,
    notes=tuple(notes),
  )


def _config(
  tensors: Tensors, settings: Mapping[str, Any], file: pathlib.Path
) -> TextConfig:
  """The text tower, from config.json and the shapes of the tensors.

  Raises:
    WeightsError: for a BERT that the model does not compute, or if the two
      contradict.
  """
  for name, values in FIXED.items():
    if settings.get(name, values[0]) not in values:
      raise WeightsError(
        f"config.json: {name}={settings[name]!r}, this model has {values[0]!r} "
        "only."
      )
  heads = settings.get("num_attention_heads")
  if heads is not None and (type(heads) is not int or heads < 1):
    raise WeightsError(
      f"config.json: num_attention_heads={heads!r}, expected a positive whole "
      "number."
    )
  try:
    sizes = mico.config_from_official(tensors, text_heads=heads).text
  except (LookupError, ValueError, ArithmeticError) as error:
    raise WeightsError(
      f"{file}: no BERT: {error} is missing or of another form."
    ) from error
  text = dataclasses.replace(
    sizes,
    norm_eps=settings.get("layer_norm_eps", sizes.norm_eps),
    pad_id=settings.get("pad_token_id", sizes.pad_id),
    dropout=settings.get("hidden_dropout_prob", sizes.dropout),
  )
  _check(text, settings)
  if "model_type" not in settings and text.type_vocab_size != TOKEN_TYPES:
    raise WeightsError(
      f"{file}: {text.type_vocab_size} row(s) of token types, BERT has "
      f"{TOKEN_TYPES}: is it a RoBERTa? Put the config.json of the weights "
      "beside them."
    )
  return text


def _check(text: TextConfig, settings: Mapping[str, Any]) -> None:
  """Compares config.json with the weights."""
  towers.check_stated(
    "config.json",
    settings,
    {
      "hidden_size": text.width,
      "num_hidden_layers": text.depth,
      "intermediate_size": text.mlp_dim,
      "vocab_size": text.vocab_size,
      "max_position_embeddings": text.max_positions,
      "type_vocab_size": text.type_vocab_size,
    },
  )
  if text.width % text.num_heads:
    raise WeightsError(
      f"config.json: num_attention_heads={text.num_heads} does not divide the "
      f"weights' hidden_size {text.width}."
    )
