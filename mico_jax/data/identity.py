"""Samples are known by source and index; ids that repeat are told once."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable

import numpy as np

from mico_jax.data.index.repeats import Repeats, find_repeats

NAMED = 3  # ids that a message lists


def tell(text: str) -> None:
  """One line on stderr; worker processes open the same data and are silent."""
  if multiprocessing.parent_process() is None:
    print(f"mico-jax: {text}", file=sys.stderr, flush=True)


def tell_repeated(
  source: str,
  hashes: np.ndarray,
  id_of: Callable[[int], str],
  repeats: Repeats | None = None,
) -> None:
  """Counts and names the ids that occur more than once.

  Args:
    source: name of the source.
    hashes: int64, of the id of each sample; -1: it has none.
    id_of: index -> id.
    repeats: what is known of them already.
  """
  repeats = find_repeats(hashes, named=NAMED) if repeats is None else repeats
  if not repeats.count:
    return
  names = [id_of(i) for i in repeats.first]
  names = [n if len(n) <= 40 else f"{n[:40]}..." for n in names]
  more = ", ..." if repeats.count > NAMED else ""
  occur = "id occurs" if repeats.count == 1 else "ids occur"
  often = "twice" if repeats.most == 2 else f"up to {repeats.most} times"
  tell(
    f"source {source!r}: {repeats.count} {occur} {often} "
    f"({', '.join(names)}{more}); samples are kept apart by their index."
  )
