"""Our tokenizers as the files that transformers loads.

`tokenizer.json` is written in the form of the tokenizers library without using
that library. Its steps are chosen to give our own ids: the character rules of a
SentencePiece model become plain replacements, since the library's own step for
them drops combining marks.

Source: https://github.com/huggingface/tokenizers (form of the file);
https://github.com/google/sentencepiece (form of the models, order of the steps
of its normaliser).
"""

from __future__ import annotations

import functools
import json
import string
import struct
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.data import wordpiece
from mico_jax.data.tokenizer import (
  SentencePieceTokenizer,
  Tokenizer,
  WordPieceTokenizer,
)

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
SPACE = "\u2581"  # how SentencePiece writes a space
UNIGRAM, NORMAL, UNKNOWN, USER_DEFINED = 1, 1, 2, 4  # numbers of its format
# Score of a piece that no text may be cut into: control and byte pieces.
NEVER = -1e9


def files(
  tokenizer: Tokenizer, max_length: int
) -> tuple[dict[str, bytes], list[str]]:
  """Files for `AutoTokenizer.from_pretrained`, and the vocabulary unchanged.

  Args:
    tokenizer: ours.
    max_length: tokens to which `truncation=True` cuts.

  Returns:
    Name to content of the files; notes on what could not be written.
  """
  if isinstance(tokenizer, WordPieceTokenizer):
    content, names, extra = _wordpiece(tokenizer)
  elif isinstance(tokenizer, SentencePieceTokenizer):
    try:
      content, names, extra = _sentencepiece(tokenizer)
    except ConfigError as error:
      return _vocabulary_files(tokenizer), [f"no {FILE}: {error}"]
  else:
    return {}, [f"no {FILE}: a {type(tokenizer).__name__} has none"]
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": max_length,
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    "padding_side": "right",
    "truncation_side": "right",
    **{f"{role}_token": piece for role, piece in names.items()},
    **extra,
  }
  written = {FILE: content, CONFIG: config}
  encoded = {
    name: (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
    for name, value in written.items()
  }
  return {**_vocabulary_files(tokenizer), **encoded}, []


def _vocabulary_files(tokenizer: Any) -> dict[str, bytes]:
  """The files of the vocabulary, without our own description of it."""
  return {k: v for k, v in tokenizer.files().items() if not k.endswith(".json")}


def _document(
  model: Mapping[str, Any],
  names: Mapping[str, str],
  info: Any,
  *,
  normalizers: list[Any],
  pre_tokenizer: Any,
  decoder: Any,
  matched: Mapping[str, int],
) -> dict[str, Any]:
  """The content of tokenizer.json.

  Args:
    model: with its vocabulary.
    names: role -> its piece.
    info: our ids of these pieces.
    normalizers: steps in order.
    pre_tokenizer: splits a text into words; None: not at all.
    decoder: from pieces to text.
    matched: role -> id of the special pieces that are recognised in a text.
  """
  a, b = {"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}

  def piece(part: Mapping[str, Any], kind: int) -> dict[str, Any]:
    ((name, value),) = part.items()
    return {name: {**value, "type_id": kind}}

  cls, sep = ({"SpecialToken": {"id": names[r]}} for r in ("cls", "sep"))
  single = [piece(x, 0) for x in (cls, a, sep)]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      _added_token(names[role], i)
      for role, i in sorted(matched.items(), key=lambda pair: pair[1])
    ],
    "normalizer": {"type": "Sequence", "normalizers": normalizers},
    "pre_tokenizer": pre_tokenizer,
    "post_processor": {
      "type": "TemplateProcessing",
      "single": single,
      "pair": [*single, piece(b, 1), piece(sep, 1)],
      "special_tokens": {
        names[role]: {
          "id": names[role],
          "ids": [getattr(info, role)],
          "tokens": [names[role]],
        }
        for role in ("cls", "sep")
      },
    },
    "decoder": decoder,
    "model": model,
  }


def _added_token(piece: str, i: int) -> dict[str, Any]:
  """A special piece, which is not split and not normalised."""
  return {
    "id": i,
    "content": piece,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
  }


def _wordpiece(
  tokenizer: WordPieceTokenizer,
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
  vocabulary = wordpiece.read_vocabulary(
    tokenizer.files()["vocab.txt"], "vocab.txt"
  )
  names = {
    "pad": wordpiece.PAD,
    "unk": wordpiece.UNK,
    "cls": wordpiece.CLS,
    "sep": wordpiece.SEP,
    "mask": wordpiece.MASK,
  }
  rules, info = tokenizer.rules, tokenizer.info
  unknown = vocabulary[wordpiece.UNK]
  ids = {role: getattr(info, role) for role in names if role != "unk"}
  content = _document(
    {
      "type": "WordPiece",
      "unk_token": wordpiece.UNK,
      "continuing_subword_prefix": "##",
      "max_input_chars_per_word": wordpiece.MAX_WORD,
      "vocab": vocabulary,
    },
    names,
    info,
    normalizers=_bert_normalizers(rules),
    pre_tokenizer={
      "type": "Sequence",
      "pretokenizers": [
        {
          "type": "Split",
          "pattern": {"Regex": _category("P", also=string.punctuation)},
          "behavior": "Isolated",
          "invert": False,
        },
        {"type": "WhitespaceSplit"},
      ],
    },
    decoder={"type": "WordPiece", "prefix": "##", "cleanup": False},
    matched={**ids, "unk": unknown},
  )
  # The rule that BertTokenizer and importers look for.
  extra = {
    "do_lower_case": rules.lower_case,
    "strip_accents": rules.strips_accents,
    "tokenize_chinese_chars": rules.split_cjk,
    "clean_up_tokenization_spaces": True,
  }
  return content, names, extra


def _bert_normalizers(rules: wordpiece.Rules) -> list[dict[str, Any]]:
  """The normalisation of a WordPiece tokenizer, step by step.

  The tokenizers library has an older Unicode than Python, so classes of
  characters are written out as code points.
  """
  accents = [{"type": "NFC"}]
  if rules.strips_accents:
    accents = [{"type": "NFD"}, _replace({"Regex": _category("Mn")}, "")]
  return [
    _replace({"Regex": _category("C", but="\t\n\r")}, ""),
    {
      "type": "BertNormalizer",
      "clean_text": True,
      "handle_chinese_chars": rules.split_cjk,
      "strip_accents": False,
      "lowercase": rules.lower_case,
    },
    *accents,
  ]


def _sentencepiece(
  tokenizer: SentencePieceTokenizer,
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
  """The files' content for a unigram model.

  Raises:
    ConfigError: for a model of another form, saying which.
  """
  from sentencepiece import sentencepiece_model_pb2 as messages

  proto = messages.ModelProto()  # pyrefly: ignore[missing-attribute]
  proto.ParseFromString(tokenizer.files()["sentencepiece.model"])
  trainer, spec = proto.trainer_spec, proto.normalizer_spec
  kinds = {piece.type for piece in proto.pieces}
  for wrong, what in (
    (trainer.model_type != UNIGRAM, "a SentencePiece model that is no unigram"),
    (USER_DEFINED in kinds, "a SentencePiece model with user-defined pieces"),
    (trainer.treat_whitespace_as_suffix, "spaces as suffixes"),
    (not spec.escape_whitespaces, "spaces that are not escaped"),
  ):
    if wrong:
      raise ConfigError(f"{what} cannot be written in it")
  pieces = [piece.piece for piece in proto.pieces]
  unknown = next(i for i, p in enumerate(proto.pieces) if p.type == UNKNOWN)
  info = tokenizer.info
  names = {r: pieces[getattr(info, r)] for r in ("pad", "cls", "sep", "mask")}
  names["unk"] = pieces[unknown]
  decoders = [
    _replace({"String": SPACE}, " "),
    {"type": "ByteFallback"},
    {"type": "Fuse"},
  ]
  if spec.add_dummy_prefix:  # All leading spaces go where texts have none.
    start = 1 << 16 if spec.remove_extra_whitespaces else 1
    decoders.append(
      {"type": "Strip", "content": " ", "start": start, "stop": 0}
    )
  scores = [p.score if p.type == NORMAL else NEVER for p in proto.pieces]
  content = _document(
    {
      "type": "Unigram",
      "unk_id": unknown,
      "vocab": [list(pair) for pair in zip(pieces, scores, strict=True)],
      "byte_fallback": trainer.byte_fallback,
    },
    names,
    info,
    normalizers=_sentencepiece_normalizers(spec),
    pre_tokenizer=None,
    decoder={"type": "Sequence", "decoders": decoders},
    matched={},  # SentencePiece reads "[SEP]" in a text as text.
  )
  extra = {"split_special_tokens": True, "clean_up_tokenization_spaces": False}
  return content, names, extra


def _sentencepiece_normalizers(spec: Any) -> list[dict[str, Any]]:
  """The normalisation that a SentencePiece model specifies, step by step."""
  steps = [
    _replace({"Regex": _any_of(chars)}, to)
    for to, chars in _groups(_character_rules(spec.precompiled_charsmap))
  ]
  if spec.remove_extra_whitespaces:
    steps += [
      _replace({"Regex": rf"\A +|[ {SPACE}]+\z"}, ""),
      _replace({"Regex": " {2,}"}, " "),
    ]
  if spec.add_dummy_prefix:
    steps.append({"type": "Prepend", "prepend": SPACE})
  steps.append(_replace({"String": " "}, SPACE))
  return steps


def _groups(rules: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
  """Characters by what they become."""
  groups: dict[str, list[str]] = {}
  for char, target in sorted(rules.items()):
    groups.setdefault(target, []).append(char)
  yield from sorted(groups.items())


def _replace(pattern: Mapping[str, str], content: str) -> dict[str, Any]:
  """A step that puts one text for every match of another."""
  return {"type": "Replace", "pattern": pattern, "content": content}


@functools.cache
def _category(start: str, but: str = "", also: str = "") -> str:
  """A regular expression of one character of some Unicode categories.

  Args:
    start: how the names of the categories begin.
    but: characters of these that are left out.
    also: further characters.
  """
  ranges: list[list[int]] = []
  for code in range(sys.maxunicode + 1):
    char = chr(code)
    kind = unicodedata.category(char)
    wanted = kind.startswith(start) and kind != "Cs" and char not in but
    if not wanted and char not in also:
      continue
    if ranges and ranges[-1][1] == code - 1:
      ranges[-1][1] = code
    else:
      ranges.append([code, code])
  return "[" + "".join(f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges) + "]"


def _any_of(chars: Sequence[str]) -> str:
  """A regular expression of one of some characters."""
  return "[" + "".join(f"\\x{{{ord(c):X}}}" for c in chars) + "]"


def _character_rules(charsmap: bytes) -> dict[str, str]:
  """The rules of a SentencePiece model, one character each.

  Raises:
    ConfigError: if a rule is of several characters, or one changes what
      another one gives, so that they are no plain replacements.
  """
  rules = dict(_rules(charsmap))
  long = [key for key in rules if len(key) != 1]
  chained = (c in rules and c != key for key, to in rules.items() for c in to)
  if long or any(chained):
    raise ConfigError(
      f"a SentencePiece model with rules of several characters ({len(long)} "
      "such) cannot be written in it exactly"
    )
  return {key: to for key, to in rules.items() if key != to}


def _rules(charsmap: bytes) -> Iterator[tuple[str, str]]:
  """Key and value of each rule of a compiled table: a trie and its values."""
  if not charsmap:
    return
  (size,) = struct.unpack_from("<I", charsmap)
  units = struct.unpack_from(f"<{size // 4}I", charsmap, 4)
  values = charsmap[4 + size :]
  offset = lambda unit: (unit >> 10) << ((unit & (1 << 9)) >> 6)
  waiting = [(0 ^ offset(units[0]), b"")]
  while waiting:
    place, key = waiting.pop()
    for byte in range(1, 256):
      at = place ^ byte
      unit = units[at] if at < len(units) else 0
      if unit & 0x800000FF != byte:
        continue
      below = at ^ offset(unit)
      if unit >> 8 & 1:
        start = units[below] & 0x7FFFFFFF
        value = values[start : values.index(b"\0", start)]
        yield (key + bytes([byte])).decode(), value.decode()
      waiting.append((below, key + bytes([byte])))
