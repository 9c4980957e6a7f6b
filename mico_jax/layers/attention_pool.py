"""Attention pooling: a learned query gathers the tokens of a frame.

Source: SigLIP, arXiv:2303.15343, whose encoders end in such a head; multihead
attention pooling, arXiv:1810.00825.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mico_jax import axes
from mico_jax.layers.embed import TABLE_INIT
from mico_jax.layers.mlp import Dense, Mlp
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter


class AttentionPool(nn.Module):
  """Attention of one learned query over tokens, then a residual MLP.

  Attributes:
    num_heads: of the attention.
    mlp_dim: hidden width of the MLP.
    mlp: key of `mico_jax.layers.mlp.MLPS`.
    norm_eps: of the LayerNorm before the MLP.
    dtype: compute dtype.
  """

  num_heads: int
  mlp_dim: int
  mlp: str = "gelu_tanh"
  norm_eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    *,
    mask: Bool[Array, "B L"] | None = None,
  ) -> Float[Array, "B 1 D"]:
    """Returns one token per frame.

    Args:
      x: tokens.
      mask: true at valid tokens; None: all are. A frame without any attends to
        nothing.
    """
    batch, _, width = x.shape
    probe = parameter(self, "probe", TABLE_INIT, (width,), (axes.EMBED,))
    probe = jnp.broadcast_to(
      probe.astype(self.dtype)[None, None], (batch, 1, width)
    )
    rows = jnp.concatenate([probe, x.astype(self.dtype)], axis=1)
    packed = Dense(3 * width, self.dtype, name="qkv")(rows)
    packed = packed.reshape(batch, rows.shape[1], 3, self.num_heads, -1)
    query, keys, values = packed[:, 0, 0], packed[:, 1:, 1], packed[:, 1:, 2]
    scores = jnp.einsum("bnh,blnh->bnl", query, keys).astype(jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
      low = jnp.finfo(scores.dtype).min
      scores = jnp.where(mask[:, None], scores, low)
    weights = jax.nn.softmax(scores, axis=-1)
    if mask is not None:
      weights = jnp.where(mask[:, None], weights, 0)
    y = jnp.einsum("bnl,blnh->bnh", weights.astype(self.dtype), values)
    y = Dense(width, self.dtype, name="proj")(y.reshape(batch, 1, width))
    norm = LayerNorm(self.norm_eps, name="norm")
    mlp = Mlp(self.mlp_dim, self.dtype, self.mlp, name="mlp")
    return y + mlp(norm(y))
