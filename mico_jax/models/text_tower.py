"""The contract of text towers, and the pass that all of them share.

A text tower is a Linen module: it encodes token ids, attends to a projected
context, and writes. A family gives its embedding, its block and its last norm,
and declares the facts that objectives, decoding, the self-check, plans and
exports ask for:

- how it reads (`reading`) and which position represents a text (`pool`);
- how it writes (`next_token`): the state of a [MASK] at position k predicts
  token k itself, or the state of token k predicts token k + 1;
- the word vectors and biases that score words (`decode`);
- its cache (`empty_cache`), and the ids of a decoding step (`decoding_ids`);
- which fields of the config it reads, and which heads a mesh may split.

`mico_jax.models.encoders.TEXT_ENCODERS` is the table of towers.

Source: MiCo, arXiv:2406.09412, section 3, and VAST, arXiv:2305.18500: one text
network that encodes, matches and writes; cross-attention in every block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax.aliases import Params
from mico_jax.config import TextConfig
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.layers.stack import stack
from mico_jax.layers.take_rows import take_sharded_rows
from mico_jax.models.checks import check_unread
from mico_jax.models.text_block import TextBlock

ATTENTION = ("bidirectional", "causal", "prefix_causal")

# Cosine and sine of rotary positions.
Rotary = tuple[Float[Array, "#B L H"], Float[Array, "#B L H"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContextKV:
  """Keys and values of a context for every layer, projected once per step.

  Attributes:
    keys: one set per layer, heads side by side: D = N H, the layout that
      kernels read.
    values: likewise.
    mask: true at valid context tokens; None: all are.
  """

  keys: Float[Array, "P B S D"]
  values: Float[Array, "P B S D"]
  mask: Bool[Array, "B S"] | None = None

  def take(
    self,
    indices: Int[Array, " C"],
    *,
    partition: BatchSharding | None = None,
    run: int = 0,
  ) -> ContextKV:
    """The contexts of some rows, e.g. of mined negatives.

    Args:
      indices: global rows, 0 <= index < B.
      partition: how the rows lie on a mesh.
      run: see `mico_jax.layers.take_rows.take_sharded_rows`.
    """
    masks = () if self.mask is None else (self.mask,)
    arrays = (self.keys, self.values, *masks)
    return ContextKV(*take_sharded_rows(arrays, indices, partition, run))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
  """Keys and values of the tokens written so far, per layer."""

  keys: Float[Array, "P B S N H"]
  values: Float[Array, "P B S N H"]


class TextTower(nn.Module):
  """Base of the text towers: embedding, a stack of blocks, perhaps a norm.

  Attributes:
    config: sizes.
    freeze_pad: whether the lookup of the pad id passes no gradient.
    dtype: compute dtype.
    backend: of attention.
    masked_rows: see `mico_jax.kernels.attention`.
    remat: key of `mico_jax.layers.stack.REMAT`.
    scan: whether blocks run as a loop.
    block: class of the blocks.
    reading: one of `ATTENTION`: how a text is read to be compared or matched.
    next_token: whether the state of a token predicts the one behind it; else a
      [MASK] is read in the place of the token to predict.
    learned_positions: whether positions are a table, so that another one can
      take its place (joined captions).
    fields: of the config that the family reads; the others must keep their
      defaults.
  """

  config: TextConfig
  freeze_pad: bool = True
  dtype: Any = jnp.float32
  backend: str = "auto"
  masked_rows: str = "zero"
  remat: str = "none"
  scan: bool = True

  block: ClassVar[type[TextBlock]]
  reading: ClassVar[str] = "bidirectional"
  next_token: ClassVar[bool] = False
  learned_positions: ClassVar[bool] = True
  fields: ClassVar[frozenset[str]] = frozenset(
    f.name for f in dataclasses.fields(TextConfig)
  )

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
    """Vectors of token ids, and their rotary positions, if any.

    `cached`: whether the cache holds tokens before them; the rest (also `extra`
    and `row_keys`) as in a call.
    """
    raise NotImplementedError

  @nn.nowrap
  def last_norm(self, x: Float[Array, "B L W"]) -> Float[Array, "B L W"]:
    """Transforms the tokens after the last block."""
    return x

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
    """Encodes token ids.

    Args:
      ids: token ids.
      causal: whether a token sees itself and its left only.
      mask: true where a token may look; with a cache of S slots and L ids it
        has S + L - 1 columns, see `mico_jax.layers.attention.SelfAttention`.
      prefix_lengths: with `causal`: so many first tokens see each other.
      context: see `mico_jax.models.mico.MiCo.text`.
      uses: see `mico_jax.models.mico.MiCo.text`.
      cache: of the tokens before; only the first of `ids` is written to it.
      position: column of the first of `ids`.
      position_table: instead of the tower's own (`learned_positions`).
      extra: added to the embedded tokens.
      row_keys: one key per row; None: no dropout.
      return_kv: whether keys and values are returned.

    Returns:
      Hidden states, and stacked keys and values if `return_kv` (with a cache:
      the updated cache).
    """
    row_keys = row_keys if self.config.dropout > 0.0 else None
    x, rotary = self.embed_ids(
      ids,
      mask=mask,
      cached=cache is not None,
      position=position,
      position_table=position_table,
      extra=extra,
      row_keys=row_keys,
    )
    layer, shared = self._block_inputs(context, cache, position)
    options = {
      "mask": mask,
      "rotary": rotary,
      "prefix_lengths": prefix_lengths,
      "row_keys": row_keys,
    }
    shared |= {k: v for k, v in options.items() if v is not None}
    blocks = self._blocks(causal=causal, uses=tuple(uses), return_kv=return_kv)
    x, kv = blocks(x, layer, shared)
    return self.last_norm(x), kv

  @nn.nowrap
  def _block_inputs(
    self,
    context: ContextKV | Sequence[ContextKV] | None,
    cache: KVCache | None,
    position: Int[Array, ""] | int,
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of one layer each, and shared ones; see `TextBlock`."""
    layer: dict[str, Any] = {"index": jnp.arange(self.config.depth)}
    shared: dict[str, Any] = {}
    if context is not None:
      contexts = (context,) if isinstance(context, ContextKV) else context
      layer["contexts"] = tuple((c.keys, c.values) for c in contexts)
      shared["context_masks"] = tuple(c.mask for c in contexts)
    if cache is not None:
      layer |= {"cache_keys": cache.keys, "cache_values": cache.values}
      shared["position"] = jnp.asarray(position, jnp.int32)
    return layer, shared

  @nn.nowrap
  def _blocks(self, **options: Any) -> Callable[..., Any]:
    """All blocks as one function, with these attributes of each."""
    options |= {
      name: getattr(self, name)
      for name in ("config", "dtype", "backend", "masked_rows")
    }
    return stack(
      self.block,
      options,
      depth=self.config.depth,
      scan=self.scan,
      remat=self.remat,
      name="blocks",
    )

  @nn.nowrap
  def check(self) -> None:
    """Checks the config as far as the family knows it.

    Raises:
      ValueError: naming the field that does not fit.
    """
    config = self.config
    check_unread(config, self.fields, "config.model.text")
    if config.width % config.num_heads:
      raise ValueError(
        f"num_heads={config.num_heads} must divide width={config.width}; set "
        "config.model.text.num_heads."
      )

  @property
  def key_heads(self) -> int:
    """Heads of keys and values."""
    return self.config.kv_heads or self.config.num_heads

  @property
  def head_dim(self) -> int:
    """Channels of a head."""
    return self.config.width // self.config.num_heads

  @nn.nowrap
  def split_heads(self) -> Mapping[str, int]:
    """Field of the config -> heads that a mesh splits by whole ones."""
    return {"num_heads": self.config.num_heads}

  @nn.nowrap
  def modules(self) -> Mapping[str, nn.Module]:
    """Modules on hidden states whose parameters lie among the tower's."""
    return {}

  @nn.nowrap
  def example_context(self) -> ContextKV:
    """A context of one row and two tokens, to create parameters with."""
    shape = (self.config.depth, 1, 2, self.key_heads * self.head_dim)
    return ContextKV(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

  @nn.nowrap
  def project_context(
    self,
    params: Params,
    values: Float[Array, "B S W"],
    *,
    mask: Bool[Array, "B S"] | None,
  ) -> ContextKV:
    """Projects a context for the cross-attention of all layers at once.

    Args:
      params: of the tower; its blocks hold "cross_attn/kv", as
        `mico_jax.layers.cross_attention.CrossAttention` makes it.
      values: the context.
      mask: true at valid context tokens.
    """
    packed = params["blocks"]["cross_attn"]["kv"]
    # The parameters are split: that of the products would be a copy.
    halves = [
      jnp.einsum("bsw,pwd->pbsd", values.astype(self.dtype), kernel)
      for kernel in jnp.split(packed["kernel"].astype(self.dtype), 2, axis=-1)
    ]
    if "bias" in packed:
      biases = jnp.split(packed["bias"].astype(self.dtype), 2, axis=-1)
      halves = [
        y + bias[:, None, None, :]
        for y, bias in zip(halves, biases, strict=True)
      ]
    return ContextKV(halves[0], halves[1], mask)

  @nn.nowrap
  def pool(
    self, hidden: Float[Array, "B L W"], valid: Bool[Array, "B L"]
  ) -> Float[Array, "B W"]:
    """The state that stands for a text, also in matching.

    Args:
      hidden: states of the tower.
      valid: which tokens are no padding.
    """
    raise NotImplementedError

  @nn.nowrap
  def decode(
    self, params: Params, hidden: Float[Array, "*B W"]
  ) -> tuple[Float[Array, "*B W"], Float[Array, "V W"], Float[Array, " V"]]:
    """x, word vectors and biases of the logits x @ words.T + b."""
    raise NotImplementedError

  @nn.nowrap
  def decoding_ids(
    self, last: Int[Array, " R"], *, mask_id: int
  ) -> Int[Array, "R K"]:
    """Ids that a decoding step reads: the last chosen token, first.

    The state of the last column predicts the next token.
    """
    if self.next_token:
      return last[:, None]
    return jnp.stack([last, jnp.full_like(last, mask_id)], axis=1)

  @nn.nowrap
  def empty_cache(self, rows: int, slots: int) -> KVCache:
    """A cache with room for so many tokens of each row."""
    heads = (self.key_heads, self.head_dim)
    shape = (self.config.depth, rows, slots, *heads)
    return KVCache(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
