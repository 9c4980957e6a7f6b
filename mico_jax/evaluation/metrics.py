"""Measures on score matrices and their uncertainty, in NumPy.

Everything is a function of arrays, deterministic for a given seed. Ranks are
pessimistic: an irrelevant item with the same score counts as ranked before, so
a model that scores all items alike finds nothing instead of everything.

Intervals resample items, each with all its values (the five captions of a
photo, the questions of a video), as values of an item are not independent. Of
shares near 0 and 1 the bootstrap says too little, and nothing of ten hits in
ten; there the exact interval of a share stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

_CHUNK = 2_000_000  # counts drawn at once by the bootstrap


class Interval(NamedTuple):
  """A percentile interval."""

  low: float
  high: float


class Difference(NamedTuple):
  """A paired comparison.

  Attributes:
    mean: of `b - a`.
    interval: of that mean.
    p_value: one-sided share of resamples in which b is not better than a.
  """

  mean: float
  interval: Interval
  p_value: float


def ranks(
  scores: Float[np.ndarray, "Q G"], relevant: Bool[np.ndarray, "Q G"]
) -> Int[np.ndarray, " Q"]:
  """Rank of the best relevant item of each query, from 1.

  Args:
    scores: higher is better; NaN ranks last if relevant and first if not.
    relevant: which items answer a query; one or more each.

  Raises:
    ValueError: for shapes that differ or a query without relevant item.
  """
  if scores.shape != relevant.shape:
    raise ValueError(
      f"scores {scores.shape} and relevant {relevant.shape} differ in shape."
    )
  if not relevant.any(axis=1).all():
    query = int(np.argmin(relevant.any(axis=1)))
    raise ValueError(
      f"query {query} has no relevant item; leave such queries out."
    )
  bad = np.isnan(scores)
  best = np.where(relevant & ~bad, scores, -np.inf).max(axis=1, keepdims=True)
  before = ~relevant & (bad | (scores >= best))
  return 1 + before.sum(axis=1)


def recall_at(ranks: Int[np.ndarray, " Q"], k: int) -> Float[np.ndarray, " Q"]:
  """1 where a rank is `k` or better, else 0; the mean is R@k."""
  return (ranks <= k).astype(np.float64)


def average_precision(
  scores: Float[np.ndarray, "Q G"], relevant: Bool[np.ndarray, "Q G"]
) -> Float[np.ndarray, " Q"]:
  """Average precision of each query; the mean is mAP.

  Ties count against the relevant items. NaN ranks last if relevant and first
  if not.

  Raises:
    ValueError: as `ranks`.
  """
  ranks(scores, relevant)  # checks
  bad = np.isnan(scores)
  scores = np.where(bad, np.where(relevant, -np.inf, np.inf), scores)
  out = np.empty(len(scores))
  for q, (row, hit) in enumerate(zip(scores, relevant, strict=True)):
    # By falling score; among equals the irrelevant first.
    hit = hit[np.lexsort((hit, -row))]
    places = np.flatnonzero(hit) + 1
    out[q] = np.mean(np.arange(1, len(places) + 1) / places)
  return out


def accuracy(
  predicted: Sequence[object] | np.ndarray,
  target: Sequence[object] | np.ndarray,
) -> Float[np.ndarray, " N"]:
  """1 where a prediction equals its target, else 0; the mean is accuracy.

  Raises:
    ValueError: for unequal lengths.
  """
  if len(predicted) != len(target):
    raise ValueError(f"{len(predicted)} predictions for {len(target)} targets.")
  pairs = zip(predicted, target, strict=True)
  return np.asarray([float(p == t) for p, t in pairs])


def predictions(scores: Float[np.ndarray, "N C"]) -> Int[np.ndarray, " N"]:
  """The class with the highest score of each row; -1: no class alone has it.

  A row that holds NaN, or whose highest score several classes share, predicts
  no class, so neither is ever right by the order of the classes.

  Args:
    scores: higher is better.
  """
  best = scores.max(axis=1, keepdims=True)  # NaN where one is
  alone = (scores == best).sum(axis=1) == 1
  return np.where(alone, np.nan_to_num(scores).argmax(axis=1), -1)


def _resampled_means(
  values: Float[np.ndarray, "N ..."], num: int, rng: np.random.Generator
) -> Float[np.ndarray, "R ..."]:
  """Means over `num` resamples of the first axis, with replacement."""
  n = len(values)
  share = np.full(n, 1.0 / n)
  step = max(1, _CHUNK // n)
  parts = [
    rng.multinomial(n, share, size=min(step, num - start)) @ values / n
    for start in range(0, num, step)
  ]
  return np.concatenate(parts)


def _by_item(
  values: Float[np.ndarray, " N"], items: Int[np.ndarray, " N"] | None
) -> tuple[Float[np.ndarray, " I"], Int[np.ndarray, " I"]]:
  """Sum and number of the values of each item."""
  values = np.asarray(values, np.float64)
  if not len(values):
    raise ValueError("no values to resample.")
  if items is None:
    return values, np.ones(len(values), np.int64)
  if len(items) != len(values):
    raise ValueError(f"{len(items)} items for {len(values)} values.")
  _, item = np.unique(items, return_inverse=True)
  return np.bincount(item, weights=values), np.bincount(item)


def bootstrap_interval(
  values: Float[np.ndarray, " N"],
  *,
  items: Int[np.ndarray, " N"] | None = None,
  num: int = 1000,
  seed: int = 0,
  level: float = 0.95,
) -> Interval:
  """Percentile bootstrap interval of the mean.

  Args:
    values: one per query, caption, ...
    items: which item each value is of; items are resampled with all their
      values. None: each is of its own.
    num: resamples.
    seed: of the draw.
    level: coverage, in (0, 1).

  Raises:
    ValueError: for no values, or another number of items.
  """
  sums, counts = _by_item(values, items)
  rng = np.random.default_rng(seed)
  drawn = _resampled_means(
    np.stack([sums, counts.astype(np.float64)], axis=1), num, rng
  )
  means = drawn[:, 0] / drawn[:, 1]
  tail = 50.0 * (1.0 - level)
  low, high = np.percentile(means, [tail, 100.0 - tail])
  return Interval(float(low), float(high))


def exact_interval(hits: float, n: int, *, level: float = 0.95) -> Interval:
  """Exact (Clopper-Pearson) interval of a share.

  Args:
    hits: right answers, in [0, n]; a sum of shares may be broken.
    n: independent answers, 1 or more.
    level: coverage at least, in (0, 1).

  Raises:
    ValueError: for numbers out of range.

  Source: Clopper and Pearson, Biometrika 26 (1934).
  """
  from scipy.special import betaincinv  # slow to import

  if n < 1 or not -1e-9 <= hits <= n + 1e-9:
    raise ValueError(f"{hits=} of {n=}: expected 0 <= hits <= n and n >= 1.")
  hits, tail = min(max(hits, 0.0), float(n)), (1.0 - level) / 2
  low = betaincinv(hits, n - hits + 1, tail) if hits > 0 else 0.0
  high = betaincinv(hits + 1, n - hits, 1 - tail) if hits < n else 1.0
  return Interval(float(low), float(high))


def roc_auc(
  scores: Float[np.ndarray, " N"],
  positive: Bool[np.ndarray, " N"],
  *,
  level: float = 0.95,
) -> tuple[float, Interval]:
  """Area under the ROC curve, and its interval over the items of both classes.

  It is the probability that a positive item has a higher score than a negative
  one; equal scores count half. It is no mean over items, so its variance is
  that of both classes (DeLong), on the scale of log-odds, where it stays within
  0 and 1. An area of 0 or 1, or of one item of a class, has the exact interval
  of the smaller class.

  Args:
    scores: higher is rather positive.
    positive: the class of each item; both must occur.
    level: coverage, in (0, 1).

  Raises:
    ValueError: for a score that is not finite, or items of one class only.

  Source: DeLong et al., Biometrics 44 (1988).
  """
  from scipy.special import ndtri  # slow to import
  from scipy.stats import rankdata

  if not np.isfinite(scores).all():
    raise ValueError("scores that are not finite have no order.")
  sides = scores[positive].astype(np.float64), scores[~positive].astype("f8")
  counts = [len(x) for x in sides]
  if not all(counts):
    raise ValueError(f"{counts[0]} positive and {counts[1]} negative items.")
  whole = rankdata(np.concatenate(sides))
  # Of each positive item the share of negative ones below, and the reverse.
  below = (whole[: counts[0]] - rankdata(sides[0])) / counts[1]
  above = 1 - (whole[counts[0] :] - rankdata(sides[1])) / counts[0]
  area = float(below.mean())
  fewer = min(counts)
  if fewer < 2 or not 0 < area < 1:
    return area, exact_interval(area * fewer, fewer, level=level)
  variance = sum(x.var(ddof=1) / len(x) for x in (below, above))
  reach = ndtri((1 + level) / 2) * np.sqrt(variance) / (area * (1 - area))
  odds = np.log(area / (1 - area)) + np.array([-reach, reach])
  low, high = 1 / (1 + np.exp(-odds))
  return area, Interval(float(low), float(high))


FEW = 5  # right or wrong items from which on the bootstrap is trusted


def share_interval(
  values: Float[np.ndarray, " N"],
  *,
  items: Int[np.ndarray, " N"] | None = None,
  num: int = 1000,
  seed: int = 0,
  level: float = 0.95,
) -> Interval:
  """Interval of the mean of values in [0, 1]: the bootstrap, or an exact one.

  The exact interval stands where fewer than `FEW` items are right or wrong. It
  takes an item for one answer that is right by the share of its values, which
  is at least as wide as needed.

  Args:
    values: as in `bootstrap_interval`, in [0, 1].
    items: as there.
    num: resamples.
    seed: of the draw.
    level: coverage, in (0, 1).

  Raises:
    ValueError: as there, or for values out of range.
  """
  sums, counts = _by_item(values, items)
  n, share = len(sums), float(sums.sum() / counts.sum())
  if n * min(share, 1 - share) < FEW:
    return exact_interval(n * share, n, level=level)
  return bootstrap_interval(
    values, items=items, num=num, seed=seed, level=level
  )


def paired_bootstrap(
  a: Float[np.ndarray, "... N"],
  b: Float[np.ndarray, "... N"],
  *,
  num: int = 10_000,
  seed: int = 0,
  level: float = 0.95,
) -> Difference:
  """Compares two systems on the same items.

  Items are resampled in pairs; with a leading axis of runs (random seeds of
  training), runs are resampled as well, so the interval covers both.

  Args:
    a: per-item values of the first system, [N] or [S, N].
    b: of the second.
    num: resamples.
    seed: of the draw.
    level: coverage of the interval, in (0, 1).

  Raises:
    ValueError: for unequal shapes or no items.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim not in (1, 2) or not a.size:
    raise ValueError(
      f"cannot pair values of shape {a.shape} and {b.shape}; expected two "
      "equal shapes [N] or [runs, N]."
    )
  delta = np.atleast_2d(b - a)
  rng = np.random.default_rng(seed)
  means = _resampled_means(delta.T, num, rng)  # [num, runs]
  runs = len(delta)
  if runs > 1:
    picked = rng.integers(runs, size=(num, runs))
    means = np.take_along_axis(means, picked, axis=1)
  means = means.mean(axis=1)
  tail = 50.0 * (1.0 - level)
  low, high = np.percentile(means, [tail, 100.0 - tail])
  return Difference(
    mean=float(delta.mean()),
    interval=Interval(float(low), float(high)),
    p_value=float((means <= 0).mean()),
  )
