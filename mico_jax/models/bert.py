"""The text tower: a BERT that encodes, matches and writes captions.

Post-norm blocks of self-attention, cross-attention to a projected context
(skipped without one) and MLP. Attention is bidirectional, causal (a token sees
itself: a [MASK] at position k predicts token k), or prefix-causal (a question
read in both directions, then a causal answer). Decoding keeps keys and values
of the chosen tokens per layer.

Source: BERT, arXiv:1810.04805; VAST, arXiv:2305.18500, for the use as a
conditional masked-causal decoder; the released MiCo weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax import axes
from mico_jax.aliases import Params
from mico_jax.config import TextConfig
from mico_jax.layers import dropout
from mico_jax.layers.activations import gelu
from mico_jax.layers.attention import SelfAttention
from mico_jax.layers.cross_attention import CrossAttention
from mico_jax.layers.embed import TABLE_INIT, look_up
from mico_jax.layers.mlp import Dense, Mlp
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter
from mico_jax.layers.stack import stack
from mico_jax.models.text_tower import ContextKV, KVCache, TextTower


class BertBlock(nn.Module):
  """Post-norm self-attention, cross-attention and MLP.

  Attributes:
    config: of the tower.
    causal: whether a token sees itself and its left only.
    return_kv: whether keys and values are returned as output of the layer.
    uses: see `mico_jax.layers.cross_attention.CrossAttention`.
    dtype: compute dtype.
    backend: of attention.
    masked_rows: see `mico_jax.kernels.attention`.
  """

  config: TextConfig
  causal: bool = False
  return_kv: bool = False
  uses: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  backend: str = "auto"
  masked_rows: str = "zero"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L W"],
    layer: Mapping[str, Any],
    shared: Mapping[str, Any],
  ) -> tuple[Float[Array, "B L W"], tuple[Array, Array] | None]:
    """Returns the tokens after this block, and keys and values on request."""
    config = self.config
    row_keys = shared.get("row_keys")
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, layer["index"])
    options = {
      "dtype": self.dtype,
      "backend": self.backend,
      "masked_rows": self.masked_rows,
      "dropout_rate": config.dropout,
    }

    def add(x: Array, y: Array, tag: int, name: str) -> Array:
      y = dropout.row_dropout(y, row_keys, config.dropout, tag)
      return LayerNorm(config.norm_eps, name=name)(x + y)

    cache = None
    if "cache_keys" in layer:
      cache = (layer["cache_keys"], layer["cache_values"], shared["position"])
    attend = SelfAttention(
      config.num_heads, causal=self.causal, name="attn", **options
    )
    y, kv = attend(
      x,
      mask=shared.get("mask"),
      prefix_lengths=shared.get("prefix_lengths"),
      row_keys=row_keys,
      cache=cache,
    )
    x = add(x, y, dropout.ATTENTION_OUT, "attn_norm")
    if "contexts" in layer:
      cross = CrossAttention(
        config.num_heads, uses=self.uses, name="cross_attn", **options
      )
      y = cross(
        x,
        layer["contexts"],
        masks=shared["context_masks"],
        row_keys=row_keys,
      )
      x = add(x, y, dropout.CROSS_OUT, "cross_norm")
    y = Mlp(config.mlp_dim, self.dtype, name="mlp")(x)
    x = add(x, y, dropout.MLP_OUT, "mlp_norm")
    return x, kv if self.return_kv else None


class TextEmbed(nn.Module):
  """Word, position and type vectors, LayerNorm, dropout.

  Attributes:
    config: of the tower.
    freeze_pad: whether the lookup of the pad id passes no gradient.
    dtype: compute dtype.
  """

  config: TextConfig
  freeze_pad: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    ids: Int[Array, "B L"],
    *,
    position_ids: Int[Array, " L"],
    position_table: Float[Array, "Q W"] | None = None,
    extra: Float[Array, "#B #L W"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
  ) -> Float[Array, "B L W"]:
    """Embeds token ids.

    Args:
      ids: token ids.
      position_ids: of the columns of `ids`.
      position_table: instead of the tower's own.
      extra: added before the LayerNorm.
      row_keys: one key per row; None: no dropout.
    """
    config = self.config

    def table(name: str, size: int, axis: str) -> Array:
      shape = (size, config.width)
      return parameter(self, name, TABLE_INIT, shape, (axis, axes.EMBED))

    words = table("words", config.vocab_size, axes.VOCAB)
    positions = table("positions", config.max_positions, axes.POSITION)
    types = table("types", config.type_vocab_size, axes.POSITION)
    if position_table is not None:
      positions = position_table
    x = look_up(
      words, ids, frozen_id=config.pad_id if self.freeze_pad else None
    )
    x = x + types[:1][None]
    x = x + jnp.take(positions, position_ids, axis=0)[None]
    if extra is not None:
      x = x + extra
    x = LayerNorm(config.norm_eps, name="norm")(x).astype(self.dtype)
    return dropout.row_dropout(x, row_keys, config.dropout, dropout.EMBEDDING)


class Bert(TextTower):
  """Embedding and blocks of the text tower; token 0 stands for a text."""

  fields: ClassVar[frozenset[str]] = TextTower.fields - {"kv_heads"}

  @nn.compact
  def __call__(
    self,
    ids: Int[Array, "B L"],
    *,
    causal: bool = False,
    mask: Bool[Array, "#B 1 #L #S"] | None = None,
    prefix_lengths: Int[Array, " B"] | None = None,
    context: ContextKV | Sequence[ContextKV] | None = None,
    uses: tuple[int, ...] = (),
    cache: KVCache | None = None,
    position: Int[Array, ""] | int = 0,
    position_table: Float[Array, "Q W"] | None = None,
    extra: Float[Array, "#B #L W"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
    return_kv: bool = False,
  ) -> tuple[Float[Array, "B L W"], tuple[Array, Array] | None]:
    """See `TextTower`."""
    config = self.config
    contexts = (context,) if isinstance(context, ContextKV) else context
    shared: dict[str, Any] = {
      "mask": mask,
      "prefix_lengths": prefix_lengths,
      "row_keys": row_keys if config.dropout > 0.0 else None,
      "position": None if cache is None else jnp.asarray(position, jnp.int32),
    }
    layer: dict[str, Any] = {"index": jnp.arange(config.depth)}
    if contexts is not None:
      layer["contexts"] = tuple((c.keys, c.values) for c in contexts)
      shared["context_masks"] = tuple(c.mask for c in contexts)
    if cache is not None:
      layer |= {"cache_keys": cache.keys, "cache_values": cache.values}
    embed = TextEmbed(config, self.freeze_pad, self.dtype, name="embed")
    x = embed(
      ids,
      position_ids=jnp.arange(ids.shape[1]) + position,
      position_table=position_table,
      extra=extra,
      row_keys=shared["row_keys"],
    )
    blocks = stack(
      BertBlock,
      {
        "config": config,
        "causal": causal,
        "return_kv": return_kv,
        "uses": tuple(uses),
        "dtype": self.dtype,
        "backend": self.backend,
        "masked_rows": self.masked_rows,
      },
      depth=config.depth,
      scan=self.scan,
      remat=self.remat,
      name="blocks",
    )
    return blocks(x, layer, {k: v for k, v in shared.items() if v is not None})

  @nn.nowrap
  def modules(self) -> Mapping[str, nn.Module]:
    """See `TextTower`."""
    return {"lm_head": LMHead(self.config, self.dtype)}

  @nn.nowrap
  def pool(
    self, hidden: Float[Array, "B L W"], valid: Bool[Array, "B L"]
  ) -> Float[Array, "B W"]:
    """The first token of a text."""
    del valid
    return hidden[:, 0]

  @nn.nowrap
  def decode(
    self, params: Params, hidden: Float[Array, "*B W"]
  ) -> tuple[Float[Array, "*B W"], Float[Array, "V W"], Float[Array, " V"]]:
    """See `TextTower`; the decoder is tied to the word vectors."""
    head: Any = self.modules()["lm_head"]
    x, bias = head.apply({"params": params["lm_head"]}, hidden)
    return x, params["embed"]["words"], bias


class LMHead(nn.Module):
  """Transform and bias of the decoder tied to the word vectors.

  Attributes:
    config: of the tower.
    dtype: compute dtype of the transform.
  """

  config: TextConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, hidden: Float[Array, "*B W"]
  ) -> tuple[Float[Array, "*B W"], Float[Array, " V"]]:
    """What the word vectors are multiplied with, and the bias of each word."""
    x = Dense(self.config.width, self.dtype, name="dense")(hidden)
    x = gelu(x)
    x = LayerNorm(self.config.norm_eps, name="norm")(x)
    bias = parameter(
      self,
      "bias",
      nn.initializers.zeros,
      (self.config.vocab_size,),
      (axes.VOCAB,),
    )
    return x, bias
