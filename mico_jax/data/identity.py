"""Warnings about a source: repeated ids, other splits, notes on stderr.

A sample is identified by its source and its index there, so repeated ids are
allowed, and reported once.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

from mico_jax.data.index.repeats import Repeats, find_repeats

NAMED = 3  # most ids listed in a message


def tell(text: str) -> None:
  """Prints one line on stderr, except in worker processes."""
  if multiprocessing.parent_process() is None:
    print(f"mico-jax: {text}", file=sys.stderr, flush=True)


_SPLITS: set[tuple[str, str]] = set()  # path and split of what was told


def tell_split(path: str, split: str, own: object) -> None:
  """Reports once that a source does not choose samples by `split`.

  Args:
    path: of the source.
    split: of its config.
    own: what a sample says of its split; None: nothing.
  """
  if not split or not isinstance(own, str) or own == split:
    return
  if (path, split) not in _SPLITS:
    _SPLITS.add((path, split))
    tell(
      f"{path[:200]}: a sample of split {own!r:.60} is read, although split="
      f"{split!r}: this kind does not choose samples by it. Name the files of "
      "one split in `path`, use `where` if the kind has it, or set split='' if "
      "that is meant."
    )


def tell_repeated(
  source: str,
  hashes: Shaped[np.ndarray, " N"],
  id_of: Callable[[int], str],
  repeats: Repeats | None = None,
) -> None:
  """Reports ids that occur more than once in a source.

  Args:
    source: name of the source.
    hashes: int64, hash of the id of each sample; -1: it has no id.
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
