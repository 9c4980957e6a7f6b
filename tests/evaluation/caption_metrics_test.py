from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from mico_jax.evaluation import caption_metrics, java_metrics, ptb
from mico_jax.evaluation.evaluators import captions

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


def _frozen(name: str) -> dict[str, Any]:
  path = pathlib.Path(__file__).with_name(name)
  return json.loads(path.read_text(encoding="utf-8"))


def test_scores_are_those_of_pycocoevalcap():
  """On the same tokens; frozen outputs, `made` says how."""
  frozen = _frozen("pycocoevalcap.json")
  ours = [text.split(" ") if text else [] for text in frozen["candidates"]]
  theirs = [
    [text.split(" ") if text else [] for text in texts]
    for texts in frozen["references"]
  ]
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
  close(caption_metrics.cider_d(ours, theirs), frozen["cider_items"])
  close(caption_metrics.cider_d(ours, theirs).mean(), frozen["cider"])
  close(caption_metrics.bleu(ours, theirs), frozen["bleu"])
  close(caption_metrics.rouge_l(ours, theirs), frozen["rouge_items"])
  close(caption_metrics.rouge_l(ours, theirs).mean(), frozen["rouge"])


def test_words_are_those_of_the_java_tokenizer():
  frozen = _frozen("ptb_java.json")["words"]
  assert len(frozen) > 200
  found = {text: " ".join(ptb.tokenize(text)) for text in frozen}
  assert found == frozen


def test_words_of_real_captions_are_those_of_the_java_tokenizer(data_dir):
  lines = (data_dir / "coco_captions_mini/manifest.jsonl").read_text()
  captions = [
    text for line in lines.splitlines() for text in json.loads(line)["captions"]
  ]
  wanted = _frozen("ptb_java.json")["coco_captions_mini"]
  assert len(captions) == len(wanted) == 590
  digest = lambda text: hashlib.sha256(
    " ".join(ptb.tokenize(text)).encode()
  ).hexdigest()[:12]
  assert [
    t for t, w in zip(captions, wanted, strict=True) if digest(t) != w
  ] == []


def test_a_caption_that_nothing_can_be_compared_with_is_refused():
  with pytest.raises(ValueError, match=r"references\[1\].*without a word"):
    caption_metrics.score_captions(["a", "b"], [["a"], ["...", "!"]])


def test_any_text_tokenizes():
  rng = np.random.default_rng(0)
  alphabet = list("aB'. ,-()[]\"1&@#:/\u2019\u2026\u00e9\U0001f642\n<>$%*_~")
  for _ in range(300):
    text = "".join(rng.choice(alphabet, 30))
    words = ptb.tokenize(text)
    assert not ptb.PUNCTUATION & set(words)
    assert all(word and not any(c.isspace() for c in word) for word in words)


# ------------------------------------------------------------ Java programs
def test_meteor_is_that_of_the_package():
  if importlib.util.find_spec("pycocoevalcap") is None:
    pytest.skip("needs pycocoevalcap")
  if shutil.which("java") is None:
    pytest.skip("needs a Java runtime")
  ours = [["a", "man", "speaks"], ["rain", "falls"]]
  theirs = [
    [["a", "man", "is", "speaking"], ["someone", "speaks"]],
    [["rain", "is", "falling", "hard", "on", "a", "surface"]],
  ]
  # Printed by pycocoevalcap 1.2 for these captions.
  want = 0.26804734688076337
  assert java_metrics.meteor(ours, theirs) == pytest.approx(want, abs=1e-9)


def test_what_a_java_program_lacks_is_said(monkeypatch, capsys):
  with monkeypatch.context() as without:
    without.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(java_metrics.Unavailable, match=r"\[captions\]"):
      java_metrics.meteor([["a"]], [[["a"]]])

  def missing(*_):
    raise java_metrics.Unavailable("no Java runtime")

  programs = {"METEOR (Java)": missing, "SPICE (Java)": lambda *_: 0.25}
  monkeypatch.setattr(captions, "PROGRAMS", programs)
  found = captions._by_programs(["a"], [["a b"]])
  assert found == {"SPICE (Java)": 0.25}
  assert "no METEOR (Java): no Java runtime" in capsys.readouterr().err
