"""Tokenizers: text to ids and back, and the files that rebuild them.

Three kinds (`TOKENIZERS`): `wordpiece` for weights derived from BERT,
`sentencepiece` for a model file or one trained on the captions of the run, and
`omniworld`, the small SentencePiece model shipped for OmniWorld. All return
`[cls] pieces [sep]`, truncated and padded to a fixed length, and declare their
special ids and the ids of random replacement (`TokenizerInfo`), which is all
that masking, decoding and export use.

Data workers load this module, so it does not import JAX.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, SupportsInt, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Int

from mico_jax.config import ConfigError, TokenizerConfig
from mico_jax.data import wordpiece
from mico_jax.data.sentencepiece_training import train_sentencepiece

META_FILE = "tokenizer.json"
OMNIWORLD_MODEL = "omniworld_v1.model"


@dataclasses.dataclass(frozen=True)
class TokenizerInfo:
  """Special ids and size of a vocabulary.

  Attributes:
    pad: id of padding behind a text.
    cls: id that starts every text.
    sep: id that ends every text; generation stops at it.
    mask: id that hides a token in masked objectives.
    vocab_size: number of ids.
    random_range: (first, last + 1) of the ids for random replacement.
  """

  pad: int
  cls: int
  sep: int
  mask: int
  vocab_size: int
  random_range: tuple[int, int]

  @property
  def special(self) -> tuple[int, int, int, int]:
    """The ids (pad, cls, sep, mask)."""
    return (self.pad, self.cls, self.sep, self.mask)


@runtime_checkable
class Tokenizer(Protocol):
  """Text to ids and back."""

  info: TokenizerInfo

  def encode(self, text: str, max_length: int) -> Int[np.ndarray, " L"]:
    """Ids `[cls] ... [sep]` of a text, cut and padded to `max_length`."""
    ...

  def decode(
    self, ids: Iterable[SupportsInt], skip_special: bool = True
  ) -> str:
    """The text of ids."""
    ...

  def files(self) -> dict[str, bytes]:
    """Name -> content of the files from which it can be rebuilt."""
    ...

  @property
  def sha256(self) -> str:
    """Hash over the names and contents of `files()`."""
    ...


def _check_text(text: Any) -> str:
  """The text with lone surrogates replaced, so that any str can be encoded."""
  if not isinstance(text, str):
    raise TypeError(
      f"cannot tokenize {type(text).__name__} {text!r:.80}: expected a str; "
      "decode bytes as UTF-8 first."
    )
  return text.encode("utf-8", "replace").decode("utf-8")


def _finish(
  ids: Sequence[int], max_length: int, info: TokenizerInfo
) -> Int[np.ndarray, " L"]:
  """Adds cls and sep, cuts and pads."""
  if max_length < 2:
    raise ValueError(
      f"{max_length=} leaves no room for the cls and sep ids; use 2 or more."
    )
  row = np.full((max_length,), info.pad, np.int32)
  kept = list(ids[: max_length - 2])
  row[: len(kept) + 2] = [info.cls, *kept, info.sep]
  return row


class _Files:
  """`files`, `sha256` and pickling, shared by the tokenizers."""

  kind: str
  settings: Mapping[str, Any] = types.MappingProxyType({})
  _content: dict[str, bytes]

  def files(self) -> dict[str, bytes]:
    """Name -> content of the files from which it can be rebuilt."""
    meta = {"kind": self.kind, **self.settings}
    text = json.dumps(meta, sort_keys=True).encode()
    return {META_FILE: text, **self._content}

  @property
  def sha256(self) -> str:
    """Hash over the names and contents of `files()`."""
    digest = hashlib.sha256()
    for name, content in sorted(self.files().items()):
      digest.update(f"{name}\0{len(content)}\0".encode())
      digest.update(content)
    return digest.hexdigest()

  def __reduce__(self):
    return tokenizer_from_files, (self.files(),)


class WordPieceTokenizer(_Files):
  """BERT's WordPiece over a vocabulary file.

  Attributes:
    rules: normalisation of texts.
    settings: rules that differ from BERT-uncased, stored with the files.
  """

  kind = "wordpiece"

  def __init__(
    self,
    vocabulary: bytes,
    name: str = "vocab.txt",
    rules: Mapping[str, Any] | None = None,
  ):
    """Builds from the content of a vocabulary file.

    Args:
      vocabulary: content of the file, one piece per line.
      name: of the file, for error messages.
      rules: fields of `wordpiece.Rules`. Without `lower_case`, texts are
        lower-cased unless the vocabulary has capital letters.

    Raises:
      ValueError: if it is not a BERT vocabulary.
    """
    self._content = {"vocab.txt": vocabulary}
    self._ids = wordpiece.read_vocabulary(vocabulary, name)
    self._pieces = {i: piece for piece, i in self._ids.items()}
    lower = {"lower_case": not wordpiece.is_cased(self._ids)}
    self.rules = wordpiece.Rules(**{**lower, **(rules or {})})
    usual = dataclasses.asdict(wordpiece.Rules())
    self.settings = {
      key: value
      for key, value in dataclasses.asdict(self.rules).items()
      if value != usual[key]
    }
    special = [self._ids[token] for token in wordpiece.SPECIAL]
    size = max(self._pieces) + 1
    low = max(special) + 1
    # The official masking starts at 106: the two ids after [MASK] are unused.
    if low == 104 and size > 106:
      low = 106
    self.info = TokenizerInfo(
      pad=self._ids[wordpiece.PAD],
      cls=self._ids[wordpiece.CLS],
      sep=self._ids[wordpiece.SEP],
      mask=self._ids[wordpiece.MASK],
      vocab_size=size,
      random_range=(min(low, size - 1), size),
    )
    self._skipped = frozenset(special)

  def tokenize(self, text: str) -> list[str]:
    """The pieces of a text, without cls and sep."""
    return wordpiece.tokenize(_check_text(text), self._ids, self.rules)

  def encode(self, text: str, max_length: int) -> Int[np.ndarray, " L"]:
    """Ids `[cls] ... [sep]` of a text, cut and padded to `max_length`."""
    return _finish(
      [self._ids[piece] for piece in self.tokenize(text)], max_length, self.info
    )

  def decode(
    self, ids: Iterable[SupportsInt], skip_special: bool = True
  ) -> str:
    """The text of ids; special ids are left out unless asked for."""
    return wordpiece.join(
      [
        self._pieces.get(int(i), wordpiece.UNK)
        for i in ids
        if not (skip_special and int(i) in self._skipped)
      ]
    )


class SentencePieceTokenizer(_Files):
  """A SentencePiece model that has pad, cls, sep and mask pieces."""

  kind = "sentencepiece"

  def __init__(self, model: bytes, name: str = "sentencepiece.model"):
    """Builds from a serialised SentencePiece model.

    Args:
      model: content of the model file.
      name: of the file, for error messages.

    Raises:
      ValueError: if it is no SentencePiece model or lacks a special piece.
    """
    import sentencepiece

    self._content = {"sentencepiece.model": model}
    processor = sentencepiece.SentencePieceProcessor()
    try:
      processor.LoadFromSerializedProto(model)
      size = processor.get_piece_size()
    except (RuntimeError, OSError):
      size = 0
    if not size:
      raise ValueError(f"{name}: not a readable SentencePiece model.")
    self._processor = processor

    def find(role: str, fallback: int, *pieces: str) -> int:
      unknown = processor.unk_id()
      for piece in pieces:
        if (i := processor.piece_to_id(piece)) != unknown:
          return i
      if fallback < 0:
        raise ValueError(
          f"{name}: the SentencePiece model has no {role} piece (looked for "
          f"{', '.join(pieces)}); train it with these control symbols, see "
          "mico_jax.data.sentencepiece_training."
        )
      return fallback

    pad = find("pad", processor.pad_id(), "[PAD]", "<pad>")
    cls = find("cls", processor.bos_id(), "[CLS]", "<cls>", "<s>")
    sep = find("sep", processor.eos_id(), "[SEP]", "<sep>", "</s>")
    mask = find("mask", -1, "[MASK]", "<mask>")
    self._skipped = frozenset((pad, cls, sep, mask))
    low = 0
    while low < size - 1 and (
      low in self._skipped
      or processor.is_control(low)
      or processor.is_unknown(low)
      or processor.is_byte(low)
    ):
      low += 1
    self.info = TokenizerInfo(
      pad=pad,
      cls=cls,
      sep=sep,
      mask=mask,
      vocab_size=size,
      random_range=(low, size),
    )

  def tokenize(self, text: str) -> list[str]:
    """The pieces of a text, without cls and sep."""
    return self._processor.encode(_check_text(text), out_type=str)

  def encode(self, text: str, max_length: int) -> Int[np.ndarray, " L"]:
    """Ids `[cls] ... [sep]` of a text, cut and padded to `max_length`."""
    ids = self._processor.encode(_check_text(text), out_type=int)
    return _finish(ids, max_length, self.info)

  def decode(
    self, ids: Iterable[SupportsInt], skip_special: bool = True
  ) -> str:
    """The text of ids; special ids are left out unless asked for."""
    size = self.info.vocab_size
    kept = [int(i) for i in ids]
    # Ids beyond the pieces exist where the model's table is larger.
    kept = [i for i in kept if 0 <= i < size]
    if skip_special:
      return self._processor.decode([i for i in kept if i not in self._skipped])
    parts: list[str] = []
    run: list[int] = []
    for i in kept:
      if i not in self._skipped:
        run.append(i)
        continue
      parts += [self._processor.decode(run)] if run else []
      parts.append(self._processor.id_to_piece(i))
      run = []
    parts += [self._processor.decode(run)] if run else []
    return " ".join(parts)


def _read(path: str, what: str) -> bytes:
  """Content of the file `data.tokenizer.path`.

  Raises:
    ConfigError: if the path is empty or cannot be read.
  """
  if not path:
    raise ConfigError(
      f"data.tokenizer.path is empty; set it to the {what} to use."
    )
  try:
    return epath.Path(path).read_bytes()
  except OSError as error:
    raise ConfigError(
      f"data.tokenizer.path={path!r}: cannot read the {what} "
      f"({error.strerror or type(error).__name__})."
    ) from None


def _make_wordpiece(
  config: TokenizerConfig, captions: Iterable[str] | None
) -> Tokenizer:
  del captions  # nothing is trained
  content = _read(config.path, "WordPiece vocabulary (vocab.txt)")
  return WordPieceTokenizer(content, config.path, _rules_beside(config.path))


def _rules_beside(path: str) -> dict[str, bool | None]:
  """Rules in the tokenizer_config.json beside a vocabulary, if there is one."""
  file = epath.Path(path).parent / wordpiece.RULES_FILE
  if not file.exists():
    return {}
  return wordpiece.read_rules(
    _read(str(file), "tokenizer's settings"), str(file)
  )


def _make_sentencepiece(
  config: TokenizerConfig, captions: Iterable[str] | None
) -> Tokenizer:
  if config.path:
    content = _read(config.path, "SentencePiece model")
    return SentencePieceTokenizer(content, config.path)
  if captions is None:
    raise ConfigError(
      "data.tokenizer.path is empty and there are no captions to train a "
      "SentencePiece model on; set it to a model file."
    )
  try:
    model = train_sentencepiece(captions, config.vocab_size)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  return SentencePieceTokenizer(model)


def _make_omniworld(
  config: TokenizerConfig, captions: Iterable[str] | None
) -> Tokenizer:
  del config, captions  # the model is shipped
  return SentencePieceTokenizer(read_omniworld_model(), OMNIWORLD_MODEL)


def read_omniworld_model() -> bytes:
  """The shipped model, made by `train_omniworld`."""
  assets = importlib.resources.files("mico_jax.data") / "assets"
  return (assets / OMNIWORLD_MODEL).read_bytes()


TOKENIZERS: Mapping[
  str, Callable[[TokenizerConfig, Iterable[str] | None], Tokenizer]
] = {
  "wordpiece": _make_wordpiece,
  "sentencepiece": _make_sentencepiece,
  "omniworld": _make_omniworld,
}


def make_tokenizer(
  config: TokenizerConfig, captions: Iterable[str] | None = None
) -> Tokenizer:
  """Builds the tokenizer a config names.

  Args:
    config: of the tokenizer.
    captions: training texts for kind "sentencepiece" without a path; not read
      otherwise.

  Raises:
    ConfigError: for an unknown kind or a missing file.
    ValueError: for a file of another format.
  """
  if config.kind not in TOKENIZERS:
    raise ConfigError(
      f"unknown data.tokenizer.kind={config.kind!r}; known: "
      f"{', '.join(TOKENIZERS)}."
    )
  return TOKENIZERS[config.kind](config, captions)


def tokenizer_from_files(files: Mapping[str, bytes]) -> Tokenizer:
  """Rebuilds a tokenizer from the files in a checkpoint.

  Args:
    files: name -> content, as `Tokenizer.files()` returned them.

  Raises:
    ValueError: if a file is missing or the kind is unknown.
  """
  try:
    meta = json.loads(files[META_FILE])
    kind = meta["kind"]
    if kind == "wordpiece":
      # Files without a rule are older than the rules: BERT-uncased.
      usual = dataclasses.asdict(wordpiece.Rules())
      names = {name: name for name in usual}
      rules = usual | wordpiece.check_rules(meta, META_FILE, names)
      return WordPieceTokenizer(files["vocab.txt"], rules=rules)
    if kind == "sentencepiece":
      return SentencePieceTokenizer(files["sentencepiece.model"])
  except KeyError as error:
    raise ValueError(
      f"tokenizer files lack {error}; they are {', '.join(sorted(files))}."
    ) from None
  raise ValueError(
    f"unknown tokenizer kind {kind!r} in {META_FILE}; known: wordpiece, "
    "sentencepiece."
  )
