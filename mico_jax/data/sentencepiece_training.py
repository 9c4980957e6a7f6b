"""Training of small SentencePiece models, and of the one shipped for OmniWorld.

    python -m mico_jax.data.sentencepiece_training    # rewrites the asset

The model is a unigram model in which each frequent word becomes one piece. The
trainer takes candidate pieces from substrings that repeat before different
characters, so a word that always precedes the same character would be cut into
letters; `_with_words` prevents that. The trainer's own case-folding table has
240 KB; `_folding_rules` has about 4 KB.

Source: SentencePiece, arXiv:1808.06226; unigram model, arXiv:1804.10959.
"""

from __future__ import annotations

import io
import pathlib
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from typing import Any

OMNIWORLD_SCENES = 4096  # whose texts train the shipped model
OMNIWORLD_VOCAB = 512
_PATH_LENGTH = 200  # characters
_WORD_WEIGHT = 16  # enough that a rare word is kept whole
_LAST_FOLDED = 0x24F  # Latin letters with their extensions
# Every letter, digit and mark of plain English has a piece of its own.
_PLAIN = "".join(chr(c) for c in range(33, 127) if not chr(c).isupper())
_SETTINGS: dict[str, Any] = {
  "model_type": "unigram",
  "hard_vocab_limit": False,
  "character_coverage": 1.0,
  "required_chars": _PLAIN,
  "byte_fallback": True,
  "normalization_rule_name": "user_defined",
  "split_digits": True,
  "num_threads": 1,
  "shuffle_input_sentence": False,
  "input_sentence_size": 0,
  "max_sentence_length": 1 << 16,
  "pad_id": 0,
  "unk_id": 1,
  "bos_id": 2,
  "eos_id": 3,
  "pad_piece": "[PAD]",
  "unk_piece": "[UNK]",
  "bos_piece": "[CLS]",
  "eos_piece": "[SEP]",
  "control_symbols": ["[MASK]"],
  "minloglevel": 3,
}


def _fold(char: str) -> str:
  """A character, case-folded and in compatibility form (NFKC)."""
  folded = unicodedata.normalize("NFKC", char).casefold()
  return unicodedata.normalize("NFKC", folded)


def _folding_rules() -> str:
  """Normalisation rules of the trainer: one character to its folded form.

  Spaces and line breaks become a space; the curly quotes become straight.
  """
  rules = {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}
  rules |= {c: " " for c in "\t\n\r\u00a0\u2009\u202f\u3000"}
  for code in range(0x21, _LAST_FOLDED + 1):
    folded = _fold(chr(code)).strip()
    # Combining marks and empty results keep their character.
    if folded and folded != chr(code):
      rules.setdefault(chr(code), folded)
  return "".join(
    f"{ord(source):X}\t{' '.join(f'{ord(c):X}' for c in target)}\n"
    for source, target in sorted(rules.items())
  )


def _with_words(sentences: list[str]) -> list[str]:
  """Adds sentences of each word twice, which makes it a candidate piece."""
  words = {w for s in sentences for w in re.findall(r"\w+", s)}
  doubled = [f"{word} {word}" for word in sorted(words)]
  return sentences + _WORD_WEIGHT * doubled


def train_sentencepiece(
  sentences: Iterable[str], vocab_size: int = 512
) -> bytes:
  """Trains a small unigram model; equal sentences give equal bytes.

  One thread, no sampling, sentences sorted and unique. Text is case-folded, and
  characters that no piece covers fall back to bytes, so that any text encodes.

  Args:
    sentences: texts; empty ones are ignored.
    vocab_size: most ids, including the 5 special and 256 byte pieces; short
      texts give fewer.

  Returns:
    The serialised model with [PAD], [UNK], [CLS], [SEP], [MASK] at 0 to 4.

  Raises:
    ValueError: if there is no text, or it has too many different characters
      for `vocab_size`.
  """
  import sentencepiece

  unique = {" ".join(map(_fold, s.split())) for s in sentences}
  ordered = sorted(unique - {""})
  if not ordered:
    raise ValueError(
      "no text to train a tokenizer on: every caption is empty; name a model "
      "in data.tokenizer.path or check the captions of the source."
    )
  model = io.BytesIO()
  with tempfile.TemporaryDirectory() as folder:
    # The model stores this path: a fixed length lets it be overwritten below.
    name = "folding.tsv".rjust(_PATH_LENGTH - len(folder), "/")
    rules = pathlib.Path(folder + name)
    rules.write_text(_folding_rules(), encoding="utf-8")
    try:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_with_words(ordered)),
        model_writer=model,
        vocab_size=vocab_size,
        normalization_rule_tsv=folder + name,
        **_SETTINGS,
      )
    except RuntimeError as error:
      reason = " ".join(str(error).split())
      raise ValueError(
        f"cannot train a tokenizer with {vocab_size=} on {len(ordered)} "
        f"texts: {reason} Set a larger data.tokenizer.vocab_size."
      ) from None
  path = (folder + name).encode()
  return model.getvalue().replace(path, b"folding".ljust(len(path)))


def omniworld_sentences(num_scenes: int = OMNIWORLD_SCENES) -> list[str]:
  """Captions, questions and answers of the first scenes, and all words.

  Args:
    num_scenes: number of scenes.
  """
  from mico_jax import world

  source = world.World()
  sentences = [f"{word} {word}" for word in world.vocabulary()]
  for index in range(num_scenes):
    language = source.language(source.scene(index), index)
    for texts in language.captions.values():
      sentences += texts
    for question, answer, _ in language.questions:
      sentences += (question, answer)
  return sentences


def train_omniworld() -> bytes:
  """Trains the model shipped for OmniWorld on the texts of its scenes."""
  return train_sentencepiece(omniworld_sentences(), OMNIWORLD_VOCAB)


def main() -> None:
  """Rewrites the shipped model."""
  path = pathlib.Path(__file__).parent / "assets" / "omniworld_v1.model"
  path.parent.mkdir(exist_ok=True)
  model = train_omniworld()
  path.write_bytes(model)
  print(f"wrote {path} ({len(model)} bytes)")


if __name__ == "__main__":
  main()
