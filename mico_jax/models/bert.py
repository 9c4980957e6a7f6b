"""The text tower: a BERT that encodes, matches and writes captions.

Post-norm blocks of self-attention, cross-attention to a projected context
(skipped without one) and MLP. Attention is bidirectional, causal (a token sees
itself: a [MASK] at position k predicts token k), or prefix-causal (a question
read in both directions, then a causal answer). Decoding keeps keys and values
of the chosen tokens per layer.

Source: BERT, arXiv:1810.04805; ALBEF, arXiv:2107.07651, for cross-attention;
VAST, arXiv:2305.18500, for the use as a conditional masked-causal decoder; the
official MiCo weights.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from mico_jax.layers.embed import TABLE_INIT, look_up
from mico_jax.layers.mlp import Dense
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter
from mico_jax.models.text_block import TextBlock
from mico_jax.models.text_tower import Rotary, TextTower


class BertBlock(TextBlock):
  """Post-norm block; for the attributes see `TextBlock`."""

  @nn.nowrap
  def self_attention(self, **options: Any) -> SelfAttention:
    """See `TextBlock`."""
    return SelfAttention(self.config.num_heads, name="attn", **options)


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

    def table(name: str, size: int, axis: str) -> Float[Array, "_ W"]:
      shape = (size, config.width)
      return parameter(self, name, TABLE_INIT, shape, (axis, axes.EMBED))

    words = table("words", config.vocab_size, axes.VOCAB)
    positions = table("positions", config.max_positions, axes.POSITION)
    types = table("types", config.type_vocab_size, axes.POSITION)
    if position_table is not None:
      positions = position_table
    frozen = config.pad_id if self.freeze_pad else None
    x = look_up(words, ids, frozen_id=frozen) + types[:1][None]
    x = x + jnp.take(positions, position_ids, axis=0)[None]
    if extra is not None:
      x = x + extra
    x = LayerNorm(config.norm_eps, name="norm")(x).astype(self.dtype)
    return dropout.row_dropout(x, row_keys, config.dropout, dropout.EMBEDDING)


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
    """Returns the factor of the word vectors, and the bias of each word."""
    config = self.config
    x = gelu(Dense(config.width, self.dtype, name="dense")(hidden))
    x = LayerNorm(config.norm_eps, name="norm")(x)
    shape, names = (config.vocab_size,), (axes.VOCAB,)
    return x, parameter(self, "bias", nn.initializers.zeros, shape, names)


class Bert(TextTower):
  """BERT with cross-attention; token 0 stands for a text."""

  block: ClassVar[type[TextBlock]] = BertBlock
  fields: ClassVar[frozenset[str]] = TextTower.fields - {"kv_heads"}

  @nn.nowrap
  def embed_ids(
    self,
    ids: Int[Array, "B L"],
    *,
    mask: Bool[Array, "#B 1 #L #S"] | None,
    cached: bool,
    position: Int[Array, ""] | int,
    **options: Any,
  ) -> tuple[Float[Array, "B L W"], Rotary | None]:
    """See `TextTower`."""
    del mask, cached
    embed = TextEmbed(self.config, self.freeze_pad, self.dtype, name="embed")
    places = jnp.arange(ids.shape[1]) + position
    return embed(ids, position_ids=places, **options), None

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
