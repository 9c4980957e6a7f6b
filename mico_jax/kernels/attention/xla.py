"""Attention in plain JAX, fused by XLA: runs on every platform.

Products take the dtype of the inputs (bfloat16 on an accelerator) and
accumulate in float32; the softmax is float32. Queries are scaled before the
product, in float32, which costs L x H instead of L x S multiplications.

The score matrix is kept if a device holds at most `SCORE_BYTES` of it. Above
that, chunks of queries are processed one after the other and the backward pass
recomputes the scores of a chunk, so memory grows with one chunk only (as in
arXiv:2112.05682, without its chunks of keys).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mico_jax.kernels import target
from mico_jax.kernels.attention import reference
from mico_jax.kernels.attention.rules import Rules
from mico_jax.kernels.attention.tpu_devices import splits
from mico_jax.kernels.dtypes import accumulation_dtype

SCORE_BYTES = 2**30  # scores of a device above which queries are chunked
CHUNK_BYTES = 2**28  # largest scores of a chunk, which has at least one query


def attention(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  rules: Rules,
  bias: Float[Array, "#B #N L S"] | None = None,
  scale: float,
  masked_rows: str,
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
) -> Float[Array, "B L N H"]:
  """Softmax attention; see `mico_jax.kernels.attention.attention`."""
  softmax_dtype = accumulation_dtype(q.dtype)
  scaled = q.astype(softmax_dtype) * jnp.asarray(scale, softmax_dtype)
  q = scaled.astype(q.dtype)
  num_queries = q.shape[1]
  batch, num_heads = _of_a_device(q.shape[0], q.shape[2])
  row_bytes = batch * num_heads * k.shape[1] * softmax_dtype.itemsize
  drops = dropout_rate > 0.0 and row_keys is not None  # drawn for all scores
  if row_bytes * num_queries > SCORE_BYTES and not drops:
    rows = max(CHUNK_BYTES // row_bytes, 1)
    return _chunked(
      q, k, v, rules=rules, bias=bias, masked_rows=masked_rows, rows=rows
    )
  mask = rules.dense(num_queries, k.shape[1])
  probs = _weights(q, k, mask, bias, masked_rows)
  probs = reference.probability_dropout(probs, dropout_rate, row_keys)
  return _mix(probs, v)


def _of_a_device(batch: Any, num_heads: int) -> tuple[int, int]:
  """Rows and heads whose scores one device holds."""
  if not isinstance(batch, int):
    batch = 1  # symbolic dimension of an exported graph
  machine = target.current()
  if not splits(machine):
    return batch, num_heads
  rows = machine.parts(machine.batch_axes)
  heads = machine.parts(machine.head_axes)
  return -(-batch // rows), -(-num_heads // heads)


def _weights(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  mask: Bool[Array, "#B #N #L #S"] | None,
  bias: Float[Array, "#B #N L S"] | None,
  masked_rows: str,
) -> Float[Array, "B N L S"]:
  """Attention weights of scaled queries."""
  dtype = accumulation_dtype(q.dtype)
  scores = jnp.einsum("blnh,bsnh->bnls", q, k, preferred_element_type=dtype)
  if bias is not None:
    scores = scores + bias.astype(dtype)
  return reference.masked_softmax(scores, mask, masked_rows)


def _mix(
  probs: Float[Array, "B N L S"], v: Float[Array, "B S N H"]
) -> Float[Array, "B L N H"]:
  out = jnp.einsum(
    "bnls,bsnh->blnh",
    probs.astype(v.dtype),
    v,
    preferred_element_type=accumulation_dtype(v.dtype),
  )
  return out.astype(v.dtype)


def _chunked(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  rules: Rules,
  bias: Float[Array, "#B #N L S"] | None,
  masked_rows: str,
  rows: int,
) -> Float[Array, "B L N H"]:
  """Attention of scaled queries, `rows` of them at a time."""
  num_queries, num_keys = q.shape[1], k.shape[1]
  # Their gradients are summed over chunks, so not in bfloat16.
  wide_k, wide_v = (x.astype(accumulation_dtype(x.dtype)) for x in (k, v))
  chunks = -(-num_queries // rows)
  missing = chunks * rows - num_queries

  def split(x: Array | None, axis: int) -> Array | None:
    """Chunks of the queries on axis 0."""
    if x is None or x.shape[axis] != num_queries:
      return None
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    x = jnp.pad(x, widths)
    shape = (*x.shape[:axis], chunks, rows, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)

  per_query = rules.mask is not None and rules.mask.shape[2] == num_queries
  per_chunk = {
    "q": split(q, 1),
    "bias": split(bias, 2),
    "mask": split(rules.mask, 2) if per_query and num_queries > 1 else None,
    "segments": split(rules.query_segments, 1),
    "first": jnp.arange(chunks, dtype=jnp.int32) * rows,
  }

  @jax.checkpoint
  def one(chunk: Any) -> Array:
    here = Rules(
      mask=rules.mask if chunk["mask"] is None else chunk["mask"],
      kv_lengths=rules.kv_lengths,
      prefix_lengths=rules.prefix_lengths,
      query_segments=chunk["segments"],
      kv_segments=rules.kv_segments,
      first_query=rules.first_query,
      causal=rules.causal,
    )
    mask = here.dense(rows, num_keys, first_query=chunk["first"])
    here_k, here_v = wide_k.astype(k.dtype), wide_v.astype(v.dtype)
    probs = _weights(chunk["q"], here_k, mask, chunk["bias"], masked_rows)
    return _mix(probs, here_v)

  out = jnp.moveaxis(jax.lax.map(one, per_chunk), 0, 1)
  out = out.reshape(q.shape[0], chunks * rows, *q.shape[2:])
  return out[:, :num_queries]
