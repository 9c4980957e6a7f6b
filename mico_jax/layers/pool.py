"""Pooling of frame tokens to one vector per sample, by name."""

from __future__ import annotations

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


def token_mean(
  tokens: Float[Array, "B T L D"],
  token_mask: Bool[Array, "B T L"] | None = None,
) -> Float[Array, "B T D"]:
  """Mean of the valid tokens of each frame, 0 where there are none."""
  if token_mask is None:
    return jnp.mean(tokens, axis=2)
  weight = token_mask.astype(tokens.dtype)[..., None]
  total = jnp.maximum(jnp.sum(weight, axis=2), 1)
  return jnp.sum(tokens * weight, axis=2) / total


def _valid_frames(
  frame_mask: Bool[Array, "B T"] | None,
  token_mask: Bool[Array, "B T L"] | None,
) -> Bool[Array, "B T"] | None:
  """Frames that are valid and have a valid token; None: all are."""
  if token_mask is None:
    return frame_mask
  filled = jnp.any(token_mask, axis=2)
  return filled if frame_mask is None else frame_mask & filled


POOLINGS = ("cls", "mean")


def pool_frames(
  name: str,
  tokens: Float[Array, "B T L D"],
  *,
  token_mask: Bool[Array, "B T L"] | None = None,
  frame_mask: Bool[Array, "B T"] | None = None,
  frame_gain: Float[Array, "T D"] | None = None,
) -> Float[Array, "B D"]:
  """One vector per frame, averaged over the valid frames.

  Args:
    name: "cls": the class token of a frame; "mean": the mean of its valid
      tokens.
    tokens: of the encoder.
    token_mask: valid tokens; None: all. A frame without any is not valid.
    frame_mask: valid frames; None: all.
    frame_gain: frame t counts 1 + gain[t], by channel.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in POOLINGS:
    raise ValueError(f"pooling {name!r} is not one of {', '.join(POOLINGS)}.")
  valid = _valid_frames(frame_mask, token_mask)
  frames = tokens[:, :, 0] if name == "cls" else token_mean(tokens, token_mask)
  return _mean_frames(frames, valid, frame_gain)


def frame_changes(
  tokens: Float[Array, "B T L D"],
  *,
  token_mask: Bool[Array, "B T L"] | None = None,
  frame_mask: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"] | None]:
  """What changes in each token from a frame to the next, S = (T - 1) L.

  Returns:
    (differences, mask of those whose tokens are valid in both frames; None: all
    are).
  """
  rows, frames, length, width = tokens.shape
  changes = tokens[:, 1:] - tokens[:, :-1]
  changes = changes.reshape(rows, (frames - 1) * length, width)
  if token_mask is None and frame_mask is None:
    return changes, None
  valid = jnp.ones(tokens.shape[:3], bool)
  for mask in (token_mask, frame_mask):
    if mask is not None:
      valid = valid & mask.reshape(*mask.shape, *(1,) * (3 - mask.ndim))
  valid = valid[:, 1:] & valid[:, :-1]
  return changes, valid.reshape(changes.shape[:2])


def cls_and_mean(
  tokens: Float[Array, "B T L D"],
  token_mask: Bool[Array, "B T L"] | None = None,
) -> Float[Array, "B T 2 D"]:
  """[class token, mean of the valid others] of each frame: a short context."""
  others = None if token_mask is None else token_mask[:, :, 1:]
  mean = token_mean(tokens[:, :, 1:], others)[:, :, None]
  return jnp.concatenate([tokens[:, :, :1], mean], axis=2)
