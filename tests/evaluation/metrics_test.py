from __future__ import annotations

import numpy as np
import pytest

from mico_jax.evaluation import metrics


def _brute_rank(row, hit):
  best = max(row[hit])
  return 1 + sum(x >= best for x, h in zip(row, hit, strict=True) if not h)


def test_ranks_against_brute_force():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 6, (40, 9)).astype(float)  # many ties
  relevant = rng.random((40, 9)) < 0.3
  relevant[np.arange(40), rng.integers(0, 9, 40)] = True
  got = metrics.ranks(scores, relevant)
  want = [_brute_rank(s, r) for s, r in zip(scores, relevant, strict=True)]
  assert got.tolist() == want
  for k in (1, 5):
    share = np.mean([w <= k for w in want])
    assert metrics.recall_at(got, k).mean() == pytest.approx(share)


def test_equal_scores_find_nothing():
  ranks = metrics.ranks(np.zeros((3, 7)), np.eye(3, 7, dtype=bool))
  assert ranks.tolist() == [7, 7, 7]
  nan = np.full((2, 2), np.nan)
  assert metrics.ranks(nan, np.eye(2, dtype=bool)).tolist() == [2, 2]


def test_ranks_need_an_answer():
  with pytest.raises(ValueError, match="query 1"):
    metrics.ranks(np.zeros((2, 2)), np.array([[True, False], [False, False]]))
  with pytest.raises((ValueError, TypeError)):  # shapes are checked in tests
    metrics.ranks(np.zeros((2, 2)), np.ones((2, 3), bool))


def test_average_precision_against_brute_force():
  rng = np.random.default_rng(1)
  scores = rng.random((20, 12))
  relevant = rng.random((20, 12)) < 0.4
  relevant[:, 0] = True
  want = []
  for row, hit in zip(scores, relevant, strict=True):
    found, precisions = 0, []
    for place, i in enumerate(sorted(range(12), key=lambda i: -row[i]), 1):
      if hit[i]:
        found += 1
        precisions.append(found / place)
    want.append(np.mean(precisions))
  got = metrics.average_precision(scores, relevant)
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_accuracy():
  assert metrics.accuracy(["a", "b"], ["a", "c"]).tolist() == [1.0, 0.0]
  with pytest.raises(ValueError, match="2 predictions"):
    metrics.accuracy([1, 2], [1])


def test_interval_is_deterministic_and_holds_the_mean():
  values = np.random.default_rng(2).random(50)
  first = metrics.bootstrap_interval(values, seed=3)
  assert first == metrics.bootstrap_interval(values, seed=3)
  assert first != metrics.bootstrap_interval(values, seed=4)
  assert first.low < values.mean() < first.high
  assert metrics.bootstrap_interval(np.ones(5)) == (1.0, 1.0)
  with pytest.raises(ValueError, match="no values"):
    metrics.bootstrap_interval(np.zeros(0))


def test_interval_covers():
  rng = np.random.default_rng(5)
  covered = 0
  for seed in range(200):
    values = (rng.random(100) < 0.3).astype(float)
    low, high = metrics.bootstrap_interval(values, num=300, seed=seed)
    covered += low <= 0.3 <= high
  assert 0.90 <= covered / 200 <= 0.99


def test_paired_bootstrap():
  rng = np.random.default_rng(6)
  base = rng.random((3, 300))
  better = base + 0.05 + 0.01 * rng.standard_normal((3, 300))
  found = metrics.paired_bootstrap(base, better, num=500)
  assert found.interval.low > 0
  assert found.p_value == 0.0
  assert found.mean == pytest.approx(0.05, abs=0.01)
  none = metrics.paired_bootstrap(base[0], rng.permutation(base[0]), num=500)
  assert none.interval.low < 0 < none.interval.high
  with pytest.raises((ValueError, TypeError)):
    metrics.paired_bootstrap(base, base[:2])
