"""Ranks of a large gallery without its matrix of scores.

Queries are scored in blocks against all items; of each block only the ranks
leave the device. Blocks are split over the devices, and the last one is padded
with rows whose ranks are dropped.

Ranks are those of `metrics.ranks`: an irrelevant item with the same score is
ranked before. For that, equal embeddings must have equal scores. XLA gives
them; NumPy's products need not: where a matrix ends within a tile of the BLAS,
its last rows can differ in the last bit, which breaks ties by position.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

_BLOCK_BYTES = 2**27  # of the scores of a block on one device
_EXACT = 2**24  # the largest count that float32 holds
NONE = -1  # no further answer


def answers_of(relevant: Bool[np.ndarray, "Q G"]) -> Int[np.ndarray, "Q R"]:
  """Indices of the relevant items of each query, then `NONE`."""
  return answers_from(np.argwhere(relevant), len(relevant))


def answers_from(
  pairs: Int[np.ndarray, "P 2"], queries: int
) -> Int[np.ndarray, "Q R"]:
  """Indices of the relevant items of each query, then `NONE`.

  Args:
    pairs: a query and an item that is relevant to it, each pair once.
    queries: their number.
  """
  pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
  query, item = pairs[:, 0], pairs[:, 1]
  counts = np.bincount(query, minlength=queries)
  out = np.full((queries, max(1, counts.max(initial=0))), NONE, np.int32)
  place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
  out[query, place] = item
  return out


@jax.jit
def _block_ranks(
  queries: Float[Array, "B E"],
  items: Float[Array, "G E"],
  answers: Int[Array, "B R"],
) -> Int[Array, " B"]:
  """Ranks of one block, from 1."""
  scores = jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)
  given = answers >= 0
  found = jnp.take_along_axis(scores, jnp.maximum(answers, 0), axis=1)
  best = jnp.max(jnp.where(given, found, -jnp.inf), axis=1, keepdims=True)
  # XLA's CPU sums float32 in vectors and integers one by one; ones are exact.
  count = jnp.float32 if len(items) <= _EXACT else jnp.int32
  before = jnp.sum((scores >= best).astype(count), axis=1).astype(jnp.int32)
  return 1 + before - jnp.sum(given & (found >= best), axis=1, dtype=jnp.int32)


def streamed_ranks(
  queries: Float[np.ndarray, "Q E"],
  items: Float[np.ndarray, "G E"],
  answers: Int[np.ndarray, "Q R"],
  *,
  block: int = 0,
  devices: Sequence[Any] | None = None,
) -> Int[np.ndarray, " Q"]:
  """Rank of the best relevant item of each query, from 1, by inner product.

  Args:
    queries: embeddings.
    items: of the gallery, 1 or more.
    answers: distinct indices of relevant items, one or more each, then `NONE`;
      see `answers_of`.
    block: queries at once on one device; 0: as many as their scores fill
      128 MiB with.
    devices: that share the queries; None: all of this process.

  Raises:
    ValueError: for embeddings that are not finite, a query without answer, or
      an answer that is no item.
  """
  _check(queries, items, answers)
  devices = list(devices or jax.local_devices())
  block = block or max(8, min(1024, _BLOCK_BYTES // (4 * len(items))))
  rows = block * len(devices)
  mesh = Mesh(np.asarray(devices), ("rows",))
  split = NamedSharding(mesh, PartitionSpec("rows"))
  everywhere = NamedSharding(mesh, PartitionSpec())
  gallery = jax.device_put(items.astype(np.float32, copy=False), everywhere)
  put = functools.partial(jax.device_put, device=split)
  out = []
  for start in range(0, len(queries), rows):
    part = slice(start, start + rows)
    missing = rows - len(queries[part])
    padded = np.pad(queries[part], ((0, missing), (0, 0)))
    wanted = np.pad(answers[part], ((0, missing), (0, 0)))
    found = _block_ranks(
      put(padded.astype(np.float32, copy=False)), gallery, put(wanted)
    )
    out.append(np.asarray(found)[: rows - missing])
  return np.concatenate(out).astype(np.int64)


def _check(
  queries: Float[np.ndarray, "Q E"],
  items: Float[np.ndarray, "G E"],
  answers: Int[np.ndarray, "Q R"],
) -> None:
  """See `streamed_ranks`."""
  for name, rows in (("query", queries), ("item", items)):
    # A sum is finite only if all terms are, and needs no copy.
    bad = np.flatnonzero(~np.isfinite(rows.sum(axis=1)))
    if len(bad):
      raise ValueError(
        f"{name} {bad[0]} ({len(bad)} in all) has an embedding that is not "
        "finite; leave it out and count it."
      )
  if not len(queries) or not len(items):
    raise ValueError(f"{len(queries)} queries and {len(items)} items to rank.")
  without = np.flatnonzero((answers < 0).all(axis=1))
  if len(without):
    raise ValueError(
      f"query {without[0]} has no relevant item; leave such queries out."
    )
  if answers.max() >= len(items):
    raise ValueError(f"answer {answers.max()} of {len(items)} items.")
