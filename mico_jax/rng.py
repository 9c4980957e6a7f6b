"""Keys of random numbers that do not depend on the topology.

Every draw of a step is keyed by (seed, step, global row) and a named site, so
it is the same on any number of devices and in any split into micro-batches.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32


def row_keys(
  seed: int, step: Int[Array, ""], row: Int[Array, " B"]
) -> Key[Array, " B"]:
  """One key per row of the global batch, from (seed, step, global row)."""
  base = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda r: jax.random.fold_in(base, r))(row)


def at_site(keys: Key[Array, " B"], site: str) -> Key[Array, " B"]:
  """Keys of one named use of randomness, independent of all others."""
  code = zlib.crc32(site.encode()) & 0x7FFFFFFF
  return jax.vmap(lambda k: jax.random.fold_in(k, code))(keys)


def expand(keys: Key[Array, " B"], count: int) -> Key[Array, " BK"]:
  """`count` keys per row, flattened row-major (row 0's keys first)."""
  index = jnp.arange(count)
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return jax.vmap(lambda k: fold(k, index))(keys).reshape(-1)


def row_uniform(keys: Key[Array, " B"], count: int) -> Float[Array, "B L"]:
  """`count` uniform numbers in [0, 1) per row."""
  return jax.vmap(lambda k: jax.random.uniform(k, (count,)))(keys)


def row_subset(
  keys: Key[Array, " B"], total: int, count: int
) -> Int[Array, "B K"]:
  """A sorted uniform subset of `count` of the indices 0..total-1 per row."""
  order = jnp.argsort(row_uniform(keys, total), axis=1)
  return jnp.sort(order[:, :count], axis=1)


def scramble(x: UInt32[Array, "*B"]) -> UInt32[Array, "*B"]:
  """A bijective scrambling of 32 bits (two multiply-xorshift rounds)."""
  x = (x ^ (x >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
  return x ^ (x >> jnp.uint32(16))


def row_words(keys: Key[Array, " B"]) -> UInt32[Array, "B 2"]:
  """64 random bits per row, for draws about pairs of rows."""
  return jax.vmap(lambda k: jax.random.bits(k, (2,), jnp.uint32))(keys)


def pair_log_exponential(
  words: UInt32[Array, "B 2"], index: Int[Array, " C"]
) -> Float[Array, "B C"]:
  """Log of an exponential variable per row and index, by hashing both.

  It depends on nothing else, so a pair draws the same in any block. With
  weights w, the index of the largest log(w) - this is drawn in proportion to w.

  Args:
    words: of each row, from `row_words`.
    index: global rows.
  """
  seat = scramble(index.astype(jnp.uint32) + jnp.uint32(0x9E3779B9))[None, :]
  bits = scramble(scramble(words[:, :1] ^ seat) + words[:, 1:])
  uniform = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
  below_one = jnp.float32(1 - 2.0**-24)
  return jnp.log(-jnp.log1p(-jnp.minimum(uniform, below_one)))
