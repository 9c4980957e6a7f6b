"""Which caption a group reads."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mico_jax.config import TaskConfig, TokenizerConfig
from mico_jax.data.language import (
  choose_negatives,
  choose_question,
  choose_text,
  default_kind,
  fallback,
  kinds_of,
  max_length,
)
from mico_jax.data.records import Record
from mico_jax.modalities import DecodeError

FULL = Record(
  "x",
  captions={"vision": ("v1", "v2"), "audio": ("a",), "omni": ("o",)},
  negatives={"omni": ("n1", "n2", "n3")},
  questions=(("what colour?", "red", "v"), ("how loud?", "very", "a")),
)


@pytest.mark.parametrize(
  ("group", "kind"),
  [("tv", "vision"), ("ti", "vision"), ("tvi", "vision"), ("ta", "audio"),
   ("td", "depth"), ("tn", "normal"), ("ts", "subtitle"), ("tva", "omni"),
   ("tid", "omni"), ("tvas", "story")],
)  # fmt: skip
def test_default_kinds(group, kind):
  assert default_kind(group) == kind


def test_the_order_of_fallbacks():
  """Which text a sample gives must not change between versions."""
  assert {kind: fallback(kind) for kind in MOST} == MOST


MOST = {
  "vision": ("omni", "alt_text"),
  "audio": ("omni",),
  "depth": ("omni", "vision"),
  "normal": ("omni", "vision"),
  "subtitle": ("omni",),
  "story": ("omni", "vision", "audio", "alt_text"),
  "omni": ("joined", "vision", "audio", "alt_text"),
  "a kind of one's own": ("omni",),
}


def test_fallback():
  assert choose_text(FULL, {"depth": 1.0}) == ("o", "omni")
  assert choose_text(FULL, {"story": 1.0}) == ("o", "omni")
  only = Record("x", captions={"alt_text": ("t",)})
  assert choose_text(only, {"vision": 1.0}) == ("t", "alt_text")
  assert choose_text(FULL, {"joined": 1.0}) == ("v1 a", "joined")
  with pytest.raises(DecodeError, match="no caption of kind"):
    choose_text(Record("x"), {"vision": 1.0})
  with pytest.raises(DecodeError, match="empty"):
    choose_text(Record("x", captions={"omni": ("",)}), {"omni": 1.0})


def test_weights():
  task = TaskConfig(texts={"tva": {"vision": 3.0, "audio": 1.0, "omni": 0.0}})
  kinds = kinds_of(task, "tva")
  rng = np.random.default_rng(0)
  seen = Counter(choose_text(FULL, kinds, rng)[0] for _ in range(2000))
  assert set(seen) == {"v1", "v2", "a"}
  assert abs(seen["a"] / 2000 - 0.25) < 0.04
  assert abs(seen["v1"] - seen["v2"]) < 150
  assert choose_text(FULL, kinds) == ("v1", "vision")


def test_negatives_and_questions():
  rng = np.random.default_rng(0)
  assert choose_negatives(FULL, "omni", 2) == ["n1", "n2"]
  assert len(set(choose_negatives(FULL, "omni", 3, rng))) == 3
  assert choose_negatives(FULL, "vision", 2) == []
  assert choose_question(FULL, ("ta",)) == ("how loud?", "very")
  assert choose_question(FULL, ("ti",)) == ("what colour?", "red")
  assert choose_question(FULL, ("tva", "ta")) == ("how loud?", "very")
  assert choose_question(FULL, ("ta", "tv")) is None


def test_lengths():
  config = TokenizerConfig()
  assert max_length(config, ("vision",)) == 40
  assert max_length(config, ("vision", "omni")) == 70
  assert max_length(config, ("story",)) == 70
