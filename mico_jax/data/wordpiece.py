"""WordPiece as BERT-uncased does it, from a vocabulary file.

Needed wherever weights come from BERT: the ids must be those of the released
checkpoint, for any text. The steps are cleaning, spacing of CJK characters,
lower-casing, stripping of accents, splitting at punctuation, then greedy
longest-match pieces; special tokens written in the text are recognised with
exact case. Decoding joins the pieces and removes the spaces in front of
punctuation and English contractions.

Source: BERT, arXiv:1810.04805, and the behaviour of the released tokenizer on
recorded cases (tests/golden).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

UNK, CLS, SEP, PAD, MASK = "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"
SPECIAL = (UNK, SEP, PAD, CLS, MASK)
MAX_WORD = 100  # characters; longer words become [UNK]

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


def _clean(char: str) -> str:
  """Maps one character to itself, a space, a spaced character or nothing."""
  if char in " \t\n\r":
    return " "
  code = ord(char)
  category = unicodedata.category(char)
  if code in (0, 0xFFFD) or category.startswith("C"):
    return ""
  if category == "Zs":
    return " "
  if any(first <= code <= last for first, last in _CJK):
    return f" {char} "
  return char


def _strip_accents(word: str) -> str:
  decomposed = unicodedata.normalize("NFD", word)
  return "".join(c for c in decomposed if unicodedata.category(c) != "Mn")


def _split_punctuation(word: str) -> str:
  """Surrounds every punctuation character with spaces."""
  return "".join(f" {c} " if _is_punctuation(c) else c for c in word)


def split_words(text: str) -> list[str]:
  """Splits plain text (no special tokens) into lower-cased words.

  Punctuation and CJK characters are words of their own; accents, control
  characters and U+FFFD are gone.
  """
  # Character by character, so that a final capital sigma maps as any other.
  text = "".join(c.lower() for c in text)
  text = "".join(map(_clean, text))
  text = unicodedata.normalize("NFC", text)
  words = (_strip_accents(word.lower()) for word in text.split())
  return " ".join(_split_punctuation(word) for word in words).split()


def split_pieces(word: str, vocabulary: dict[str, int]) -> list[str]:
  """Greedy longest-match pieces of one word; [UNK] if any part is unknown."""
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


def tokenize(text: str, vocabulary: dict[str, int]) -> list[str]:
  """All pieces of a text; special tokens written in it stay whole."""
  tokens = []
  for part in _SPECIAL_SPLIT.split(text):
    if part in SPECIAL:
      tokens.append(part)
      continue
    for word in split_words(part):
      tokens.extend(split_pieces(word, vocabulary))
  return tokens


def join(tokens: Sequence[str]) -> str:
  """Text of a list of pieces, tidied as the released tokenizer does."""
  text = " ".join(tokens).replace(" ##", "").strip()
  for found, replacement in _TIDY:
    text = text.replace(found, replacement)
  return text


def read_vocabulary(content: bytes, name: str) -> dict[str, int]:
  """Reads a vocabulary file: one piece per line, the line number is the id.

  Args:
    content: of the file, UTF-8.
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
