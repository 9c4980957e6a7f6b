"""Self-attention with fewer heads of keys and values than of queries.

Source: grouped-query attention, arXiv:2305.13245.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax import axes
from mico_jax.kernels.attention import attention
from mico_jax.layers import dropout
from mico_jax.layers.attention import (
  ATTENTION_OUT,
  ATTENTION_QKV,
  Cache,
  extend_cache,
)
from mico_jax.layers.cross_attention import repeat_heads
from mico_jax.layers.mlp import Dense
from mico_jax.layers.rotary import rotate


class GroupedAttention(nn.Module):
  """Self-attention with rotary positions and without biases.

  Queries, keys and values come from one kernel, in this order.

  Attributes:
    num_heads: N, of queries; must divide the width.
    kv_heads: M, of keys and values; must divide N.
    causal: whether a token sees itself and its left only.
    dtype: compute dtype.
    backend: see `mico_jax.kernels.attention`.
    masked_rows: see `mico_jax.kernels.attention`.
    dropout_rate: of attention weights.
  """

  num_heads: int
  kv_heads: int
  causal: bool = True
  dtype: Any = jnp.float32
  backend: str = "auto"
  masked_rows: str = "zero"
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L W"],
    *,
    rotary: tuple[Float[Array, "#B L H"], Float[Array, "#B L H"]],
    mask: Bool[Array, "#B #N #L #S"] | None = None,
    prefix_lengths: Int[Array, " B"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
    cache: Cache | None = None,
  ) -> tuple[Float[Array, "B L W"], tuple[Array, Array]]:
    """Attends among the tokens, or from new tokens to a cache.

    Args:
      x: tokens.
      rotary: cosine and sine that turn queries and keys.
      mask: see `mico_jax.layers.attention.SelfAttention`.
      prefix_lengths: likewise.
      row_keys: one key per row; None: no dropout.
      cache: see `mico_jax.layers.attention.SelfAttention`; of M heads.

    Returns:
      The attended tokens, and keys and values [B _ M H], turned: of all tokens
      without a cache, else the updated cache.
    """
    width = x.shape[-1]
    head_dim = width // self.num_heads

    groups = (self.num_heads, self.kv_heads, self.kv_heads)
    dense = Dense(
      sum(groups) * head_dim,
      self.dtype,
      use_bias=False,
      names=(axes.EMBED, axes.QKV),
      name="qkv",
    )
    packed = checkpoint_name(dense(x), ATTENTION_QKV)
    heads = packed.reshape(*x.shape[:2], sum(groups), head_dim)
    q, k, v = jnp.split(heads, np.cumsum(groups)[:2], axis=2)
    q, k = rotate(q, *rotary), rotate(k, *rotary)
    kv = (k, v)
    if cache is not None:
      kv, (k, v) = extend_cache(k, v, cache)
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, dropout.ATTENTION)
    out = attention(
      q,
      repeat_heads(k, self.num_heads),
      repeat_heads(v, self.num_heads),
      mask=mask,
      causal=self.causal and cache is None,
      prefix_lengths=prefix_lengths if self.causal else None,
      masked_rows=self.masked_rows,
      dropout_rate=self.dropout_rate,
      row_keys=row_keys,
      backend=self.backend,
    )
    out = checkpoint_name(out.reshape(x.shape), ATTENTION_OUT)
    names = (axes.QKV, axes.EMBED)
    proj = Dense(width, self.dtype, use_bias=False, names=names, name="proj")
    return proj(out), kv
