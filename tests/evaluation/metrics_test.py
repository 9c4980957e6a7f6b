from __future__ import annotations

import math

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


def test_a_share_near_an_end_has_an_exact_interval():
  # The textbook's intervals of Clopper and Pearson.
  assert metrics.exact_interval(10, 10) == pytest.approx((0.6915, 1), abs=1e-4)
  assert metrics.exact_interval(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
  assert metrics.exact_interval(1, 20) == pytest.approx(
    (0.0013, 0.2487), abs=1e-4
  )
  hits = np.ones(10)
  assert metrics.share_interval(hits) == metrics.exact_interval(10, 10)
  middle = np.arange(40) % 2.0
  assert metrics.share_interval(middle) == metrics.bootstrap_interval(middle)
  # Two shares of ten items, half right each, are no 20 answers.
  values, items = np.ones(20), np.repeat(np.arange(10), 2)
  assert metrics.share_interval(values, items=items) == metrics.exact_interval(
    10, 10
  )
  for hits, n in ((-1, 3), (4, 3), (0, 0)):
    with pytest.raises(ValueError, match="expected 0 <= hits"):
      metrics.exact_interval(hits, n)


def test_the_exact_interval_covers():
  """At any share, counted over all outcomes with their probabilities."""
  n, ways = 12, [math.comb(12, k) for k in range(13)]
  intervals = [metrics.exact_interval(k, n) for k in range(n + 1)]
  for share in np.linspace(0.01, 0.99, 25):
    covered = sum(
      ways[k] * share**k * (1 - share) ** (n - k)
      for k, (low, high) in enumerate(intervals)
      if low <= share <= high
    )
    assert covered >= 0.95


def test_items_are_resampled_with_all_their_values():
  """Five equal values of an item tell no more than one of them."""
  rng = np.random.default_rng(7)
  each = (rng.random(80) < 0.5).astype(float)
  values, items = np.repeat(each, 5), np.repeat(np.arange(80), 5)
  order = rng.permutation(400)
  found = metrics.bootstrap_interval(values[order], items=items[order])
  alone = metrics.bootstrap_interval(each)
  naive = metrics.bootstrap_interval(values)
  width = lambda x: x.high - x.low
  assert found == alone  # the same draws of the same items
  assert width(found) > 2 * width(naive)
  # Items of different numbers of values keep their weights.
  low, high = metrics.bootstrap_interval(
    np.array([0.0, 0.0, 0.0, 1.0]), items=np.array([4, 4, 4, 9])
  )
  assert (low, high) == (0.0, 1.0)
  with pytest.raises((ValueError, TypeError)):  # shapes are checked in tests
    metrics.bootstrap_interval(np.zeros(4), items=np.arange(3))


def test_a_class_wins_alone():
  nan = np.nan
  scores = [[0, 2, 1], [1, 1, 0], [nan, 1, 0], [nan] * 3, [-np.inf, 0, -1]]
  found = metrics.predictions(np.asarray(scores, np.float64))
  assert found.tolist() == [1, -1, -1, -1, 1]


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


def test_roc_auc_against_pairs():
  """The area by counting pairs; the interval by resampling items."""
  rng = np.random.default_rng(0)
  positive = rng.random(300) < 0.3
  scores = np.round(rng.normal(size=300) + positive, 1)  # with ties

  def counted(rows):
    up, down = scores[rows][positive[rows]], scores[rows][~positive[rows]]
    above = up[:, None] > down[None]
    return np.mean(above + 0.5 * (up[:, None] == down[None]))

  area, interval = metrics.roc_auc(scores, positive)
  assert area == pytest.approx(counted(np.arange(300)))
  drawn = [counted(rng.integers(300, size=300)) for _ in range(1000)]
  np.testing.assert_allclose(
    interval, np.percentile(drawn, [2.5, 97.5]), atol=0.015
  )
  assert metrics.roc_auc(-scores, ~positive)[0] == pytest.approx(area)
  assert metrics.roc_auc(np.zeros(9), np.arange(9) < 4)[0] == 0.5
  exact = metrics.exact_interval(4, 4)
  assert metrics.roc_auc(np.arange(9.0), np.arange(9) > 4) == (1.0, exact)
  with pytest.raises(ValueError, match="0 positive and 3 negative"):
    metrics.roc_auc(np.zeros(3), np.zeros(3, bool))
  with pytest.raises(ValueError, match="not finite"):
    metrics.roc_auc(np.array([1.0, np.nan]), np.array([True, False]))
