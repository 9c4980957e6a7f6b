"""Token cross-entropy in plain JAX, in at least float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mico_jax.kernels.dtypes import accumulation_dtype


def loss(
  logits: Float[Array, "*B V"],
  labels: Int[Array, "*B"],
  *,
  label_smoothing: float,
  ignore: int,
) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
  """See `mico_jax.kernels.cross_entropy.token_cross_entropy`."""
  logits = logits.astype(accumulation_dtype(logits.dtype))
  scored = labels != ignore
  index = jnp.where(scored, labels, jnp.zeros_like(labels))
  chosen = jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]
  normaliser = jax.nn.logsumexp(logits, axis=-1)
  values = normaliser - chosen
  if label_smoothing:
    uniform = normaliser - logits.mean(axis=-1)
    values = (1 - label_smoothing) * values + label_smoothing * uniform
  correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
  return jnp.where(scored, values, jnp.zeros_like(values)), correct & scored
