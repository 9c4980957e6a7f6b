"""Attention dropout: every backend drops the same weights.

Whether a weight is dropped is a hash of (seeds of the row, head, query, key),
so a kernel computes it tile by tile, again in the backward pass, and no mask is
ever in memory. The hash applies the finalizer of MurmurHash3 twice, with one
half of the row's seeds each.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Key

_BITS = 24  # of the hash that are compared with the rate
_STRIDE = 65599  # between queries: prime, and larger than any row of keys here
_HEAD = (0x1E3779B1, 0x5EBCA6B3)  # between heads, for each of the two seeds


def seeds(row_keys: Key[Array, " B"]) -> Int32[Array, "B 2"]:
  """Two seeds per row, from its PRNG key."""
  draw = jax.vmap(lambda key: jax.random.bits(key, (2,), "uint32"))
  return jax.lax.bitcast_convert_type(draw(row_keys), jnp.int32)


def _mix(x: Any) -> Any:
  for shift, factor in ((16, -0x7A143595), (13, -0x3D4D51CB)):
    x = (x ^ jax.lax.shift_right_logical(x, jnp.int32(shift))) * jnp.int32(
      factor
    )
  return x ^ jax.lax.shift_right_logical(x, jnp.int32(16))


def places(query: Any, key: Any) -> Any:
  """A number per pair of int32 query and key indices, broadcast."""
  return query * jnp.int32(_STRIDE) + key


def kept(place: Any, first: Any, second: Any, *, head: Any, rate: float) -> Any:
  """Whether each weight is kept, a boolean array.

  Args:
    place: numbers of the weights, from `places`.
    first: first seed of the row, int32, broadcast against `place`.
    second: second seed of the row.
    head: index of the head, int or int32.
    rate: probability to drop a weight, in [0, 1).
  """
  head = jnp.asarray(head, jnp.int32)
  first = _mix(first + head * jnp.int32(_HEAD[0]))
  second = _mix(second + head * jnp.int32(_HEAD[1]))
  value = _mix(_mix(place ^ first) ^ second)
  value = jax.lax.shift_right_logical(value, jnp.int32(32 - _BITS))
  return value >= jnp.int32(round(rate * 2**_BITS))
