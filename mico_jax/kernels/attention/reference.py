"""Attention in plain JAX: the reference that every backend is compared with.

Products are computed in the dtype of the inputs, so float64 inputs give float64
results; nothing is fused and the whole score matrix is kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mico_jax.kernels.attention import drops
from mico_jax.kernels.attention.rules import Rules
from mico_jax.kernels.dtypes import accumulation_dtype

OFFICIAL_MASK_VALUE = -10000.0  # that the official code adds to masked scores


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
  dtype = q.dtype
  softmax_dtype = accumulation_dtype(dtype)
  scores = jnp.einsum(
    "blnh,bsnh->bnls",
    q,
    k,
    preferred_element_type=softmax_dtype,
  )
  scores = scores * jnp.asarray(scale, softmax_dtype)
  if bias is not None:
    scores = scores + bias.astype(softmax_dtype)
  mask = rules.dense(q.shape[1], k.shape[1])
  probs = masked_softmax(scores, mask, masked_rows)
  probs = probability_dropout(probs, dropout_rate, row_keys)
  return jnp.einsum("bnls,bsnh->blnh", probs.astype(dtype), v)


def masked_softmax(
  scores: Float[Array, "B N L S"],
  mask: Bool[Array, "#B #N #L #S"] | None,
  masked_rows: str,
) -> Float[Array, "B N L S"]:
  """Softmax over the last axis among the positions where `mask` is true.

  Args:
    scores: scaled products of queries and keys.
    mask: true where a query attends; None: everywhere.
    masked_rows: "zero": a row without any position gives 0 with zero gradient;
      "released": -10000 is added to masked scores, so that such a row behaves
      like an unmasked one, as in the official MiCo code.
  """
  if mask is None:
    return jax.nn.softmax(scores, axis=-1)
  if masked_rows == "released":
    bias = jnp.where(mask, 0.0, OFFICIAL_MASK_VALUE).astype(scores.dtype)
    return jax.nn.softmax(scores + bias, axis=-1)
  low = jnp.finfo(scores.dtype).min
  scores = jnp.where(mask, scores, low)
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.where(mask, jnp.exp(scores - top), 0.0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return weights / jnp.where(total == 0.0, 1.0, total)


def probability_dropout(
  probs: Float[Array, "B N L S"],
  rate: float,
  row_keys: Key[Array, " B"] | None,
) -> Float[Array, "B N L S"]:
  """Drops attention weights, at random by the key of each row alone.

  Args:
    probs: attention weights.
    rate: probability to drop a weight, in [0, 1).
    row_keys: one PRNG key per row; None: nothing is dropped.
  """
  if rate == 0.0 or row_keys is None:
    return probs
  _, heads, queries, keys = probs.shape
  index = lambda size, axis: jnp.arange(size, dtype=jnp.int32).reshape(
    [size if i == axis else 1 for i in range(4)]
  )
  seeds = drops.seeds(row_keys)[:, :, None, None, None]
  keep = drops.kept(
    drops.places(index(queries, 2), index(keys, 3)),
    seeds[:, 0],
    seeds[:, 1],
    head=index(heads, 1),
    rate=rate,
  )
  return jnp.where(keep, probs / (1.0 - rate), 0.0)
