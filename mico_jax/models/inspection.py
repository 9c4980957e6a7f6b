"""What an encoder attends to, from the queries and keys of its blocks."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mico_jax.aliases import Params
from mico_jax.layers.attention import (
  INSPECTED,
  QUERIES_KEYS,
  attention_weights,
)
from mico_jax.models import parameters
from mico_jax.models.mico import MiCo
from mico_jax.models.text import apply, precise


@precise
def attention(
  model: MiCo,
  params: Params,
  key: str,
  pixels: Float[Array, "B T *frame"],
  block: int = -1,
) -> Float[Array, "B T N L"]:
  """Attention weights of the token that stands for a frame, in one block.

  Without a class token they are the mean over all patches.

  Args:
    model: the model.
    params: its parameters.
    key: of the modality.
    pixels: as for `MiCo.encode`.
    block: of the encoder, from 0; negative: from the last.

  Returns:
    By head, to every patch (row by row) or token of the modality's own. What
    goes to the class token and to registers is left out, so that the sum is at
    most 1.

  Raises:
    ValueError: for a block that is not there, and for an encoder that has no
      attention among all of its tokens.
  """
  inputs = model.frame_inputs(params, key, pixels)
  encoder, config = parameters.towers(model.config)[0], model.config.vision
  _, kept = apply(encoder, params["vision"], **inputs, mutable=[INSPECTED])
  if INSPECTED not in kept:
    raise ValueError(
      f"an encoder {config.encoder!r} has no attention among all of its tokens."
    )
  queries, keys = kept[INSPECTED]["blocks"]["attn"][QUERIES_KEYS][0]
  if not -len(queries) <= block < len(queries):
    raise ValueError(f"block={block}: the encoder has {len(queries)} blocks.")
  has_class_token = config.pooling == "class"
  weights = _patch_weights(
    *(queries[block], keys[block], inputs.get("token_mask")),
    first=has_class_token + config.registers,
    class_token=has_class_token,
  )
  return weights.reshape(*pixels.shape[:2], *weights.shape[1:])


def _patch_weights(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B L N H"],
  token_mask: Bool[Array, "B P"] | None,
  *,
  first: int,
  class_token: bool,
) -> Float[Array, "B N P"]:
  """Weights on the patches, which are the tokens from `first` on."""
  mask = None
  if token_mask is not None:
    mask = jnp.pad(token_mask, ((0, 0), (first, 0)), constant_values=True)
  if class_token:
    return attention_weights(q[:, :1], k, mask)[:, :, 0, first:]
  weights = attention_weights(q[:, first:], k, mask)[..., first:]
  if token_mask is None:
    return weights.mean(axis=2)
  valid = token_mask[:, None, :, None]
  total = jnp.maximum(valid.sum(axis=2), 1)
  return jnp.where(valid, weights, 0).sum(axis=2) / total
