from __future__ import annotations

import pytest

from mico_jax.modalities.wording import (
  group_in_words,
  in_words,
  result_in_words,
)


@pytest.mark.parametrize(
  ("letters", "words"),
  [
    ("va", "video + audio"),
    ("t", "text"),
    ("", ""),
    ("vv", ""),
    ("v?", ""),
  ],
)
def test_letters(letters, words):
  assert in_words(letters) == words


@pytest.mark.parametrize(
  ("group", "words"),
  [
    ("tva", "text against video + audio"),
    ("i:d", "image against depth"),
    ("va:d", "video + audio against depth"),
    ("id", "image against depth"),
    ("whole", "whole"),
  ],
)
def test_groups(group, words):
  assert group_in_words(group) == words


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("retrieval/t->va/R@1", "retrieval, text → video + audio, R@1"),
    ("matching/va/mined accuracy", "matching, video + audio, mined accuracy"),
    # "pairs", "hard" and "motion" are words, though "pairs" has letters only.
    (
      "hard/t->v (re-ranked 8)/motion/pairs won",
      "hard, text → video (re-ranked 8), motion, pairs won",
    ),
    ("heads/other/top-1", "heads, other, top-1"),
    ("loss", "loss"),
  ],
)
def test_results(name, words):
  assert result_in_words(name) == words
