"""Metrics of a step, aggregated over steps without waiting for the device.

A step returns `{name: Mean}`, sums and weights as device scalars. The
aggregator only keeps references; nothing is copied until `compute`, which
fetches everything at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from mico_jax.objectives.base import Mean


class Aggregator:
  """Means over the steps added since the last `compute`."""

  def __init__(self) -> None:
    """Starts empty."""
    self._pending: list[Mapping[str, Mean]] = []

  def __len__(self) -> int:
    """Steps added since the last `compute`."""
    return len(self._pending)

  def add(self, metrics: Mapping[str, Mean]) -> None:
    """Remembers the metrics of one step; does not block."""
    self._pending.append(metrics)

  def compute(self) -> dict[str, float]:
    """Fetches, averages and forgets; names without any weight are left out.

    Blocks until the last added step is done.
    """
    fetched = jax.device_get(self._pending)
    self._pending = []
    return merge(fetched)


def merge(steps: list[Mapping[str, Mean]]) -> dict[str, float]:
  """Weighted means over several steps of host values."""
  totals: dict[str, np.ndarray] = {}
  for metrics in steps:
    for name, mean in metrics.items():
      pair = np.asarray([mean.total, mean.count], np.float64)
      totals[name] = totals[name] + pair if name in totals else pair
  return {
    name: float(total / count)
    for name, (total, count) in totals.items()
    if count > 0 or np.isnan(count)
  }
