from __future__ import annotations

import numpy as np
import pytest

from mico_jax.evaluation import caption_metrics, ptb

CANDIDATES = ["a man is speaking", "rain falls"]
REFERENCES = [
  [
    "a man speaks.",
    "someone speaks.",
    "a man is speaking while a bird is chirping in the background",
  ],
  ["rain is falling hard on a surface"],
]


def test_published_vector():
  scores = caption_metrics.score_captions(CANDIDATES, REFERENCES)
  assert scores.cider == pytest.approx(0.96135, abs=1e-5)
  np.testing.assert_allclose(
    scores.cider_items, [1.36405, 0.55865], rtol=0, atol=1e-5
  )
  want = [0.4278, 0.4059, 0.4390, 0.4565]
  np.testing.assert_allclose(scores.bleu, want, rtol=0, atol=5e-5)
  assert scores.rouge_l == pytest.approx(0.4871, abs=5e-5)


def test_perfect_and_empty_captions():
  texts = ["a red cube falls down", "two dogs bark at night"]
  perfect = caption_metrics.score_captions(texts, [[t] for t in texts])
  assert perfect.cider == pytest.approx(10.0)
  np.testing.assert_allclose(perfect.bleu, 1.0, atol=1e-6)
  assert perfect.rouge_l == pytest.approx(1.0)
  nothing = caption_metrics.score_captions(["", "."], [[t] for t in texts])
  assert nothing.cider == 0.0
  assert nothing.rouge_l == 0.0
  assert max(nothing.bleu) < 1e-6


def test_wrong_references():
  with pytest.raises(ValueError, match="one list per candidate"):
    caption_metrics.score_captions(["a"], [])
  with pytest.raises(ValueError, match=r"references\[0\]"):
    caption_metrics.score_captions(["a"], ["a text"])
  with pytest.raises(ValueError, match="no captions"):
    caption_metrics.score_captions([], [])


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("A man isn't here.", "a man is n't here"),
    ("I can't, you cannot; they're gonna!", None),
    ("it's John's dogs' toy", "it 's john 's dogs toy"),
    ("we've I'll he'd I'm", "we 've i 'll he 'd i 'm"),
    ("I\u2019m don\u2019t", "i 'm do n't"),
    ('"quoted" (in brackets) [x] {y}', "quoted in brackets -lsb- x -rsb- y"),
    ("yes... no -- maybe \u2014 so \u2026", "yes no maybe so"),
    ("well-known 20-year-old t-shirt", "well-known 20-year-old t-shirt"),
    ("1,000.5 at 10:30 a.m. in the U.S.", "1,000.5 at 10:30 a.m. in the u.s."),
    ("Mr. Smith of St. Ives.", "mr. smith of st. ives"),
    ("five o'clock, O'Neil", "five o'clock o'neil"),
    ("black & white, b&w $5 5%", "black & white b&w $ 5 5 %"),
    ("", ""),
    ("  \n ", ""),
  ],
)
def test_treebank_words(text, words):
  if words is None:
    words = "i ca n't you can not they 're gon na"
  assert " ".join(ptb.tokenize(text)) == words


def test_released_brackets():
  words = ptb.tokenize("(a) b", drop_brackets=False)
  assert words == ["-lrb-", "a", "-rrb-", "b"]
  assert ptb.split_treebank("(A)") == ["-LRB-", "a", "-RRB-"]


def test_any_text_tokenizes():
  rng = np.random.default_rng(0)
  alphabet = list("aB'. ,-()[]\"1&@#:/\u2019\u2026\u00e9\U0001f642\n<>$%*_~")
  for _ in range(300):
    text = "".join(rng.choice(alphabet, 30))
    words = ptb.tokenize(text)
    assert not ptb.PUNCTUATION & set(words)
    assert all(word and not any(c.isspace() for c in word) for word in words)
