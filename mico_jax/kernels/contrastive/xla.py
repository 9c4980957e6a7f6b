"""Contrastive loss in plain JAX: the whole [B, B] matrix in float32.

Products of embeddings in bfloat16 use its precision, others full precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from mico_jax.kernels.contrastive.blocks import NEGATIVE, precision_of
from mico_jax.kernels.dtypes import accumulation_dtype


def targets(
  size: int,
  *,
  label_smoothing: float,
  fingerprint: UInt32[Array, "B 2"] | None,
  valid: Bool[Array, " B"] | None,
  dtype: jnp.dtype,
  sigmoid: bool = False,
) -> tuple[Float[Array, "B B"], Bool[Array, "B B"]]:
  """Target of each pair, and which pairs are positives.

  The targets of a query sum to 1; in the sigmoid form each positive has 1.
  """
  same = jnp.eye(size, dtype=bool)
  if fingerprint is not None:
    equal = fingerprint[:, None, :] == fingerprint[None, :, :]
    same = same | jnp.all(equal, axis=-1)
  allowed = jnp.ones((size, size), bool)
  if valid is not None:
    allowed = jnp.broadcast_to(valid[None, :], (size, size))
    same = same & allowed
  mass = same.astype(dtype)
  if not sigmoid:
    mass = mass / jnp.maximum(mass.sum(axis=1, keepdims=True), 1)
  uniform = allowed.astype(dtype)
  uniform = uniform / jnp.maximum(uniform.sum(axis=1, keepdims=True), 1)
  return (1 - label_smoothing) * mass + label_smoothing * uniform, same


def loss(
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  *,
  temperature: Float[Array, ""],
  label_smoothing: float,
  fingerprint: UInt32[Array, "B 2"] | None,
  valid: Bool[Array, " B"] | None,
  detach_keys: bool,
  negatives: Float[Array, "B K E"] | None = None,
  negatives_valid: Bool[Array, "B K"] | None = None,
  bias: Float[Array, ""] | None = None,
  sigmoid: bool = False,
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
  """Loss of each query, and whether its most similar key is a positive.

  One direction of `mico_jax.kernels.contrastive.contrastive_pair`.
  """
  dtype = accumulation_dtype(query.dtype)
  precision = precision_of(query.dtype)
  query, key = query.astype(dtype), key.astype(dtype)
  if detach_keys:
    key = jax.lax.stop_gradient(key)
  shift = jnp.zeros((), dtype) if bias is None else bias.astype(dtype)
  product = jnp.matmul(query, key.T, precision=precision)
  logits = product / temperature.astype(dtype) + shift
  target, same = targets(
    query.shape[0],
    label_smoothing=label_smoothing,
    fingerprint=fingerprint,
    valid=valid,
    dtype=dtype,
    sigmoid=sigmoid,
  )
  if valid is not None:
    logits = jnp.where(valid[None, :], logits, jnp.asarray(NEGATIVE, dtype))
  if negatives is not None:
    extra = jnp.einsum(
      "be,bke->bk",
      query,
      negatives.astype(dtype),
      precision=jax.lax.Precision.HIGHEST,
    )
    extra = extra / temperature.astype(dtype) + shift
    if negatives_valid is not None:
      extra = jnp.where(negatives_valid, extra, jnp.asarray(NEGATIVE, dtype))
    logits = jnp.concatenate([logits, extra], axis=1)
    beside = ((0, 0), (0, extra.shape[1]))
    target, same = jnp.pad(target, beside), jnp.pad(same, beside)
  # A masked key has target 0; its log-probability must not reach the product.
  if sigmoid:
    against = jax.nn.softplus(logits).sum(axis=1)
    values = against - jnp.where(target > 0, target * logits, 0).sum(axis=1)
  else:
    log_prob = jax.nn.log_softmax(logits, axis=1)
    values = -jnp.where(target > 0, target * log_prob, 0).sum(axis=1)
  best = jnp.argmax(logits, axis=1)
  correct = jnp.take_along_axis(same, best[:, None], axis=1)[:, 0]
  if valid is not None:
    values = jnp.where(valid, values, jnp.zeros((), dtype))
    correct = correct & valid
  return values, correct
