"""A causal text tower in the shape of today's open language models.

Pre-norm blocks of grouped-query self-attention with rotary positions, cross-
attention to a projected context (skipped without one) and a SwiGLU MLP; RMSNorm
and no biases. Texts are read from left to right, the last token stands for all
of them, and the state of a token predicts the next one.

Positions count the visible tokens, so padding has no effect wherever it stands;
under a mask that differs from query to query they are columns.

Source: LLaMA, arXiv:2302.13971; grouped queries, arXiv:2305.13245; rotary
positions, arXiv:2104.09864; SwiGLU, arXiv:2002.05202; RMSNorm,
arXiv:1910.07467. Cross-attention in every block is MiCo's use of a text tower.
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
from mico_jax.layers.cross_attention import CrossAttention
from mico_jax.layers.embed import TABLE_INIT, look_up
from mico_jax.layers.grouped_attention import GroupedAttention
from mico_jax.layers.mlp import Mlp
from mico_jax.layers.norm import RMSNorm
from mico_jax.layers.parameter import parameter
from mico_jax.layers.rotary import sequence_tables
from mico_jax.layers.stack import stack
from mico_jax.models.text_tower import ContextKV, KVCache, TextTower


class CausalBlock(nn.Module):
  """Pre-norm self-attention, cross-attention and MLP.

  Attributes:
    config: of the tower.
    kv_heads: heads of keys and values.
    causal: whether a token sees itself and its left only.
    return_kv: whether keys and values are returned as output of the layer.
    uses: see `mico_jax.layers.cross_attention.CrossAttention`.
    dtype: compute dtype.
    backend: of attention.
    masked_rows: see `mico_jax.kernels.attention`.
  """

  config: TextConfig
  kv_heads: int
  causal: bool = True
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
    options: dict[str, Any] = {
      "kv_heads": self.kv_heads,
      "dtype": self.dtype,
      "backend": self.backend,
      "masked_rows": self.masked_rows,
      "dropout_rate": config.dropout,
    }
    norm = lambda name: RMSNorm(config.norm_eps, name=name)(x)

    def add(y: Array, tag: int) -> Array:
      return x + dropout.row_dropout(y, row_keys, config.dropout, tag)

    cache = None
    if "cache_keys" in layer:
      cache = (layer["cache_keys"], layer["cache_values"], shared["position"])
    attend = GroupedAttention(
      config.num_heads, causal=self.causal, name="attn", **options
    )
    y, kv = attend(
      norm("attn_norm"),
      rotary=shared["rotary"],
      mask=shared.get("mask"),
      prefix_lengths=shared.get("prefix_lengths"),
      row_keys=row_keys,
      cache=cache,
    )
    x = add(y, dropout.ATTENTION_OUT)
    if "contexts" in layer:
      cross = CrossAttention(
        config.num_heads,
        uses=self.uses,
        use_bias=False,
        name="cross_attn",
        **options,
      )
      y = cross(
        norm("cross_norm"),
        layer["contexts"],
        masks=shared["context_masks"],
        row_keys=row_keys,
      )
      x = add(y, dropout.CROSS_OUT)
    mlp = Mlp(
      config.mlp_dim, self.dtype, kind="swiglu", use_bias=False, name="mlp"
    )
    x = add(mlp(norm("mlp_norm")), dropout.MLP_OUT)
    return x, kv if self.return_kv else None


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

  reading: ClassVar[str] = "causal"
  next_token: ClassVar[bool] = True
  learned_positions: ClassVar[bool] = False
  fields: ClassVar[frozenset[str]] = TextTower.fields - {"type_vocab_size"}

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
    if position_table is not None:
      raise ValueError("a causal tower has rotary positions, and no table.")
    places = positions(mask, ids.shape[1], cached=cache is not None)
    contexts = (context,) if isinstance(context, ContextKV) else context
    shared: dict[str, Any] = {
      "mask": mask,
      "rotary": sequence_tables(places, self.head_dim),
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
    embed = Words(config, self.freeze_pad, self.dtype, name="embed")
    x = embed(ids, extra=extra, row_keys=shared["row_keys"])
    blocks = stack(
      CausalBlock,
      {
        "config": config,
        "kv_heads": self.key_heads,
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
    given = {k: v for k, v in shared.items() if v is not None}
    x, kv = blocks(x, layer, given)
    return RMSNorm(config.norm_eps, name="norm")(x), kv

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.config.kv_heads or self.config.num_heads

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
