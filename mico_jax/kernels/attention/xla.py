"""Attention left to XLA's fusion: runs everywhere, keeps the score matrix.

Products take the dtype of the inputs (bf16 on an accelerator) and accumulate
in float32; the softmax is float32. Queries are scaled before the product, in
float32, which costs L x H instead of L x S multiplications.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from mico_jax.kernels.attention import reference
from mico_jax.kernels.dtypes import accumulation_dtype


def attention(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  mask: Bool[Array, "#B #N #L #S"] | None,
  bias: Float[Array, "#B #N L S"] | None = None,
  scale: float,
  masked_rows: str,
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
) -> Float[Array, "B L N H"]:
  """Softmax attention; see `mico_jax.kernels.attention.attention`."""
  dtype = q.dtype
  softmax_dtype = accumulation_dtype(dtype)
  q = (q.astype(softmax_dtype) * jnp.asarray(scale, softmax_dtype)).astype(
    dtype
  )
  scores = jnp.einsum(
    "blnh,bsnh->bnls", q, k, preferred_element_type=softmax_dtype
  )
  if bias is not None:
    scores = scores + bias.astype(softmax_dtype)
  probs = reference.masked_softmax(scores, mask, masked_rows)
  probs = reference.probability_dropout(probs, dropout_rate, row_keys)
  out = jnp.einsum(
    "bnls,bsnh->blnh",
    probs.astype(dtype),
    v,
    preferred_element_type=softmax_dtype,
  )
  return out.astype(dtype)
