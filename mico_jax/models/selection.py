"""The largest values of rows, fast for a few of many on a CPU too.

There XLA compiles `top_k` inside a loop to a sort of whole rows, and `argmax`
to a reduction of pairs that is not vectorised: over the words of a vocabulary
each took longer than the model. One maximum after another is a plain reduction.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_FEW = 16  # from so many on, a sort is no slower


def largest(
  x: Float[Array, "B N"], count: int
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  """The largest values of each row, and their places, as `jax.lax.top_k`.

  Of equal values the first counts as larger. NaNs are found wherever there are
  some.

  Args:
    x: rows of values.
    count: how many of each row.
  """
  sort = functools.partial(jax.lax.top_k, k=count)
  if count > _FEW:
    values, places = sort(x)
  else:
    one_by_one = functools.partial(_one_by_one, count=count)
    values, places = jax.lax.platform_dependent(
      x, cpu=one_by_one, default=lambda x: tuple(sort(x))
    )
  return values, places.astype(jnp.int32)


def _one_by_one(
  x: Float[Array, "B N"], *, count: int
) -> tuple[Float[Array, "B K"], Int[Array, "B K"]]:
  size = x.shape[-1]
  columns = jnp.arange(size, dtype=jnp.int32)[None]
  values, places = [], []
  for _ in range(count):
    value = jnp.max(x, axis=-1, keepdims=True)
    here = jnp.where(x == value, columns, size - 1)
    place = jnp.min(here, axis=-1, keepdims=True)
    x = jnp.where(columns == place, -jnp.inf, x)
    values.append(value)
    places.append(place)
  return jnp.concatenate(values, -1), jnp.concatenate(places, -1)
