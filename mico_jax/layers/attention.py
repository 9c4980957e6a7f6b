"""Self-attention with a packed projection.

Queries, keys and values come from one kernel [D, 3D]; heads are split by a
reshape, so no transpose stands between projection and attention kernel.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax import axes
from mico_jax.kernels.attention import (
  attention,
  folded_scale,
  packed_attention,
)
from mico_jax.layers import dropout
from mico_jax.layers.fusion import add_bias
from mico_jax.layers.mlp import KERNEL_INIT, Dense
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter
from mico_jax.layers.rotary import rotate

# Names for remat policies; a third, of the kernel, is ATTENTION_SUMS.
ATTENTION_OUT = "attention_out"
ATTENTION_QKV = "attention_qkv"
# Flax collection of what is kept only for callers that make it mutable.
INSPECTED = "intermediates"
QUERIES_KEYS = "queries_keys"


# Bias of a packed projection -> its meaning.
BIASES = {
  "all": "one bias of all groups",
  "qv": "on queries and values, none on keys",
  "none": "none",
}


# Keys and values of C slots, and the slot to write.
Cache = tuple[Float[Array, "B C N H"], Float[Array, "B C N H"], Int[Array, ""]]


def extend_cache(
  k: Float[Array, "B L N H"], v: Float[Array, "B L N H"], cache: Cache
) -> tuple[
  tuple[Float[Array, "B C N H"], Float[Array, "B C N H"]],
  tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]],
]:
  """Writes the first token to a cache; the others follow behind it.

  Args:
    k: keys of the new tokens.
    v: their values.
    cache: of the tokens before.

  Returns:
    The updated cache, and the keys and values to attend to [B C+L-1 N H].
  """
  *old, position = cache
  start = (0, position, 0, 0)
  written = [
    jax.lax.dynamic_update_slice(o, x[:, :1].astype(o.dtype), start)
    for o, x in zip(old, (k, v), strict=True)
  ]
  seen = [
    jnp.concatenate([w, x[:, 1:]], axis=1)
    for w, x in zip(written, (k, v), strict=True)
  ]
  return (written[0], written[1]), (seen[0], seen[1])


def _bias(module: nn.Module, name: str, size: int) -> Float[Array, " D"]:
  return parameter(module, name, nn.initializers.zeros, (size,), (axes.QKV,))


class PackedProjection(nn.Module):
  """One kernel [D, num * D] whose outputs are `num` groups of heads.

  The first group may be scaled: the factor goes into the parameters before they
  are rounded to the compute dtype.

  Attributes:
    num: 3 for queries, keys and values; 2 for keys and values.
    num_heads: N.
    bias: key of `BIASES`.
    dtype: compute dtype.
    first_factor: on the first group.
  """

  num: int
  num_heads: int
  bias: str = "all"
  dtype: Any = jnp.float32
  first_factor: float = 1.0

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L P"]:
    """Returns the groups side by side; see `split_heads`."""
    width = x.shape[-1]
    factors = None
    if self.first_factor != 1.0:
      first = jnp.arange(self.num * width) < width
      factors = jnp.where(first, jnp.float32(self.first_factor), 1.0)
    kernel = parameter(
      self,
      "kernel",
      KERNEL_INIT,
      (width, self.num * width),
      (axes.EMBED, axes.QKV),
      dtype=self.dtype,
      factors=factors,
    )
    bias = None
    if self.bias == "qv":
      q_bias, v_bias = (_bias(self, f"{n}_bias", width) for n in "qv")
      bias = jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias])
    elif self.bias == "all":
      bias = _bias(self, "bias", self.num * width)
    if factors is not None and bias is not None:
      bias = bias * factors
    y = jnp.matmul(x.astype(self.dtype), kernel)
    if bias is not None:
      y = add_bias(y, bias.astype(self.dtype))
    return y

  def split_heads(
    self, y: Float[Array, "B L P"]
  ) -> tuple[Float[Array, "B L N H"], ...]:
    """Splits the result of a call into its `num` groups of heads."""
    heads = (*y.shape[:2], self.num_heads, -1)
    return tuple(p.reshape(heads) for p in jnp.split(y, self.num, axis=-1))


def attention_weights(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  mask: Bool[Array, "B S"] | None = None,
) -> Float[Array, "B N L S"]:
  """Softmax weights of queries and keys that `SelfAttention` keeps.

  Args:
    q: queries, as kept.
    k: keys, as kept.
    mask: true at the keys that may be attended to; None: all.
  """
  scale = folded_scale(q.shape[-1])[1]
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  scores = jnp.einsum("blnh,bsnh->bnls", q, k).astype(jnp.float32) * scale
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
  return jax.nn.softmax(scores, axis=-1)


class SelfAttention(nn.Module):
  """Multi-head self-attention.

  Attributes:
    num_heads: N; must divide the width.
    bias: see `PackedProjection`.
    causal: whether a token sees itself and its left only.
    dtype: compute dtype.
    backend: see `mico_jax.kernels.attention`.
    masked_rows: see `mico_jax.kernels.attention`.
    dropout_rate: of attention weights.
    norm_eps: of a LayerNorm before the output projection; None: no such norm.
  """

  num_heads: int
  bias: str = "all"
  causal: bool = False
  dtype: Any = jnp.float32
  backend: str = "auto"
  masked_rows: str = "zero"
  dropout_rate: float = 0.0
  norm_eps: float | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    *,
    mask: Bool[Array, "#B #N #L #S"] | None = None,
    prefix_lengths: Int[Array, " B"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
    cache: Cache | None = None,
    rotary: tuple[Float[Array, "#B L H"], Float[Array, "#B L H"]] | None = None,
  ) -> tuple[Float[Array, "B L D"], tuple[Array, Array]]:
    """Attends among the tokens, or from new tokens to a cache.

    Args:
      x: tokens.
      mask: true where a query may look.
      prefix_lengths: see `mico_jax.kernels.attention.attention`.
      row_keys: one key per row; None: no dropout.
      cache: (keys [B C N H], values [B C N H], position): only the first token
        of `x` is written, at `position`; the others follow behind the cache and
        are forgotten, so `mask` has C + L - 1 columns.
      rotary: cosine and sine [#B L H] that turn queries and keys, see
        `mico_jax.layers.rotary`; None: no rotary positions.

    Returns:
      The attended tokens, and keys and values: of all tokens without a cache,
      else the updated cache.
    """
    factor, scale = folded_scale(x.shape[-1] // self.num_heads)
    qkv = PackedProjection(
      3, self.num_heads, self.bias, self.dtype, factor, name="qkv"
    )
    packed = checkpoint_name(qkv(x), ATTENTION_QKV)
    q, k, v = qkv.split_heads(packed)
    if rotary is not None:
      q, k = rotate(q, *rotary), rotate(k, *rotary)
    if self.is_mutable_collection(INSPECTED):
      self.sow(INSPECTED, QUERIES_KEYS, (q, k))
    kv = (k, v)
    if cache is not None:
      kv, (k, v) = extend_cache(k, v, cache)
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, dropout.ATTENTION)
    options: dict[str, Any] = {
      "mask": mask,
      "causal": self.causal and cache is None,
      "prefix_lengths": prefix_lengths if self.causal else None,
      "scale": scale,
      "masked_rows": self.masked_rows,
      "dropout_rate": self.dropout_rate,
      "row_keys": row_keys,
      "backend": self.backend,
    }
    if rotary is None and cache is None:
      out = packed_attention(packed, num_heads=self.num_heads, **options)
    else:
      out = attention(q, k, v, **options).reshape(x.shape)
    out = checkpoint_name(out, ATTENTION_OUT)
    if self.norm_eps is not None:
      out = LayerNorm(self.norm_eps, name="norm")(out)
    names = (axes.QKV, axes.EMBED)
    return Dense(x.shape[-1], self.dtype, names=names, name="proj")(out), kv
