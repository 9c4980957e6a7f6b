"""Reading WordPiece vocabularies: vocab.txt or tokenizer.json.

`tokenizer_config.json` beside the vocabulary, or the normaliser of
`tokenizer.json`, states whether letters are lower-cased, accents stripped and
CJK characters split; without either, a vocabulary with capital letters is
cased.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mico_jax.data import wordpiece
from mico_jax.data.tokenizer import WordPieceTokenizer
from mico_jax.interop.files.tensors import MALFORMED, WeightsError
from mico_jax.interop.importing import towers

TEXT, JSON = "vocab.txt", "tokenizer.json"
ADDED = "added_tokens.json"  # {token: id}, beside a vocabulary
_NORMALISER = {  # of tokenizers -> field of `wordpiece.Rules`
  "lowercase": "lower_case",
  "strip_accents": "strip_accents",
  "handle_chinese_chars": "split_cjk",
}


@dataclass(frozen=True)
class Vocabulary:
  """A vocabulary and how texts are normalised for it.

  Attributes:
    content: one piece per line, UTF-8.
    name: of its file, for messages.
    rules: stated fields of `wordpiece.Rules`.
  """

  content: bytes
  name: str
  rules: Mapping[str, bool | None] = field(default_factory=dict)

  def tokenizer(self) -> WordPieceTokenizer:
    """The tokenizer.

    Raises:
      ValueError: if it is no vocabulary of BERT.
    """
    return WordPieceTokenizer(self.content, self.name, self.rules)


def find(folder: pathlib.Path, *, text: bool = False) -> Vocabulary | None:
  """The vocabulary in a folder of weights; None: there is none.

  Args:
    folder: of the weights.
    text: whether the weights hold a text tower, whose tokenizer it must be;
      beside a mere encoder only a vocab.txt is read.

  Raises:
    WeightsError: if its tokenizer is no WordPiece of BERT, naming its kind.
  """
  for name in (TEXT, JSON) if text else (TEXT,):
    if (folder / name).is_file():
      vocabulary = read(folder / name)
      if vocabulary is not None:
        return vocabulary
  return None


def read(
  path: pathlib.Path, beside: pathlib.Path | None = None
) -> Vocabulary | None:
  """A vocab.txt or a tokenizer.json; None: a JSON file of this library's own.

  Args:
    path: of the file.
    beside: folder of the weights, whose tokenizer_config.json is read if there
      is none beside the vocabulary.

  Raises:
    WeightsError: if it is no WordPiece of BERT, naming its kind.
    OSError: if it cannot be read.
  """
  content = path.read_bytes()
  try:
    rules: dict[str, bool | None] = {}
    for folder in (beside, path.parent):
      file = None if folder is None else folder / wordpiece.RULES_FILE
      if file is not None and file.is_file():
        rules = wordpiece.read_rules(file.read_bytes(), str(file))
      extra = None if folder is None else folder / ADDED
      if extra is not None and extra.is_file():
        wordpiece.check_added(towers.read_json(extra), str(extra))
    if path.suffix != ".json":
      return Vocabulary(content, str(path), rules)
    return _from_json(content, str(path), rules)
  except ValueError as error:
    raise WeightsError(str(error)) from None


def _from_json(
  content: bytes, name: str, rules: dict[str, bool | None]
) -> Vocabulary | None:
  """The vocabulary of a tokenizer.json of the library tokenizers."""
  try:
    document = json.loads(content)
    if "kind" in document and "model" not in document:
      return None  # this library's own file beside a vocab.txt
    model = document["model"]
    kind = model.get("type", "?")
    if kind != "WordPiece":
      raise ValueError(
        f"{name}: a {kind} tokenizer; only WordPiece is read here, give "
        "--vocab the vocab.txt of a BERT."
      )
    _check_parts(document, name)
    pieces = _in_order(model["vocab"], name)
    stated = document.get("normalizer") or {}
    stated = wordpiece.check_rules(stated, name, _NORMALISER)
    for key in rules.keys() & stated.keys():
      if rules[key] != stated[key]:
        raise ValueError(
          f"{name} and {wordpiece.RULES_FILE} beside it contradict: {key} "
          f"{stated[key]} and {rules[key]}; correct one of them."
        )
    rules = rules | stated
  except WeightsError:
    raise
  except MALFORMED as error:
    if isinstance(error, ValueError) and name in str(error):
      raise
    raise ValueError(
      f"{name}: not a tokenizer of the library tokenizers "
      f"({type(error).__name__}: {error})."
    ) from None
  return Vocabulary(("\n".join(pieces) + "\n").encode(), name, rules)


def _check_parts(document: Mapping[str, Any], name: str) -> None:
  """Refuses parts that BERT's tokenizer does not have."""
  wordpiece.check_added(document.get("added_tokens") or (), name)
  model, split = document["model"], document.get("pre_tokenizer") or {}
  normal = document.get("normalizer") or {}
  for key, value, want in (
    ("normalizer", normal.get("type", "none"), "BertNormalizer"),
    ("pre_tokenizer", split.get("type", "none"), "BertPreTokenizer"),
    ("clean_text", normal.get("clean_text", True), True),
    ("unk_token", model.get("unk_token", wordpiece.UNK), wordpiece.UNK),
    ("prefix", model.get("continuing_subword_prefix", "##"), "##"),
    (
      "max_input_chars_per_word",
      model.get("max_input_chars_per_word", wordpiece.MAX_WORD),
      wordpiece.MAX_WORD,
    ),
  ):
    if value != want:
      raise ValueError(
        f"{name}: {key} {value!r}, expected {want!r} as BERT has it; give "
        "--vocab the vocab.txt of a BERT."
      )


def _in_order(vocabulary: Mapping[str, int], name: str) -> list[str]:
  """The pieces by id.

  Raises:
    ValueError: for ids that leave gaps, or pieces that no line can hold.
  """
  pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
  if [vocabulary[piece] for piece in pieces] != list(range(len(pieces))):
    raise ValueError(f"{name}: its ids are not 0, 1, 2, ... without a gap.")
  odd = next((p for p in pieces if "\n" in p or p.endswith("\r")), None)
  if odd is not None:
    raise ValueError(f"{name}: the piece {odd!r} holds a line break.")
  return pieces
