from __future__ import annotations

import pytest

from mico_jax.data import wordpiece


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("Hello, World!", ["hello", ",", "world", "!"]),
    ("naïve Ångström", ["naive", "angstrom"]),
    ("a\u00a0b\tc\r\nd", ["a", "b", "c", "d"]),
    ("東京 a京b", ["東", "京", "a", "京", "b"]),
    ("x\u200dy\ufffd\0z", ["xyz"]),
    ("it's $5+~", ["it", "'", "s", "$", "5", "+", "~"]),
    ("\u03a3\u03a3", ["\u03c3\u03c3"]),
    ("“q”…", ["“", "q", "”", "…"]),
  ],
)
def test_split_words(text, words):
  assert wordpiece.split_words(text) == words


def test_greedy_longest_pieces():
  vocabulary = {w: i for i, w in enumerate(["a", "ab", "##b", "##bc", "##c"])}
  assert wordpiece.split_pieces("abc", vocabulary) == ["ab", "##c"]
  assert wordpiece.split_pieces("abd", vocabulary) == ["[UNK]"]
  assert wordpiece.split_pieces("a" * 101, {"a": 0, "##a": 1}) == ["[UNK]"]
  assert len(wordpiece.split_pieces("a" * 100, {"a": 0, "##a": 1})) == 100


def test_special_tokens_are_case_sensitive():
  vocabulary = {w: i for i, w in enumerate(["x", "[", "]", "sep", "[SEP]"])}
  assert wordpiece.tokenize("x[SEP]x", vocabulary) == ["x", "[SEP]", "x"]
  assert wordpiece.tokenize("[sep]", vocabulary) == ["[", "sep", "]"]


def test_join_tidies():
  tokens = ["do", "n't", "go", ",", "it", "'", "s", "run", "##ning", "!"]
  assert wordpiece.join(tokens) == "don't go, it's running!"
