from __future__ import annotations

import pickle

import numpy as np
import pytest

from mico_jax import world
from mico_jax.config import ConfigError, TokenizerConfig
from mico_jax.data import sentencepiece_training as training
from mico_jax.data import tokenizer as tok

WORDS = ["the", "of", "red", "cube", "##s", "a", "man", "'", "s", "!", "ß"]
VOCABULARY = "\n".join(
  ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ""]
).encode()


@pytest.fixture(scope="module")
def omniworld() -> tok.Tokenizer:
  return tok.make_tokenizer(TokenizerConfig(kind="omniworld"))


@pytest.fixture(params=["wordpiece", "omniworld", "captions"])
def tokenizer(request) -> tok.Tokenizer:
  if request.param == "wordpiece":
    return tok.WordPieceTokenizer(VOCABULARY)
  if request.param == "omniworld":
    return tok.make_tokenizer(TokenizerConfig(kind="omniworld"))
  return tok.make_tokenizer(
    TokenizerConfig(kind="sentencepiece"), ["a red cube", "a blue ball"]
  )


def test_contract(tokenizer):
  info = tokenizer.info
  assert isinstance(tokenizer, tok.Tokenizer)
  assert len(set(info.special)) == 4
  low, high = info.random_range
  assert max(info.special) < low < high <= info.vocab_size
  row = tokenizer.encode("the red cube", 12)
  assert row.dtype == np.int32
  assert row.shape == (12,)
  assert row[0] == info.cls
  end = int(np.argmax(row == info.sep))
  assert (row[end + 1 :] == info.pad).all()
  assert tokenizer.decode(row) == "the red cube"
  assert tokenizer.decode(row.tolist(), skip_special=False).startswith("[CLS]")


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_empty_caption(tokenizer, text):
  row = tokenizer.encode(text, 4)
  info = tokenizer.info
  assert row.tolist() == [info.cls, info.sep, info.pad, info.pad]
  assert tokenizer.decode(row) == ""


@pytest.mark.parametrize(
  "text",
  ["日本語", "\udce4bad", "🙂 ok", "x" * 300, "\0\x01", "Ünï ﬁ", "[SEP]"],
)
def test_any_text_encodes(tokenizer, text):
  row = tokenizer.encode(text, 700)
  assert row.min() >= 0
  assert row.max() < tokenizer.info.vocab_size


def test_truncates_and_ends_with_sep(tokenizer):
  row = tokenizer.encode("the red cube of the man", 4)
  assert row.shape == (4,)
  assert row[0] == tokenizer.info.cls
  assert row[-1] == tokenizer.info.sep


def test_wrong_arguments(tokenizer):
  with pytest.raises(TypeError, match="str"):
    tokenizer.encode(b"bytes", 4)
  with pytest.raises(ValueError, match="max_length"):
    tokenizer.encode("text", 1)


def test_rebuilt_from_its_files(tokenizer):
  again = tok.tokenizer_from_files(tokenizer.files())
  copied = pickle.loads(pickle.dumps(tokenizer))
  for other in (again, copied):
    assert other.sha256 == tokenizer.sha256
    assert other.info == tokenizer.info
    np.testing.assert_array_equal(
      other.encode("the red cube", 9), tokenizer.encode("the red cube", 9)
    )
  changed = dict(tokenizer.files())
  if "vocab.txt" in changed:
    changed["vocab.txt"] += b"more\n"
    assert tok.tokenizer_from_files(changed).sha256 != tokenizer.sha256


def test_files_that_do_not_fit():
  with pytest.raises(ValueError, match="lack"):
    tok.tokenizer_from_files({})
  with pytest.raises(ValueError, match="unknown tokenizer kind"):
    tok.tokenizer_from_files({tok.META_FILE: b'{"kind": "x"}'})
  with pytest.raises(ValueError, match="not a readable SentencePiece"):
    tok.SentencePieceTokenizer(b"garbage", "m.model")
  with pytest.raises(ValueError, match=r"lacks \[UNK\]"):
    tok.WordPieceTokenizer(b"a\nb\n", "v.txt")
  with pytest.raises(ValueError, match="not UTF-8"):
    tok.WordPieceTokenizer(b"\xff\xfe", "v.txt")


def test_config_errors(tmp_path):
  with pytest.raises(ConfigError, match=r"path is empty"):
    tok.make_tokenizer(TokenizerConfig(kind="wordpiece"))
  missing = str(tmp_path / "vocab.txt")
  with pytest.raises(ConfigError, match=r"vocab\.txt"):
    tok.make_tokenizer(TokenizerConfig(kind="wordpiece", path=missing))
  with pytest.raises(ConfigError, match="known: wordpiece"):
    tok.make_tokenizer(TokenizerConfig(kind="bpe"))
  with pytest.raises(ConfigError, match="no captions"):
    tok.make_tokenizer(TokenizerConfig(kind="sentencepiece"))
  with pytest.raises(ValueError, match="every caption is empty"):
    tok.make_tokenizer(TokenizerConfig(kind="sentencepiece"), ["", " "])
  with pytest.raises(ValueError, match="vocab_size"):
    tok.make_tokenizer(
      TokenizerConfig(kind="sentencepiece", vocab_size=300), ["a b"]
    )


def test_model_file_by_path(tmp_path, omniworld):
  path = tmp_path / "x.model"
  path.write_bytes(omniworld.files()["sentencepiece.model"])
  config = TokenizerConfig(kind="sentencepiece", path=str(path))
  assert tok.make_tokenizer(config).sha256 == omniworld.sha256


def test_training_is_deterministic(monkeypatch, tmp_path):
  sentences = ["A red cube rings.", "a blue ball falls", "two dogs bark"]
  first = tok.train_sentencepiece(sentences, 400)
  monkeypatch.setattr(training.tempfile, "tempdir", str(tmp_path))
  assert tok.train_sentencepiece(sentences[::-1] * 3, 400) == first
  words = tok.SentencePieceTokenizer(first)
  assert words.tokenize("a RED cube") == ["▁a", "▁red", "▁cube"]


def test_shipped_model_is_what_training_gives(omniworld):
  # Pieces and scores, not bytes: other trainer versions may write more fields.
  trained = tok.SentencePieceTokenizer(training.train_omniworld())
  assert trained.info == omniworld.info
  for i in range(trained.info.vocab_size):
    ours, theirs = trained._processor, omniworld._processor
    assert ours.id_to_piece(i) == theirs.id_to_piece(i)
    assert ours.get_score(i) == pytest.approx(theirs.get_score(i), abs=1e-3)


def test_world_words_are_single_pieces(omniworld):
  assert omniworld.info.vocab_size <= 512
  assert len(tok.read_omniworld_model()) < 60_000
  words = [w for w in world.vocabulary() if w.isalpha()]
  whole = [w for w in words if len(omniworld.tokenize(w)) == 1]
  assert len(whole) >= 0.97 * len(words)
  for sentence in training.omniworld_sentences(20):
    row = omniworld.encode(sentence, 64)
    assert omniworld.decode(row) == sentence
    assert row[-1] == omniworld.info.pad
