"""Dropout whose draws depend on the row only, never on the topology.

Every row of a global batch brings its own key, derived from (seed, step, global
row); a dropout site folds in its constant and the layer its index. How rows are
spread over devices or micro-batches then changes nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

# Constants of the dropout sites inside a block or tower. Frozen: a change
# changes every run.
(
  EMBEDDING,
  ATTENTION,
  ATTENTION_OUT,
  CROSS,
  CROSS_OUT,
  MLP_OUT,
  DROP_PATH_ATTN,
  DROP_PATH_MLP,
) = range(8)


def fold_rows(
  row_keys: Key[Array, " B"], tag: int | Int[Array, ""]
) -> Key[Array, " B"]:
  """Folds one number into the key of every row."""
  return jax.vmap(lambda key: jax.random.fold_in(key, tag))(row_keys)


def fold_frames(
  row_keys: Key[Array, " B"], num_frames: int
) -> Key[Array, " F"]:
  """Keys of the frames of each row, in the order of a [B * T] batch."""
  frames = jnp.arange(num_frames)
  keys = jax.vmap(
    lambda key: jax.vmap(lambda t: jax.random.fold_in(key, t))(frames)
  )(row_keys)
  return keys.reshape(-1)


def row_dropout(
  x: Float[Array, "B ..."],
  row_keys: Key[Array, " B"] | None,
  rate: float | Float[Array, ""],
  tag: int,
) -> Float[Array, "B ..."]:
  """Zeroes entries with probability `rate` and scales the rest up.

  Args:
    x: activations.
    row_keys: one key per row; None: no dropout.
    rate: in [0, 1).
    tag: constant of this site.
  """
  return _drop(x, row_keys, rate, tag, x.shape[1:])


def drop_path(
  x: Float[Array, "B ..."],
  row_keys: Key[Array, " B"] | None,
  rate: float | Float[Array, ""],
  tag: int,
) -> Float[Array, "B ..."]:
  """Zeroes whole rows with probability `rate`: stochastic depth.

  Source: arXiv:1603.09382.
  """
  return _drop(x, row_keys, rate, tag, (1,) * (x.ndim - 1))


def _drop(
  x: Float[Array, "B ..."],
  row_keys: Key[Array, " B"] | None,
  rate: float | Float[Array, ""],
  tag: int,
  shape: tuple[int, ...],
) -> Float[Array, "B ..."]:
  if row_keys is None or (isinstance(rate, float) and rate == 0.0):
    return x
  keep_prob = 1.0 - jnp.asarray(rate, jnp.float32)
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, keep_prob, shape))(
    fold_rows(row_keys, tag)
  )
  return jnp.where(keep, x / keep_prob.astype(x.dtype), jnp.zeros((), x.dtype))
