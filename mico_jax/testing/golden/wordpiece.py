"""Case wordpiece: pieces, ids and decoded text, equal to the last character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.data import wordpiece as wordpiece_lib
from mico_jax.data.tokenizer import WordPieceTokenizer
from mico_jax.testing.golden.case import Check, Folder, Missing, Unsupported

_IDS = re.compile(r"input_ids_max_length_(\d+)$")
_IGNORED = ("text", "token_type_ids")  # the question; always zeros


def _compare(
  name: str, got: Sequence[Any], want: Sequence[Any]
) -> Iterator[Check]:
  """One line for all items, and one for each that differs."""
  ours, theirs = (
    np.asarray([json.dumps(x, ensure_ascii=True) for x in values])
    for values in (got, want)
  )
  yield Check(f"{name} ({len(want)} items)", ours, theirs, 0.0)
  for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
    if a != b:
      yield Check(f"{name}[{i}]", a, b, 0.0)


def _output(
  tokenizer: WordPieceTokenizer,
  item: Mapping[str, Any],
  name: str,
  max_length: int,
) -> Any:
  """Our value of one stored output of a text; None: unknown output."""
  text = item["text"]
  if name == "tokens":
    return tokenizer.tokenize(text)
  if name == "input_ids":
    return tokenizer.encode(text, max_length).tolist()
  if name == "attention_mask":
    # By count: a "[PAD]" written in the text is a token like any other.
    length = min(len(tokenizer.tokenize(text)) + 2, max_length)
    return [1] * length + [0] * (max_length - length)
  if name == "decoded_skip_special":
    return tokenizer.decode(item["input_ids"])
  if match := _IDS.match(name):
    return tokenizer.encode(text, int(match.group(1))).tolist()
  return None


def _rules(config: Mapping[str, Any]) -> dict[str, bool | None]:
  """Rules of normalisation, from the folder's description of its tokenizer."""
  values = {"True": True, "False": False, "None": None}
  pairs = re.findall(r"(\w+)=(\w+)", str(config.get("tokenizer", "")))
  rules = {name: values[value] for name, value in pairs if value in values}
  names = wordpiece_lib.NAMES
  return wordpiece_lib.check_rules(rules, "tokenizer", names)


def wordpiece(folder: Folder) -> Iterator[Check | Missing]:
  """Texts to pieces and ids, ids to text, special ids."""
  config = folder.config
  vocabulary = folder.path / "vocab.txt"
  if not vocabulary.is_file():
    raise Unsupported("a vocab.txt in the folder")
  tokenizer = WordPieceTokenizer(
    vocabulary.read_bytes(), str(vocabulary), _rules(config)
  )
  info = tokenizer.info
  special = config.get("special", {})
  ours = {"PAD": info.pad, "CLS": info.cls, "SEP": info.sep, "MASK": info.mask}
  known = [name for name in ours if name in special]
  yield from _compare(
    "special ids", [ours[n] for n in known], [special[n] for n in known]
  )
  items = config["items"]
  names = list(dict.fromkeys(name for item in items for name in item))
  for name in names:
    if name in _IGNORED:
      continue
    having = [item for item in items if name in item]
    got = [_output(tokenizer, x, name, config["max_length"]) for x in having]
    if any(value is None for value in got):
      yield Missing(name, "a comparison of this output")
      continue
    yield from _compare(name, got, [item[name] for item in having])
  decode = folder.path / "decode.json"
  if not decode.is_file():
    return
  rows = json.loads(decode.read_text(encoding="utf-8"))
  for name, skip in (
    ("decoded_skip_special", True),
    ("batch_decode_without_skip", False),
  ):
    having = [row for row in rows if name in row]
    yield from _compare(
      f"decode.json {name}",
      [tokenizer.decode(row["ids"], skip_special=skip) for row in having],
      [row[name] for row in having],
    )
