"""Cross-attention to a context whose keys and values are projected already.

They are projected once per step for all layers
(`mico_jax.models.text_tower.TextTower.project_context`), not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Key

from mico_jax import axes
from mico_jax.kernels.attention import attention
from mico_jax.layers import dropout
from mico_jax.layers.attention import ATTENTION_OUT
from mico_jax.layers.mlp import Dense


def repeat_heads(
  x: Float[Array, "B S M H"], num_heads: int
) -> Float[Array, "B S N H"]:
  """Each head of keys or values for its group of neighbouring query heads."""
  times = num_heads // x.shape[2]
  return x if times == 1 else jnp.repeat(x, times, axis=2)


class CrossAttention(nn.Module):
  """Attention from text tokens to the projected contexts of their row.

  The kernel of keys and values is a parameter of this layer ("kv"), but
  is applied outside, once for all layers.

  Attributes:
    num_heads: N; must divide the width.
    uses: for each context, the number of rows of tokens that attend to each of
      its rows; empty: there is one context, for all.
    dtype: compute dtype.
    backend: see `mico_jax.kernels.attention`.
    masked_rows: see `mico_jax.kernels.attention`.
    dropout_rate: of attention weights.
    kv_heads: heads of keys and values; 0: as many as of queries.
    use_bias: whether projections have biases.
  """

  num_heads: int
  uses: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  backend: str = "auto"
  masked_rows: str = "zero"
  dropout_rate: float = 0.0
  kv_heads: int = 0
  use_bias: bool = True

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L W"],
    contexts: Sequence[tuple[Float[Array, "C _ D"], Float[Array, "C _ D"]]],
    *,
    masks: Sequence[Bool[Array, "C _"] | None],
    row_keys: Key[Array, " B"] | None = None,
  ) -> Float[Array, "B L W"]:
    """Attends to the contexts.

    Rows that share a context (the beams of a decoder, the texts of a pair) are
    one row of more queries, so that nobody copies keys and values for them.

    Args:
      x: text tokens; B is a multiple of C: consecutive rows share one row of
        the contexts, in the order of `uses`.
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
    head_dim = width // self.num_heads
    if self.is_initializing():
      # Creates the parameters that `TextTower.project_context` applies.
      self._dense(2 * (self.kv_heads or self.num_heads) * head_dim, "kv")(x)
    # On a TPU this moves lengths that are no multiple of eight, such as 70.
    q = self._dense(width, "query")(x).astype(self.dtype)
    q = q.reshape(rows, shared * length, self.num_heads, head_dim)
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, dropout.CROSS)
      row_keys = row_keys.reshape(rows, shared)
    outs, first = [], 0
    for use, context, mask in zip(uses, contexts, masks, strict=True):
      queries = q[:, first * length : (first + use) * length]
      keys = None if row_keys is None else row_keys[:, first]
      outs.append(self._attend(queries, context, mask, keys))
      first += use
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    out = checkpoint_name(out, ATTENTION_OUT)
    return self._dense(width, "proj")(out.reshape(batch, length, width))

  @nn.nowrap
  def _dense(self, features: int, name: str) -> Dense:
    """A projection into heads, or ("proj") out of them."""
    into = name != "proj"
    return Dense(
      features,
      self.dtype,
      use_bias=self.use_bias,
      names=(axes.EMBED, axes.QKV) if into else (axes.QKV, axes.EMBED),
      bias_name=axes.QKV if into else axes.NORM,
      name=name,
    )

  @nn.nowrap
  def _attend(
    self,
    q: Float[Array, "C Q N H"],
    context: tuple[Float[Array, "C S D"], Float[Array, "C S D"]],
    mask: Bool[Array, "C S"] | None,
    row_keys: Key[Array, " C"] | None,
  ) -> Float[Array, "C Q N H"]:
    """Attends to one context."""
    k, v = (
      repeat_heads(
        y.astype(self.dtype).reshape(*y.shape[:2], -1, q.shape[-1]),
        self.num_heads,
      )
      for y in context
    )
    return attention(
      q,
      k,
      v,
      mask=None if mask is None else mask[:, None, None, :],
      masked_rows=self.masked_rows,
      dropout_rate=self.dropout_rate,
      row_keys=row_keys,
      backend=self.backend,
    )
