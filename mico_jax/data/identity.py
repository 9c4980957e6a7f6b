"""Warnings about a source: ids that repeat, and other notes on stderr.

A sample is identified by its source and its index there, so repeated ids are
allowed, and reported once.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

NAMED = 3  # most ids listed in a message


def tell(text: str) -> None:
  """Prints one line on stderr, except in worker processes."""
  if multiprocessing.parent_process() is None:
    print(f"mico-jax: {text}", file=sys.stderr, flush=True)


def tell_repeated(
  source: str, hashes: Shaped[np.ndarray, " N"], id_of: Callable[[int], str]
) -> None:
  """Reports ids that occur more than once in a source.

  Args:
    source: name of the source.
    hashes: int64, hash of the id of each sample; -1: it has no id.
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
