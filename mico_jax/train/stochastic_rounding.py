"""Optimizer state kept in bfloat16: half the memory of both moments.

Rounded to the nearest, a moving average with a decay of 0.98 or more would
stand still: its changes are smaller than half a step of bfloat16. Rounded at
random, up with the probability of the distance, it moves right on average
(arXiv:2010.06192). The random bits are keyed by the number of the update and
the leaf, so they depend on neither devices nor restarts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Int, Key

from mico_jax.aliases import PyTree

_SEED = 0x6D69636F
_LOW = 0xFFFF  # the bits of a float32 that bfloat16 lacks


class NarrowState(NamedTuple):
  """State of a transformation whose arrays are bfloat16.

  Attributes:
    count: updates so far.
    inner: of the transformation; float32 scalars stay as they are.
  """

  count: Int[Array, ""]
  inner: PyTree


def round_at_random(
  x: Float[Array, "*B"], key: Key[Array, ""]
) -> BFloat16[Array, "*B"]:
  """float32 -> bfloat16, up or down so that the mean is right.

  Values that bfloat16 represents exactly, and non-finite ones, do not change.
  """
  words = jax.lax.bitcast_convert_type(x, jnp.uint32)
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  words = (words + noise) & jnp.uint32(0xFFFFFFFF ^ _LOW)
  rounded = jax.lax.bitcast_convert_type(words, jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _is_array(leaf: Any, dtype: Any) -> bool:
  return leaf.ndim > 0 and leaf.dtype == dtype


def narrow(
  transform: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """The same transformation with its float32 arrays kept in bfloat16.

  It computes in float32; only the state between updates is bfloat16.
  """

  def init(params: Any) -> NarrowState:
    inner = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16) if _is_array(x, jnp.float32) else x,
      transform.init(params),
    )
    return NarrowState(jnp.zeros((), jnp.int32), inner)

  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, NarrowState]:
    wide = jax.tree.map(
      lambda x: x.astype(jnp.float32) if _is_array(x, jnp.bfloat16) else x,
      state.inner,
    )
    updates, wide = transform.update(updates, wide, params)
    key = jax.random.fold_in(jax.random.key(_SEED), state.count)
    leaves, structure = jax.tree.flatten(wide)
    inner = [
      round_at_random(leaf, jax.random.fold_in(key, index))
      if _is_array(leaf, jnp.float32)
      else leaf
      for index, leaf in enumerate(leaves)
    ]
    return updates, NarrowState(
      state.count + 1, jax.tree.unflatten(structure, inner)
    )

  return optax.GradientTransformation(init, update)
