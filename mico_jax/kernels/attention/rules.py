"""Attention masks described by rules: lengths, segments, causal order.

Backends that keep the scores combine the rules into one boolean mask; kernels
take them as integer ids of keys and queries, and a diagonal.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "mask",
    "kv_lengths",
    "prefix_lengths",
    "query_segments",
    "kv_segments",
    "first_query",
  ],
  meta_fields=["causal"],
)
@dataclasses.dataclass(frozen=True)
class Rules:
  """The rules of one call; a query sees the keys that all of them allow.

  Attributes:
    mask: true where a query attends to a key.
    kv_lengths: keys at or beyond this index are hidden.
    prefix_lengths: with `causal`: number of first positions that see each
      other.
    query_segments: segment of each query, which sees only keys of the same one.
    kv_segments: segment of each key, any integer >= 0.
    first_query: with `causal`: position of the first query among the keys,
      where a device holds a share of the queries; None: 0.
    causal: query i sees keys 0..i.
  """

  mask: Bool[Array, "#B #N #L #S"] | None = None
  kv_lengths: Int[Array, " B"] | None = None
  prefix_lengths: Int[Array, " #B"] | None = None
  query_segments: Int[Array, "B L"] | None = None
  kv_segments: Int[Array, "B S"] | None = None
  first_query: Int[Array, ""] | None = None
  causal: bool = False

  def dense(
    self, num_queries: int, num_keys: int, *, first_query: int | Array = 0
  ) -> Bool[Array, "#B #N #L #S"] | None:
    """All rules as one boolean mask; None if nothing is hidden.

    Args:
      num_queries: L.
      num_keys: S.
      first_query: index of the first of these queries in the row; `mask` and
        `query_segments` hold only these.
    """
    masks = [] if self.mask is None else [self.mask]
    keys = jnp.arange(num_keys, dtype=jnp.int32)[None, None, None, :]
    if self.kv_lengths is not None:
      lengths = self.kv_lengths.astype(jnp.int32)
      masks.append(keys < lengths[:, None, None, None])
    if self.query_segments is not None and self.kv_segments is not None:
      queries = self.query_segments[:, None, :, None]
      masks.append(queries == self.kv_segments[:, None, None, :])
    if self.causal:
      rows = jnp.arange(num_queries, dtype=jnp.int32) + first_query
      if self.first_query is not None:
        rows = rows + self.first_query
      last_seen = rows[None, None, :, None]
      if self.prefix_lengths is not None:
        lengths = self.prefix_lengths.astype(jnp.int32)
        last_seen = jnp.maximum(last_seen, lengths[:, None, None, None] - 1)
      masks.append(keys <= last_seen)
    return functools.reduce(jnp.logical_and, masks) if masks else None

  def key_ids(self, batch: int, num_keys: int) -> Int[Array, "B S"] | None:
    """An id per key; a query sees the keys whose id equals its own.

    The segment of the key (-1: hidden) if there are segments, else 1 for
    visible and 0 for hidden keys; None if no rule concerns keys alone.

    Raises:
      NotImplementedError: for a mask that differs between queries or heads.
    """
    seen = []
    if self.mask is not None:
      if self.mask.shape[1] != 1 or self.mask.shape[2] != 1:
        raise NotImplementedError(
          f"a mask that differs between queries or heads {self.mask.shape}; "
          "use causal, prefix_lengths or segments instead"
        )
      seen.append(self.mask[:, 0, 0, :])
    if self.kv_lengths is not None:
      keys = jnp.arange(num_keys, dtype=jnp.int32)[None]
      seen.append(keys < self.kv_lengths.astype(jnp.int32)[:, None])
    visible = functools.reduce(jnp.logical_and, seen) if seen else None
    if self.kv_segments is not None:
      ids = self.kv_segments.astype(jnp.int32)
      if visible is not None:
        ids = jnp.where(visible, ids, -1)
    elif visible is not None:
      ids = visible.astype(jnp.int32)
    else:
      return None
    return jnp.broadcast_to(ids, (batch, num_keys))
