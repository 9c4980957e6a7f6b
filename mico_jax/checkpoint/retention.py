"""Retention of checkpoints: the newest that verify, and the best.

A step counts only after all of it has been read back and verified. Otherwise a
damaged, partly removed or unfinished step would displace the last good one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mico_jax.checkpoint.manifest import CheckpointError


class Verified:
  """Remembers which steps verify, until their files change."""

  def __init__(
    self, check: Callable[[int], Any], stamp: Callable[[int], Any]
  ) -> None:
    """Takes the functions that verify a step.

    Args:
      check: reads a step and raises CheckpointError if it does not verify.
      stamp: value of a step that changes when its files change.
    """
    self._check, self._stamp = check, stamp
    self._known: dict[int, tuple[Any, str]] = {}

  def problem(self, step: int) -> str:
    """Why a step does not verify; "" if it does."""
    stamp = self._stamp(step)
    known = self._known.get(step)
    if known is None or known[0] != stamp:
      try:
        self._check(step)
        problem = ""
      except CheckpointError as e:
        problem = str(e)
      self._known[step] = known = (stamp, problem)
    return known[1]

  def newest(self) -> int | None:
    """The newest step that is known to verify."""
    good = [step for step, (_, problem) in self._known.items() if not problem]
    return max(good, default=None)

  def note(self, step: int) -> None:
    """Records that a step has just been read in full and verified."""
    self._known[step] = (self._stamp(step), "")


def superseded(
  steps: Sequence[int],
  keep: int,
  verifies: Callable[[int], bool],
  best: Callable[[Collection[int]], int | None] | None = None,
) -> list[int]:
  """The steps that may be deleted.

  Args:
    steps: existing ones, ascending.
    keep: number of the newest verified steps to keep.
    verifies: whether a step verifies; called only as often as needed.
    best: the step to keep although it is old, among given ones.

  Returns:
    Steps older than the kept ones; none while fewer than `keep` verify.
  """
  if len(steps) <= keep:
    return []
  newest: list[int] = []
  for step in reversed(steps):
    if len(newest) < keep and verifies(step):
      newest.append(step)
  if len(newest) < keep:
    return []
  old = [step for step in steps if step < newest[-1]]
  if best is not None:
    good = [step for step in old if verifies(step)]
    chosen = best([*good, *newest])
    old = [step for step in old if step != chosen]
  return old


def best_of(
  scores: Mapping[int, float], *, lower_is_better: bool
) -> int | None:
  """The step with the best score, the newer of equal ones; None: no scores."""
  sign = -1.0 if lower_is_better else 1.0
  return max(scores, key=lambda s: (sign * scores[s], s)) if scores else None
