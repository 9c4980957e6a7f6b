"""Ranks of a large gallery: ours against blocks of NumPy products.

    python -m mico_jax.benchmarks.ranks --queries 100000 --items 100000

Both rank the same queries in alternating turns of one process, on all cores;
the table gives seconds and CPU seconds of all turns and the peak memory of the
process, which holds the embeddings twice (NumPy's and ours).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from mico_jax.evaluation.streamed_ranks import streamed_ranks

_BLOCK = 256  # queries of a NumPy product


def numpy_ranks(
  queries: Float[np.ndarray, "Q E"],
  items: Float[np.ndarray, "G E"],
  answers: Int[np.ndarray, "Q 1"],
) -> Int[np.ndarray, " Q"]:
  """Ranks of the one right item of each query, by blocks of products."""
  out = np.empty(len(queries), np.int64)
  for start in range(0, len(queries), _BLOCK):
    part = slice(start, start + _BLOCK)
    scores = queries[part] @ items.T
    best = np.take_along_axis(scores, answers[part], axis=1)
    out[part] = (scores >= best).sum(axis=1)
  return out


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=(__doc__ or "").partition("\n")[0]
  )
  parser.add_argument("--queries", type=int, default=20_000, metavar="N")
  parser.add_argument("--items", type=int, default=20_000, metavar="N")
  parser.add_argument("--dim", type=int, default=512, metavar="N")
  parser.add_argument("--turns", type=int, default=4, metavar="N")
  args = parser.parse_args()
  rng = np.random.default_rng(0)
  items = rng.standard_normal((args.items, args.dim), np.float32)
  items /= np.linalg.norm(items, axis=1, keepdims=True)
  answers = rng.integers(0, args.items, (args.queries, 1), np.int32)
  queries = rng.standard_normal((args.queries, args.dim), np.float32)
  # Ranks from the first to the middle of the gallery.
  queries *= rng.uniform(0.2, 3.0, (args.queries, 1)).astype(np.float32)
  queries += items[answers[:, 0]] * np.sqrt(args.dim).astype(np.float32)
  ways: dict[str, Callable[..., Int[np.ndarray, " Q"]]] = {
    "ours": streamed_ranks,
    "NumPy": numpy_ranks,
  }
  for rank in ways.values():  # compiles
    rank(queries[:8], items, answers[:8])
  spent = {name: np.zeros(2) for name in ways}
  differ, done = 0, 0
  for part in np.array_split(np.arange(args.queries), args.turns):
    found = []
    for name, rank in ways.items():
      start = time.perf_counter(), time.process_time()
      found.append(rank(queries[part], items, answers[part]))
      end = time.perf_counter(), time.process_time()
      spent[name] += np.subtract(end, start)
    differ += int((found[0] != found[1]).sum())
    done += len(part)
    print(f"{done} of {args.queries} queries", file=sys.stderr)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(f"{args.queries} x {args.items}, {args.dim} numbers")
  for name, (wall, cpu) in spent.items():
    print(f"{name:6} {wall:8.1f} s  {cpu:8.1f} CPU s")
  print(f"peak memory {peak:.2f} GiB; ranks that differ: {differ}")


if __name__ == "__main__":
  main()
