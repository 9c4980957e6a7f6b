"""A causal text tower in the shape of today's open language models.

Pre-norm blocks of grouped-query self-attention with rotary positions, cross-
attention to a projected context (skipped without one) and a SwiGLU MLP; RMSNorm
and no biases. Texts are read from left to right, the last token stands for all
of them, and the state of a token predicts the next one.

Positions count the visible tokens, so padding has no effect in any place; under
a mask that differs from query to query they are columns.

Source: LLaMA, arXiv:2302.13971; grouped queries, arXiv:2305.13245; rotary
positions, arXiv:2104.09864; SwiGLU, arXiv:2002.05202; RMSNorm,
arXiv:1910.07467. Cross-attention in every block is MiCo's use of a text tower.
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
from mico_jax.layers.embed import TABLE_INIT, look_up
from mico_jax.layers.grouped_attention import GroupedAttention
from mico_jax.layers.norm import RMSNorm
from mico_jax.layers.parameter import parameter
from mico_jax.layers.rotary import sequence_tables
from mico_jax.models.text_block import TextBlock
from mico_jax.models.text_tower import Rotary, TextTower


class CausalBlock(TextBlock):
  """Pre-norm block with rotary positions; see `TextBlock`."""

  norm_class: ClassVar[type[Any]] = RMSNorm
  pre_norm: ClassVar[bool] = True
  mlp_kind: ClassVar[str] = "swiglu"
  use_bias: ClassVar[bool] = False

  @nn.nowrap
  def self_attention(self, **options: Any) -> GroupedAttention:
    """See `TextBlock`."""
    heads = self.config.num_heads
    kv_heads = self.config.kv_heads or heads
    return GroupedAttention(heads, kv_heads, name="attn", **options)


class Words(nn.Module):
  """The word vectors, also those of the tied decoder.

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
    extra: Float[Array, "#B #L W"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
  ) -> Float[Array, "B L W"]:
    """Embeds token ids.

    Args:
      ids: token ids.
      extra: added to their vectors.
      row_keys: one key per row; None: no dropout.
    """
    config = self.config
    shape = (config.vocab_size, config.width)
    words = parameter(
      self, "words", TABLE_INIT, shape, (axes.VOCAB, axes.EMBED)
    )
    frozen = config.pad_id if self.freeze_pad else None
    x = look_up(words, ids, frozen_id=frozen)
    x = (x if extra is None else x + extra).astype(self.dtype)
    return dropout.row_dropout(x, row_keys, config.dropout, dropout.EMBEDDING)


def positions(
  mask: Bool[Array, "#B 1 #L #S"] | None, length: int, *, cached: bool
) -> Int[Array, "#B L"]:
  """The position of each token: how many visible ones stand before it.

  Args:
    mask: see `TextTower`.
    length: of the text.
    cached: whether the first tokens lie in a cache; then the first column that
      is read is the last one that its query sees there.
  """
  columns = jnp.arange(length)[None]
  if mask is None:
    return columns
  if cached:
    before = mask[:, 0, 0].sum(axis=-1, dtype=jnp.int32) - 1
    return before[:, None] + columns
  if mask.shape[2] > 1:
    return columns
  seen = jnp.cumsum(mask[:, 0, 0].astype(jnp.int32), axis=-1)
  return jnp.maximum(seen - 1, 0)


class CausalLM(TextTower):
  """Embedding, blocks and final norm; the last token stands for a text."""

  block: ClassVar[type[TextBlock]] = CausalBlock
  reading: ClassVar[str] = "causal"
  next_token: ClassVar[bool] = True
  learned_positions: ClassVar[bool] = False
  fields: ClassVar[frozenset[str]] = TextTower.fields - {"type_vocab_size"}

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
    del position
    if options.pop("position_table") is not None:
      raise ValueError("a causal tower has rotary positions, and no table.")
    embed = Words(self.config, self.freeze_pad, self.dtype, name="embed")
    places = positions(mask, ids.shape[1], cached=cached)
    return embed(ids, **options), sequence_tables(places, self.head_dim)

  @nn.nowrap
  def last_norm(self, x: Float[Array, "B L W"]) -> Float[Array, "B L W"]:
    """See `TextTower`."""
    return RMSNorm(self.config.norm_eps, name="norm")(x)

  @nn.nowrap
  def check(self) -> None:
    """See `TextTower`."""
    super().check()
    if self.config.num_heads % self.key_heads:
      raise ValueError(
        f"kv_heads={self.key_heads} must divide "
        f"num_heads={self.config.num_heads}; set config.model.text.kv_heads."
      )
    if self.head_dim % 2:
      raise ValueError(
        f"rotary positions need heads of even width, got {self.head_dim} = "
        "width / num_heads; set config.model.text.num_heads."
      )

  @nn.nowrap
  def split_heads(self) -> Mapping[str, int]:
    """See `TextTower`."""
    return {"num_heads": self.config.num_heads, "kv_heads": self.key_heads}

  @nn.nowrap
  def pool(
    self, hidden: Float[Array, "B L W"], valid: Bool[Array, "B L"]
  ) -> Float[Array, "B W"]:
    """The last token that is no padding; the first of an empty text."""
    columns = jnp.arange(valid.shape[1])[None]
    last = jnp.max(jnp.where(valid, columns, 0), axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]

  @nn.nowrap
  def decode(
    self, params: Params, hidden: Float[Array, "*B W"]
  ) -> tuple[Float[Array, "*B W"], Float[Array, "V W"], Float[Array, " V"]]:
    """See `TextTower`; the decoder is the word vectors, without biases."""
    words: Any = params["embed"]["words"]
    return hidden, words, jnp.zeros(words.shape[:1], words.dtype)
