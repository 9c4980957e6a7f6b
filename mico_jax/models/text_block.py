"""The block that all text towers share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax.config import TextConfig
from mico_jax.layers import dropout
from mico_jax.layers.cross_attention import CrossAttention
from mico_jax.layers.mlp import Mlp
from mico_jax.layers.norm import LayerNorm


class TextBlock(nn.Module):
  """Self-attention, cross-attention to contexts (if any) and MLP.

  A family chooses the place of the norms, and the self-attention.

  Attributes:
    config: of the tower.
    causal: whether a token sees itself and its left only.
    return_kv: whether keys and values are returned as output of the layer.
    uses: see `mico_jax.layers.cross_attention.CrossAttention`.
    dtype: compute dtype.
    backend: of attention.
    masked_rows: see `mico_jax.kernels.attention`.
    norm_class: of the norms.
    pre_norm: whether a norm stands before its branch; else after the sum.
    mlp_kind: key of `mico_jax.layers.mlp.MLPS`.
    use_bias: whether cross-attention and MLP have biases.
  """

  config: TextConfig
  causal: bool = False
  return_kv: bool = False
  uses: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  backend: str = "auto"
  masked_rows: str = "zero"

  norm_class: ClassVar[type[Any]] = LayerNorm
  pre_norm: ClassVar[bool] = False
  mlp_kind: ClassVar[str] = "gelu"
  use_bias: ClassVar[bool] = True

  @nn.nowrap
  def self_attention(self, **options: Any) -> nn.Module:
    """Self-attention with these attributes, under the name "attn"."""
    raise NotImplementedError

  @nn.nowrap
  def _attention_options(self) -> dict[str, Any]:
    """Attributes of both attentions."""
    return {
      "dtype": self.dtype,
      "backend": self.backend,
      "masked_rows": self.masked_rows,
      "dropout_rate": self.config.dropout,
    }

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L W"],
    layer: Mapping[str, Any],
    shared: Mapping[str, Any],
  ) -> tuple[Float[Array, "B L W"], tuple[Array, Array] | None]:
    """Returns the tokens after this block, and keys and values on request."""
    config, row_keys = self.config, shared.get("row_keys")
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, layer["index"])
    options = self._attention_options()

    def norm(
      x: Float[Array, "B L W"], name: str, *, before: bool
    ) -> Float[Array, "B L W"]:
      here = before == self.pre_norm
      return type(self).norm_class(config.norm_eps, name=name)(x) if here else x

    def add(
      x: Float[Array, "B L W"], y: Float[Array, "B L W"], tag: int, name: str
    ) -> Float[Array, "B L W"]:
      y = dropout.row_dropout(y, row_keys, config.dropout, tag)
      return norm(x + y, name, before=False)

    cache = None
    if "cache_keys" in layer:
      cache = (layer["cache_keys"], layer["cache_values"], shared["position"])
    y, kv = self.self_attention(causal=self.causal, **options)(
      norm(x, "attn_norm", before=True),
      mask=shared.get("mask"),
      prefix_lengths=shared.get("prefix_lengths"),
      row_keys=row_keys,
      cache=cache,
      rotary=shared.get("rotary"),
    )
    x = add(x, y, dropout.ATTENTION_OUT, "attn_norm")
    if "contexts" in layer:
      y = CrossAttention(
        config.num_heads,
        self.uses,
        kv_heads=config.kv_heads,
        use_bias=self.use_bias,
        name="cross_attn",
        **options,
      )(
        norm(x, "cross_norm", before=True),
        layer["contexts"],
        masks=shared["context_masks"],
        row_keys=row_keys,
      )
      x = add(x, y, dropout.CROSS_OUT, "cross_norm")
    y = Mlp(
      config.mlp_dim,
      self.dtype,
      self.mlp_kind,
      use_bias=self.use_bias,
      name="mlp",
    )(norm(x, "mlp_norm", before=True))
    x = add(x, y, dropout.MLP_OUT, "mlp_norm")
    return x, kv if self.return_kv else None
