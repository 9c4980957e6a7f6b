"""Writing by this package and by transformers: the same tokens, or an error."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from mico_jax.benchmarks import captioning

pytestmark = [
  pytest.mark.clients,
  pytest.mark.filterwarnings("ignore"),  # of transformers
]
TINY = {
  "vocab_size": 110,
  "width": 32,
  "depth": 1,
  "num_heads": 2,
  "mlp_dim": 64,
}


@pytest.mark.parametrize("form", captioning.FORMS)
def test_both_write_the_same_tokens(monkeypatch, capsys, form):
  monkeypatch.setitem(captioning.SIZES, "tiny", (TINY, 3))
  options = ["--sizes", "tiny", "--forms", form, "--batches", "2"]
  assert captioning.main([*options, "--tokens", "5", "--turns", "1"]) == 0
  found = json.loads(capsys.readouterr().out)
  low, high = found["ratios"]
  assert 0 < low <= found["ratio"] <= high


def test_other_tokens_are_an_error(monkeypatch):
  monkeypatch.setitem(captioning.SIZES, "tiny", (TINY, 3))
  a = np.array([[101, 5, 6, 0], [101, 7, 102, 0]])
  assert captioning.check_equal(a, a[:, :3]) == 4
  with pytest.raises(ValueError, match=r"text 1 differs: ours \[101, 7"):
    captioning.check_equal(a, a + (a == 7))
