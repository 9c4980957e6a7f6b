"""Tokens of modalities with a custom embedding, and their padding.

The record of the modality names the embedding class
(`mico_jax.modalities.CustomEmbedding`). Padding tokens are zeros, no token
attends to them, and pools and contexts leave them out.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mico_jax.aliases import Params
from mico_jax.config import ModelConfig
from mico_jax.layers.stack import stacked_layers
from mico_jax.modalities import MODALITIES, CustomEmbedding


def custom_embeddings(config: ModelConfig) -> Mapping[str, CustomEmbedding]:
  """The embeddings that modalities of this config bring, by key."""
  return {
    key: m.embedding
    for key, m in MODALITIES.items()
    if isinstance(m.embedding, CustomEmbedding)
    and m.context_type in config.frame_table
  }


def module(
  config: ModelConfig, key: str, embedding: CustomEmbedding
) -> nn.Module:
  """The module that a modality's record names for its tokens.

  Raises:
    ValueError: if there is no such class.
  """
  name, _, kind = embedding.module.partition(":")
  try:
    cls = getattr(importlib.import_module(name), kind)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
      f"{key}: embedding.module={embedding.module!r} is no class of a module "
      f"that can be imported, 'package.module:Class' ({error})."
    ) from error
  return cls(config.vision.width, jnp.dtype(config.dtype), **embedding.options)


def embed(
  config: ModelConfig, params: Params, key: str, frames: Float[Array, "B ..."]
) -> dict[str, Array]:
  """Tokens of frames, as options of the encoder: "tokens" and "token_mask".

  Args:
    config: of the model.
    params: of the embedding.
    key: of the modality.
    frames: [B *frame], as the record says.

  Raises:
    ValueError: for frames or tokens of another shape than the record says.
  """
  embedding = custom_embeddings(config)[key]
  if frames.shape[1:] != embedding.frame:
    raise ValueError(
      f"{key}: frames of shape {frames.shape[1:]}; its record says "
      f"{embedding.frame}."
    )
  tokens: Any = module(config, key, embedding).apply(
    {"params": stacked_layers(params)}, frames
  )
  if tokens.shape[1:] != (embedding.tokens, config.vision.width):
    raise ValueError(
      f"{key}: {embedding.module} gives tokens of shape {tokens.shape[1:]}; "
      f"its record and the width say ({embedding.tokens}, "
      f"{config.vision.width})."
    )
  mask = embedding.valid_tokens(frames, xp=jnp)
  if mask is None:
    return {"tokens": tokens}
  # No value and no gradient of padding goes on.
  tokens = jnp.where(mask[:, :, None], tokens, 0)
  return {"tokens": tokens, "token_mask": mask}


def valid_tokens(
  key: str, pixels: Float[Array, "B T ..."], *, class_token: bool
) -> Bool[Array, "B T L"] | None:
  """Which tokens of the encoder are no padding; None: none is.

  Args:
    key: of the modality.
    pixels: frames, [B T *frame].
    class_token: whether the encoder puts one first; it is valid if any token
      of its frame is.
  """
  embedding = MODALITIES[key].embedding
  if not isinstance(embedding, CustomEmbedding):
    return None
  batch, frames = pixels.shape[:2]
  flat = pixels.reshape(batch * frames, *pixels.shape[2:])
  mask = embedding.valid_tokens(flat, xp=jnp)
  if mask is None:
    return None
  if class_token:
    mask = jnp.concatenate([mask.any(axis=1, keepdims=True), mask], axis=1)
  return mask.reshape(batch, frames, mask.shape[1])
