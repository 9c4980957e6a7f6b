"""Intervals of an average over several measurements, seeds and items.

The runs of a point measure the same items, so a draw takes items once for all
its seeds and, as measurements are of the same gallery, for all of these. It
takes seeds with replacement, too. Of few seeds that spreads too little, by
(S - 1) / S in variance, so what sets a seed apart from their mean is scaled
up by the root of S / (S - 1).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

NUM = 1000  # draws
LEVEL = 95.0  # percent


class Values(NamedTuple):
  """Values of one measurement by one run.

  Attributes:
    values: one per query.
    items: which item of the gallery each is of.
  """

  values: Float[np.ndarray, " N"]
  items: Int[np.ndarray, " N"]


@functools.lru_cache(maxsize=4)
def item_weights(
  size: int, *, num: int = NUM, seed: int = 0
) -> Float[np.ndarray, "R I"]:
  """How often each draw takes each item of a gallery.

  The same for the same arguments, so that points which measure one gallery are
  drawn together.

  Args:
    size: items of the gallery.
    num: draws.
    seed: of the draws.
  """
  rng = np.random.default_rng(seed)
  share = np.full(size, 1.0 / size)
  weights = rng.multinomial(size, share, size=num).astype(np.float64)
  weights.flags.writeable = False  # kept for the next call
  return weights


def drawn_means(
  runs: Sequence[Sequence[Values]], *, num: int = NUM, seed: int = 0
) -> Float[np.ndarray, " R"]:
  """Draws of the average over measurements and seeds.

  Args:
    runs: the measurements of each seed, in the same order.
    num: draws.
    seed: of the draws.

  Raises:
    ValueError: for no runs or measurements, or unequal numbers of them.
  """
  if not runs or not runs[0] or len({len(run) for run in runs}) > 1:
    raise ValueError(
      f"{[len(run) for run in runs]} measurements of the seeds: expected as "
      "many of each, one or more."
    )
  size = 1 + max(int(items.max()) for run in runs for _, items in run)
  weights = item_weights(size, num=num, seed=seed)
  means = np.stack([_means(run, weights) for run in runs], axis=1)
  count = len(runs)
  centre = means.mean(axis=1, keepdims=True)
  if count > 1:
    means = centre + (means - centre) * np.sqrt(count / (count - 1))
  picked = np.random.default_rng(seed + 1).integers(count, size=(num, count))
  return np.take_along_axis(means, picked, axis=1).mean(axis=1)


def _means(
  run: Sequence[Values], weights: Float[np.ndarray, "R I"]
) -> Float[np.ndarray, " R"]:
  """Draws of the average over the measurements of one run."""
  total = np.zeros(len(weights))
  size = weights.shape[1]
  for values, items in run:
    sums = np.bincount(items, weights=values, minlength=size)
    counts = np.bincount(items, minlength=size).astype(np.float64)
    total += (weights @ sums) / np.maximum(weights @ counts, 1.0)
  return total / len(run)


def interval(draws: Float[np.ndarray, " R"]) -> tuple[float, float]:
  """The 95% interval of draws."""
  tail = (100.0 - LEVEL) / 2
  low, high = np.percentile(draws, [tail, 100.0 - tail])
  return float(low), float(high)
