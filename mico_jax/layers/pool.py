"""Pooling of frame tokens to one vector per sample, by name."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def _mean_frames(
  x: Float[Array, "B T D"],
  frame_mask: Bool[Array, "B T"] | None,
  frame_gain: Float[Array, "T D"] | None,
) -> Float[Array, "B D"]:
  if frame_gain is not None:
    x = x * (1 + frame_gain.astype(x.dtype))[None]
  if frame_mask is None:
    return jnp.mean(x, axis=1)
  weight = frame_mask.astype(x.dtype)[:, :, None]
  total = jnp.sum(weight, axis=1)
  return jnp.sum(x * weight, axis=1) / jnp.maximum(total, jnp.ones_like(total))


def cls_pool(
  tokens: Float[Array, "B T L D"],
  *,
  frame_mask: Bool[Array, "B T"] | None = None,
  frame_gain: Float[Array, "T D"] | None = None,
) -> Float[Array, "B D"]:
  """The class token of each frame, averaged over the valid frames.

  Args:
    tokens: of the encoder.
    frame_mask: which frames are valid; None: all.
    frame_gain: frame t counts 1 + gain[t], by channel.
  """
  return _mean_frames(tokens[:, :, 0], frame_mask, frame_gain)


def mean_pool(
  tokens: Float[Array, "B T L D"],
  *,
  frame_mask: Bool[Array, "B T"] | None = None,
  frame_gain: Float[Array, "T D"] | None = None,
) -> Float[Array, "B D"]:
  """All tokens of each frame, then the valid frames, averaged; see above."""
  return _mean_frames(jnp.mean(tokens, axis=2), frame_mask, frame_gain)


POOLINGS: dict[str, Callable[..., Array]] = {"cls": cls_pool, "mean": mean_pool}


def cls_and_mean(tokens: Float[Array, "B T L D"]) -> Float[Array, "B T 2 D"]:
  """[class token, mean of the others] of each frame: a short context."""
  mean = jnp.mean(tokens[:, :, 1:], axis=2, keepdims=True)
  return jnp.concatenate([tokens[:, :, :1], mean], axis=2)
