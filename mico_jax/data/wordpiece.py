"""BERT's WordPiece tokenization with a vocabulary file.

Weights derived from BERT need exactly the ids of the official tokenizer. The
steps are cleaning, spacing of CJK characters, lower-casing, stripping of
accents (`Rules` selects among these three), splitting at punctuation, and
greedy longest-match pieces. Special tokens written in a text are recognised in
exact case. Decoding joins the pieces and removes the spaces before punctuation
and English contractions.

Source: BERT, arXiv:1810.04805, and recorded cases of the official tokenizer
(tests/golden).
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

UNK, CLS, SEP, PAD, MASK = "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"
SPECIAL = (UNK, SEP, PAD, CLS, MASK)
MAX_WORD = 100  # characters; longer words become [UNK]
RULES_FILE = "tokenizer_config.json"  # of transformers, beside a vocabulary


@dataclasses.dataclass(frozen=True)
class Rules:
  """Normalisation of texts before splitting; the defaults are BERT-uncased's.

  Attributes:
    lower_case: whether letters are lower-cased.
    strip_accents: whether accents are removed; None: as `lower_case`.
    split_cjk: whether each CJK character is a word.
  """

  lower_case: bool = True
  strip_accents: bool | None = None
  split_cjk: bool = True

  @property
  def strips_accents(self) -> bool:
    """Whether accents are removed."""
    if self.strip_accents is None:
      return self.lower_case
    return self.strip_accents


_SPECIAL_SPLIT = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")

# First and last code point of the CJK blocks: each character is a word.
_CJK = (
  (0x4E00, 0x9FFF),
  (0x3400, 0x4DBF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F),
  (0x2B820, 0x2CEAF),
  (0xF900, 0xFAFF),
  (0x2F800, 0x2FA1F),
)

# Applied in this order by `join`.
_TIDY = (
  (" .", "."),
  (" ?", "?"),
  (" !", "!"),
  (" ,", ","),
  (" ' ", "'"),
  (" n't", "n't"),
  (" 'm", "'m"),
  (" 's", "'s"),
  (" 've", "'ve"),
  (" 're", "'re"),
)


def _is_punctuation(char: str) -> bool:
  """Unicode punctuation, and every printable ASCII that is no letter/digit."""
  if char.isascii():
    return "!" <= char <= "~" and not char.isalnum()
  return unicodedata.category(char).startswith("P")


def _clean(char: str, split_cjk: bool) -> str:
  """Maps one character to itself, a space, a spaced character or nothing."""
  if char in " \t\n\r":
    return " "
  code = ord(char)
  category = unicodedata.category(char)
  if code in (0, 0xFFFD) or category.startswith("C"):
    return ""
  if category == "Zs":
    return " "
  if split_cjk and any(first <= code <= last for first, last in _CJK):
    return f" {char} "
  return char


def _strip_accents(word: str) -> str:
  decomposed = unicodedata.normalize("NFD", word)
  return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def _split_punctuation(word: str) -> str:
  """Surrounds every punctuation character with spaces."""
  return "".join(f" {c} " if _is_punctuation(c) else c for c in word)


def split_words(text: str, rules: Rules = Rules()) -> list[str]:
  """Splits text without special tokens into words.

  Each punctuation character is a word, and by default each CJK character;
  control characters and U+FFFD are removed.
  """
  if rules.lower_case:
    # Character by character, so that a final capital sigma maps as any other.
    text = "".join(c.lower() for c in text)
  text = "".join(_clean(c, rules.split_cjk) for c in text)
  words = unicodedata.normalize("NFC", text).split()
  if rules.lower_case:
    words = [word.lower() for word in words]
  if rules.strips_accents:
    words = [_strip_accents(word) for word in words]
  return " ".join(_split_punctuation(word) for word in words).split()


def split_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
  """Greedy longest-match pieces of a word; [UNK] if any part is unknown."""
  if len(word) > MAX_WORD:
    return [UNK]
  pieces = []
  start = 0
  while start < len(word):
    prefix = "##" if start else ""
    for end in range(len(word), start, -1):
      piece = prefix + word[start:end]
      if piece in vocabulary:
        pieces.append(piece)
        start = end
        break
    else:
      return [UNK]
  return pieces


def tokenize(
  text: str, vocabulary: dict[str, int], rules: Rules = Rules()
) -> list[str]:
  """All pieces of a text; special tokens written in it stay whole."""
  tokens = []
  for part in _SPECIAL_SPLIT.split(text):
    if part in SPECIAL:
      tokens.append(part)
      continue
    for word in split_words(part, rules):
      tokens.extend(split_pieces(word, vocabulary))
  return tokens


def join(tokens: Sequence[str]) -> str:
  """Text of a list of pieces, spaced as by the official tokenizer."""
  text = " ".join(tokens).replace(" ##", "").strip()
  for spaced, replacement in _TIDY:
    text = text.replace(spaced, replacement)
  return text


def read_vocabulary(content: bytes, name: str) -> dict[str, int]:
  """Reads a vocabulary file: piece -> id, the number of its line from 0.

  Args:
    content: UTF-8 content of the file.
    name: of the file, for error messages.

  Raises:
    ValueError: if the file is not UTF-8 or lacks a special token.
  """
  try:
    text = content.decode("utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{name}: not UTF-8 text (byte {error.start}); expected a WordPiece "
      "vocabulary with one piece per line."
    ) from None
  lines = text.split("\n")
  if lines and not lines[-1]:
    lines.pop()
  vocabulary = {line.rstrip("\r"): i for i, line in enumerate(lines)}
  missing = [token for token in SPECIAL if token not in vocabulary]
  if missing:
    raise ValueError(
      f"{name}: the vocabulary lacks {', '.join(missing)}; expected a BERT "
      "vocabulary with one piece per line."
    )
  return vocabulary


def is_cased(pieces: Iterable[str]) -> bool:
  """Whether a vocabulary has words with capital letters.

  Special tokens do not count, nor single characters: a vocabulary may begin
  with all of ASCII.
  """
  return any(
    len(piece) > 1 and piece != piece.lower()
    for piece in pieces
    if not (piece.startswith("[") and piece.endswith("]"))
  )


NAMES: Mapping[str, str] = {  # setting of transformers -> field of `Rules`
  "do_lower_case": "lower_case",
  "strip_accents": "strip_accents",
  "tokenize_chinese_chars": "split_cjk",
}
# Setting of transformers -> the only value that is supported here.
_FIXED: Mapping[str, Any] = {
  "do_basic_tokenize": True,
  "unk_token": UNK,
  "sep_token": SEP,
  "pad_token": PAD,
  "cls_token": CLS,
  "mask_token": MASK,
}


def read_rules(content: bytes, name: str) -> dict[str, bool | None]:
  """The fields of `Rules` that a tokenizer_config.json sets.

  Args:
    content: of the file.
    name: of the file, for error messages.

  Raises:
    ValueError: for another tokenizer than BERT's, and for malformed files.
  """
  try:
    settings = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{name}: not valid JSON ({error}).") from None
  if not isinstance(settings, dict):
    raise ValueError(f"{name}: expected a JSON object.")
  kind = settings.get("tokenizer_class")
  if kind not in (None, "BertTokenizer", "BertTokenizerFast"):
    raise ValueError(
      f"{name}: the vocabulary of a {kind}; only BertTokenizer is read here, "
      "give --vocab the vocab.txt of a BERT."
    )
  for key, want in _FIXED.items():
    value = settings.get(key, want)
    value = value.get("content") if isinstance(value, dict) else value
    if value not in (want, None):
      raise ValueError(f"{name}: {key}={value!r}, expected {want!r}.")
  added = settings.get("added_tokens_decoder") or {}
  if not isinstance(added, dict):
    raise ValueError(f"{name}: added_tokens_decoder is no JSON object.")
  check_added(added.values(), name)
  return check_rules(settings, name, NAMES)


def check_added(tokens: Iterable[Any], name: str) -> None:
  """Refuses tokens that were added to a vocabulary.

  They would have to be cut out of a text before it is split into words, which
  is supported for BERT's special tokens only.

  Args:
    tokens: texts, or objects with the text as "content".
    name: of their file, for error messages.

  Raises:
    ValueError: naming the first one that is not in `SPECIAL`.
  """
  for token in tokens:
    text = token.get("content") if isinstance(token, dict) else token
    if text not in SPECIAL:
      raise ValueError(
        f"{name}: the token {text!r:.80} was added to the vocabulary, which is "
        f"not read here; expected {', '.join(SPECIAL)} alone. Take it out of "
        "that file to import without it."
      )


def check_rules(
  settings: Mapping[str, Any], name: str, names: Mapping[str, str]
) -> dict[str, bool | None]:
  """The fields of `Rules` in a JSON object.

  Args:
    settings: the object.
    name: of its file, for error messages.
    names: name in the object -> name of the field.

  Raises:
    ValueError: for a value that is neither true nor false.
  """
  rules = {
    field: settings[key] for key, field in names.items() if key in settings
  }
  for key, field in names.items():
    value = rules.get(field, True)
    if not (isinstance(value, bool) or (value is None and "accents" in field)):
      raise ValueError(f"{name}: {key}={value!r}, expected true or false.")
  return rules
