"""The text half of MiCo: encodes, matches and writes texts with its tower.

Source: MiCo, arXiv:2406.09412, section 3; VAST, arXiv:2305.18500.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax.aliases import Params
from mico_jax.config import ModelConfig
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.kernels.cross_entropy import tied, tied_cross_entropy
from mico_jax.kernels.dtypes import accumulation_dtype
from mico_jax.layers.stack import stacked_layers
from mico_jax.models import parameters
from mico_jax.models.text_tower import (
  ATTENTION,
  ContextKV,
  KVCache,
  TextTower,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
  """Tokens of a group of modalities, for the text tower to attend to.

  Attributes:
    values: tokens of all modalities of the context, at the text width.
    mask: true at valid tokens; None: all are.
  """

  values: Float[Array, "B S W"]
  mask: Bool[Array, "B S"] | None = None


def precise(method: Callable[..., Any]) -> Callable[..., Any]:
  """Traces a method under the configured matrix product precision."""

  @functools.wraps(method)
  def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
    precision = self.config.matmul_precision
    scope = (
      contextlib.nullcontext()
      if precision == "default"
      else jax.default_matmul_precision(precision)
    )
    with scope:
      return method(self, *args, **kwargs)

  return wrapped


def apply(module: nn.Module, params: Params, *args: Any, **kwargs: Any) -> Any:
  """Runs a module on its parameters, stacked or split by layers."""
  return module.apply({"params": stacked_layers(params)}, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class TextModel:
  """Pure functions of the text tower; `MiCo` has them.

  Attributes:
    config: sizes and options.
  """

  config: ModelConfig

  @property
  def tower(self) -> TextTower:
    """The text tower; it defines how texts are read, pooled and written."""
    return parameters.towers(self.config)[1]

  def pool_text(
    self, hidden: Float[Array, "B L W"], ids: Int[Array, "B L"]
  ) -> Float[Array, "B W"]:
    """The state that stands for a text, from the hidden states of its ids."""
    return self.tower.pool(hidden, ids != self.config.text.pad_id)

  def sample_vectors(
    self, params: Params, index: int | Int[Array, "..."], dtype: Any = None
  ) -> Float[Array, "#B #L W"]:
    """Rows of E_Sam, for whole rows or for tokens; None: in their own dtype.

    Raises:
      ValueError: if the config has no such table.
    """
    if not self.config.sample_embeddings:
      raise ValueError("sample_index needs config.model.sample_embeddings > 0.")
    index = jnp.asarray(index)
    index = index.reshape(index.shape + (1,) * (2 - index.ndim))
    vectors = jnp.take(params["sample_embed"], index, axis=0)
    return vectors if dtype is None else vectors.astype(dtype)

  @precise
  def project_context(self, params: Params, context: Context) -> ContextKV:
    """Keys and values of a context for all layers: once per step."""
    return self.tower.project_context(
      stacked_layers(params["text"]), context.values, mask=context.mask
    )

  @precise
  def text(
    self,
    params: Params,
    ids: Int[Array, "B L"],
    *,
    attention: str | None = None,
    mask: Bool[Array, "B *L S"] | None = None,
    prefix_length: int | Int[Array, ""] | Int[Array, " B"] | None = None,
    context: ContextKV | Sequence[ContextKV] | None = None,
    uses: tuple[int, ...] = (),
    joined: bool = False,
    sample_index: int | Int[Array, "..."] | None = None,
    row_keys: Key[Array, " B"] | None = None,
    train: bool = False,
    return_kv: bool = False,
  ) -> Any:
    """Encodes token ids, alone or with cross-attention to a context.

    Args:
      params: parameters.
      ids: token ids, padded with config.text.pad_id.
      attention: "bidirectional"; "causal" (own position included); or
        "prefix_causal": the first `prefix_length` tokens see each other only.
        None: as the tower reads a text that is compared or matched.
      mask: true where a token may be seen: [B L], or [B L L] per query; None:
        `ids != pad_id`.
      prefix_length: tokens of the prefix.
      context: to attend to; None: cross-attention is skipped. Its rows
        are those of `ids`, or consecutive rows of `ids` share one. Several
        contexts: each for some of the rows that share one, see `uses`.
      uses: for each of several contexts, how many consecutive rows of `ids`
        attend to each row of it, one context after the other.
      joined: use the position table of joined captions.
      sample_index: row of E_Sam per row or per token.
      row_keys: one key per row; None: no dropout.
      train: whether dropout is on.
      return_kv: also return keys and values of all layers.

    Returns:
      Hidden states [B L W]; with `return_kv`, also a `KVCache`.

    Raises:
      ValueError: for an unknown attention, or a table that the config lacks.
    """
    options: dict[str, Any] = {
      **self._masks(ids, attention, mask, prefix_length),
      "context": context,
      "uses": uses,
      "row_keys": row_keys if train else None,
      "return_kv": return_kv,
    }
    if joined:
      if not self.config.joined_positions:
        raise ValueError("joined=True needs config.model.joined_positions > 0.")
      options["position_table"] = params["joined_pos"]
    if sample_index is not None:
      options["extra"] = self.sample_vectors(params, sample_index)
    hidden, kv = apply(self.tower, params["text"], ids, **options)
    return (hidden, KVCache(*kv)) if return_kv else hidden

  def _masks(
    self,
    ids: Int[Array, "B L"],
    attention: str | None,
    mask: Bool[Array, "B *L S"] | None,
    prefix_length: int | Int[Array, ""] | Int[Array, " B"] | None,
  ) -> dict[str, Any]:
    """Attention, mask and prefix of `text` as arguments of the tower."""
    attention = self.tower.reading if attention is None else attention
    if attention not in ATTENTION:
      raise ValueError(f"{attention=} is not one of {', '.join(ATTENTION)}.")
    prefixed = attention == "prefix_causal"
    if prefixed != (prefix_length is not None):
      raise ValueError("prefix_length belongs to attention='prefix_causal'.")
    if mask is None:
      mask = ids != self.config.text.pad_id
    masks: dict[str, Any] = {
      "causal": attention != "bidirectional",
      "mask": mask[:, None, None] if mask.ndim == 2 else mask[:, None],
    }
    if prefixed:
      masks["prefix_lengths"] = jnp.broadcast_to(
        jnp.asarray(prefix_length, jnp.int32), ids.shape[:1]
      )
    return masks

  @precise
  def decode_step(
    self,
    params: Params,
    last: Int[Array, " R"],
    cache: KVCache,
    *,
    position: Int[Array, ""] | int,
    visible: Bool[Array, "R S"],
    mask_id: int,
    context: ContextKV | None = None,
  ) -> tuple[Float[Array, "R V"], KVCache]:
    """Logits of the token after the last chosen one, and the updated cache.

    Source: the official MiCo code, which appends a [MASK] to the chosen tokens.

    A masked-causal decoder reads a [MASK] placed behind the chosen tokens,
    which is not kept: the last chosen token is written to the cache, the [MASK]
    is not.

    Args:
      params: parameters.
      last: chosen token of each row.
      cache: of the tokens before.
      position: of the last chosen token.
      visible: cache positions a token may see, `position` included.
      mask_id: of the tokenizer.
      context: to attend to; R is a multiple of its rows.
    """
    ids = self.tower.decoding_ids(last, mask_id=mask_id)
    rows, count = ids.shape
    # A token behind the last chosen one sees itself and its left.
    behind = jnp.tri(count, dtype=bool)[:, 1:]
    behind = jnp.broadcast_to(behind[None], (rows, count, count - 1))
    seen = jnp.broadcast_to(visible[:, None], (rows, count, visible.shape[1]))
    hidden, kv = apply(
      self.tower,
      params["text"],
      ids,
      mask=jnp.concatenate([seen, behind], axis=-1)[:, None],
      context=context,
      cache=cache,
      position=position,
      return_kv=True,
    )
    return self.lm_logits(params, hidden[:, -1]), KVCache(*kv)

  @precise
  def lm_logits(
    self, params: Params, hidden: Float[Array, "*B W"]
  ) -> Float[Array, "*B V"]:
    """Float32 logits over the vocabulary, by the tied decoder."""
    return tied.logits(*self.tower.decode(params["text"], hidden))

  @precise
  def token_loss(
    self,
    params: Params,
    hidden: Float[Array, "B L W"],
    labels: Int[Array, "B L"],
    *,
    label_smoothing: float = 0.0,
    partition: BatchSharding | None = None,
  ) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """Cross-entropy of labelled positions, without holding their logits.

    Args:
      params: parameters.
      hidden: states of the text tower.
      labels: ids that the states predict (where `tower.next_token`: those one
        to the right), or `mico_jax.kernels.cross_entropy.IGNORE`.
      label_smoothing: mass moved from the label to the vocabulary.
      partition: how the rows lie on a mesh.

    Returns:
      (loss in nats, whether the best id is the label); 0 and false where
      ignored.
    """
    return tied_cross_entropy(
      *self.tower.decode(params["text"], hidden),
      labels,
      label_smoothing=label_smoothing,
      partition=partition,
    )

  @precise
  def matching_logits(
    self,
    params: Params,
    hidden: Float[Array, "B L W"],
    ids: Int[Array, "B L"],
  ) -> Float[Array, "B 2"]:
    """Float32 logits (no match, match) of texts read with a context.

    Args:
      params: parameters.
      hidden: from `text`.
      ids: the texts.

    Source: ALBEF, arXiv:2107.07651, section 3.2.
    """
    head = parameters.MatchingHead(
      self.config.text.norm_eps, jnp.dtype(self.config.dtype)
    )
    pooled = self.pool_text(hidden, ids)
    logits = apply(head, params["matching_head"], pooled)
    return logits.astype(accumulation_dtype(logits.dtype))
