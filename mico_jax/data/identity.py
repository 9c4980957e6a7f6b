"""Samples are known by source and index; ids that repeat are told once."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable

import numpy as np

NAMED = 3  # ids that a message lists


def tell(text: str) -> None:
  """One line on stderr; worker processes open the same data and are silent."""
  if multiprocessing.parent_process() is None:
    print(f"mico-jax: {text}", file=sys.stderr, flush=True)


def tell_repeated(
  source: str, hashes: np.ndarray, id_of: Callable[[int], str]
) -> None:
  """Counts and names the ids that occur more than once.

  Args:
    source: name of the source.
    hashes: int64, of the id of each sample; -1: it has none.
    id_of: index -> id.
  """
  values, first, counts = np.unique(
    hashes, return_index=True, return_counts=True
  )
  repeated = np.sort(first[(counts > 1) & (values != -1)])
  if not len(repeated):
    return
  names = [id_of(int(i)) for i in repeated[:NAMED]]
  names = [n if len(n) <= 40 else f"{n[:40]}..." for n in names]
  more = ", ..." if len(repeated) > NAMED else ""
  occur = "id occurs" if len(repeated) == 1 else "ids occur"
  most = int(counts[values != -1].max())
  often = "twice" if most == 2 else f"up to {most} times"
  tell(
    f"source {source!r}: {len(repeated)} {occur} {often} "
    f"({', '.join(names)}{more}); samples are kept apart by their index."
  )
