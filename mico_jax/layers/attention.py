"""Self-attention with a packed projection, and cross-attention to a context.

Queries, keys and values come from one kernel [D, 3D]; heads are split by a
reshape, so no transpose stands between projection and attention kernel. The
keys and values of a context are not computed here: they are projected once per
step for all layers (`models.text_tower`).
"""

from __future__ import annotations

from collections.abc import Sequence
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


# Biases of a packed projection -> what they are.
BIASES = {
  "all": "one bias of all groups",
  "qv": "on queries and values, none on keys",
  "none": "none",
}


def _bias(module: nn.Module, name: str, size: int) -> Array:
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
    """The `num` groups of what a call returned."""
    heads = (*y.shape[:2], self.num_heads, -1)
    return tuple(p.reshape(heads) for p in jnp.split(y, self.num, axis=-1))


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
    cache: tuple[Array, Array, Array] | None = None,
    rotary: tuple[Array, Array] | None = None,
  ) -> tuple[Float[Array, "B L D"], tuple[Array, Array]]:
    """Attends among the tokens, or from new tokens to a cache.

    Args:
      x: tokens.
      mask: true where a query may look.
      prefix_lengths: see `mico_jax.kernels.attention.attention`.
      row_keys: one key per row; None: no dropout.
      cache: (keys [B S N H], values [B S N H], position): only the first token
        of `x` is written, at `position`; the others follow behind the cache and
        are forgotten, so `mask` has S + L - 1 columns.
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
    kv = (k, v)
    if cache is not None:
      old_k, old_v, position = cache
      start = (0, position, 0, 0)
      kv = (
        jax.lax.dynamic_update_slice(
          old_k, k[:, :1].astype(old_k.dtype), start
        ),
        jax.lax.dynamic_update_slice(
          old_v, v[:, :1].astype(old_v.dtype), start
        ),
      )
      k = jnp.concatenate([kv[0], k[:, 1:]], axis=1)
      v = jnp.concatenate([kv[1], v[:, 1:]], axis=1)
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
    proj = Dense(
      x.shape[-1], self.dtype, names=(axes.QKV, axes.EMBED), name="proj"
    )
    return proj(out), kv


class CrossAttention(nn.Module):
  """Attention from text tokens to the projected contexts of their row.

  The kernel of keys and values belongs to this layer's parameters ("kv"), but
  is applied outside, once for all layers.

  Attributes:
    num_heads: N; must divide the width.
    uses: for each context, how many of the tokens' rows that belong to one row
      of the contexts attend to it; empty: there is one context, for all.
    dtype: compute dtype.
    backend: see `mico_jax.kernels.attention`.
    masked_rows: see `mico_jax.kernels.attention`.
    dropout_rate: of attention weights.
  """

  num_heads: int
  uses: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  backend: str = "auto"
  masked_rows: str = "zero"
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L W"],
    contexts: Sequence[tuple[Float[Array, "C _ W"], Float[Array, "C _ W"]]],
    *,
    masks: Sequence[Bool[Array, "C _"] | None],
    row_keys: Key[Array, " B"] | None = None,
  ) -> Float[Array, "B L W"]:
    """Attends to the contexts.

    Rows that share a context (the beams of a decoder, the texts of a pair) are
    one row of more queries, so that nobody copies keys and values for them.

    Args:
      x: text tokens; B is a multiple of C: consecutive rows belong to one row
        of the contexts, in the order of `uses`.
      contexts: keys and values, heads side by side, of each context.
      masks: true at the valid tokens of each context; None: all are.
      row_keys: one key per row; None: no dropout.

    Raises:
      ValueError: if `uses` does not fit the contexts or the rows.
    """
    batch, length, width = x.shape
    rows = contexts[0][0].shape[0]
    shared = batch // rows  # rows of tokens for a row of the contexts
    uses = self.uses or (shared,)
    if len(uses) != len(contexts) or sum(uses) * rows != batch:
      raise ValueError(
        f"{uses=} must name a count for each of {len(contexts)} contexts, "
        f"{batch} / {rows} in all."
      )
    if self.is_initializing():
      # Creates the parameters that `project_context` applies.
      PackedProjection(2, self.num_heads, dtype=self.dtype, name="kv")(x)
    query = Dense(
      width,
      self.dtype,
      names=(axes.EMBED, axes.QKV),
      bias_name=axes.QKV,
      name="query",
    )
    heads = (self.num_heads, width // self.num_heads)
    # On a TPU this moves lengths that are no multiple of eight, such as 70.
    q = query(x).astype(self.dtype).reshape(rows, shared * length, *heads)
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, dropout.CROSS)
      row_keys = row_keys.reshape(rows, shared)
    outs, first = [], 0
    for use, context, mask in zip(uses, contexts, masks, strict=True):
      k, v = (y.astype(self.dtype).reshape(rows, -1, *heads) for y in context)
      outs.append(
        attention(
          q[:, first * length : (first + use) * length],
          k,
          v,
          mask=None if mask is None else mask[:, None, None, :],
          masked_rows=self.masked_rows,
          dropout_rate=self.dropout_rate,
          row_keys=None if row_keys is None else row_keys[:, first],
          backend=self.backend,
        )
      )
      first += use
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    out = checkpoint_name(out, ATTENTION_OUT)
    proj = Dense(width, self.dtype, names=(axes.QKV, axes.EMBED), name="proj")
    return proj(out.reshape(batch, length, width))
