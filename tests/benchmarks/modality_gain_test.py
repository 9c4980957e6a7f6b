"""The comparison of views over several checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from mico_jax.benchmarks import modality_gain
from mico_jax.config import ConfigError


def fake_hits(table):
  def hits(model, views, *, size):
    return {v: table[model][v] for v in views}, {v: 1.0 for v in views}

  return hits


def test_gains_pair_scenes_and_seeds(monkeypatch):
  rng = np.random.default_rng(0)
  first = (rng.random(400) < 0.5).astype(float)
  better = np.maximum(first, rng.random(400) < 0.3)
  table = {s: {"v": first, "va": better, "vad": better} for s in ("x", "y")}
  monkeypatch.setattr(modality_gain, "load", lambda path, check: path)
  monkeypatch.setattr(modality_gain, "hits", fake_hits(table))
  result = modality_gain.gain(["x", "y"], ["v", "va", "vad"], size=400)
  up, same = result["gains"]
  assert up["gain"] == pytest.approx(float((better - first).mean()))
  assert up["interval"][0] > 0
  assert up["p_value"] == 0
  assert same["gain"] == 0
  assert result["recall_at_1"]["v"] == pytest.approx([first.mean()] * 2)


def test_one_view_is_a_mistake():
  with pytest.raises(ConfigError, match="at least two"):
    modality_gain.gain(["x"], ["v"])
