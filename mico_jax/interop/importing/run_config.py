"""Config and tokenizer of an import, from the weights or a base checkpoint."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from mico_jax import config as config_lib
from mico_jax.checkpoint import restore
from mico_jax.config import Config, ConfigError, InputConfig
from mico_jax.data.tokenizer import (
  Tokenizer,
  make_tokenizer,
  tokenizer_from_files,
)
from mico_jax.interop.importing import vocabulary as vocabularies
from mico_jax.interop.importing.exported import StoredTokenizer
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.modalities import MODALITIES

SHIPPED = "omniworld"  # tokenizer of a freshly initialised text tower
PUBLIC_VOCABULARY = (
  "https://huggingface.co/google-bert/bert-base-uncased/blob/main/vocab.txt"
)


def run_config(
  source: ForeignWeights,
  base: restore.Checkpoint | None,
  overrides: Sequence[str],
  vocabulary: str | pathlib.Path | None = None,
) -> Config:
  """The source's config, completed by the base's for parts the source lacks.

  An imported encoder keeps its preprocessing, a text tower its tokenizer.

  Args:
    source: of the import.
    base: checkpoint with the other parts; None: the source's config alone.
    overrides: changes of the config, such as "model.vision.image_size=384".
    vocabulary: path that the user gives.

  Raises:
    ConfigError: for an override that does not fit.
  """
  config = source.config
  if is_fresh(source, base) and not (source.vocabulary or vocabulary):
    words = dataclasses.replace(config.data.tokenizer, kind=SHIPPED)
    pad = make_tokenizer(words).info.pad
    text = dataclasses.replace(config.model.text, pad_id=pad)
    config = dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, text=text),
      data=dataclasses.replace(config.data, tokenizer=words),
    )
  if base is not None:
    model, data = base.config.model, base.config.data
    if source.holds("vision"):
      model = dataclasses.replace(model, vision=config.model.vision)
      inputs = _inputs(data.inputs, config.data.inputs)
      data = dataclasses.replace(data, inputs=inputs)
    if source.holds("text"):
      model = dataclasses.replace(model, text=config.model.text)
      words = dataclasses.replace(
        data.tokenizer, kind=config.data.tokenizer.kind, path=""
      )
      data = dataclasses.replace(data, tokenizer=words)
    config = dataclasses.replace(
      base.config, name=config.name, model=model, data=data
    )
  return config_lib.override(config, overrides)


def is_fresh(source: ForeignWeights, base: restore.Checkpoint | None) -> bool:
  """Whether the text tower is freshly initialised."""
  return base is None and not source.holds("text")


def text_note(config: Config) -> str:
  """The note about a freshly initialised text tower."""
  return (
    "the weights hold no text tower, so it is fresh (random), with the "
    f"tokenizer {config.data.tokenizer.kind!r}: train it, or give --onto a "
    "checkpoint that has one (--vocab: the vocabulary of a BERT)"
  )


def fit_lengths(config: Config) -> tuple[Config, list[str]]:
  """Limits the lengths of texts to the position table; adds a note.

  Positions beyond the table would give outputs that are not finite.
  """
  tokens, limit = config.data.tokenizer, config.model.text.max_positions
  long = {key: n for key, n in tokens.max_length.items() if n > limit}
  if not long:
    return config, []
  lengths = {key: min(n, limit) for key, n in tokens.max_length.items()}
  tokens = dataclasses.replace(tokens, max_length=lengths)
  data = dataclasses.replace(config.data, tokenizer=tokens)
  return dataclasses.replace(config, data=data), [
    f"the text tower has {limit} positions: data.tokenizer.max_length of "
    f"{', '.join(long)} is {limit}, not {', '.join(map(str, long.values()))}"
  ]


def _inputs(
  base: Mapping[str, InputConfig], imported: Mapping[str, InputConfig]
) -> dict[str, InputConfig]:
  """The base's inputs with the preprocessing of the imported encoder."""
  inputs = dict(base)
  for key, theirs in imported.items():
    ours = base.get(key, MODALITIES[key].default_input)
    inputs[key] = dataclasses.replace(
      ours, mode=theirs.mode, eval_mode=theirs.eval_mode
    )
  return inputs


def tokenizer(
  source: ForeignWeights,
  config: Config,
  path: str | pathlib.Path | None,
  base: restore.Checkpoint | None,
) -> Tokenizer:
  """The tokenizer to copy into the checkpoint.

  Args:
    source: of the import.
    config: of the resulting checkpoint.
    path: vocab.txt or tokenizer.json; None: the one beside the weights, the
      base's, or the shipped one for a fresh text tower.
    base: checkpoint with the text tower, if the source has none.

  Raises:
    ConfigError: if there is no vocabulary, naming the public file.
  """
  if path is None and base is not None and not source.holds("text"):
    return tokenizer_from_files(base.tokenizer_files())
  shipped = config.data.tokenizer.kind != "wordpiece" and path is None
  if shipped and not isinstance(source.vocabulary, StoredTokenizer):
    return make_tokenizer(config.data.tokenizer)
  if path is None and source.vocabulary is None:
    raise ConfigError(
      "the text tower needs its vocabulary: give --vocab vocab.txt, the "
      f"{config.model.text.vocab_size} lines of bert-base-uncased for official "
      f"weights ({PUBLIC_VOCABULARY})."
    )
  words = source.vocabulary
  try:
    if path is not None:
      words = vocabularies.read(pathlib.Path(path), source.file.parent)
    if words is None:
      raise ConfigError(f"--vocab {path}: holds no vocabulary; give vocab.txt.")
    return words.tokenizer()
  except OSError as error:
    raise ConfigError(
      f"--vocab {path}: {error.strerror or type(error).__name__}; expected "
      f"the vocab.txt of bert-base-uncased ({PUBLIC_VOCABULARY})."
    ) from error
  except ValueError as error:
    raise ConfigError(str(error)) from error


def check_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
  """Compares a tokenizer with the text tower.

  Raises:
    ConfigError: if it has more pieces, or another padding id.
  """
  have, rows = tokenizer.info.vocab_size, config.model.text.vocab_size
  if have > rows:
    raise ConfigError(
      f"the vocabulary has {have} pieces, the weights have embeddings for "
      f"{rows}: it is that of another model. Give the one of these weights."
    )
  if tokenizer.info.pad != config.model.text.pad_id:
    raise ConfigError(
      f"the vocabulary's [PAD] is id {tokenizer.info.pad}, the model's "
      f"{config.model.text.pad_id}; set --config.model.text.pad_id."
    )
