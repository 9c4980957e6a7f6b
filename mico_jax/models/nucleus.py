"""Nucleus sampling: tokens drawn from the most probable ones.

The nucleus of a distribution is the smallest set of its most probable tokens
whose probabilities sum to `top_p` at least. A token is drawn from it in
proportion to its probability. `top_p` of 0 leaves the most probable token
alone, that of 1 all tokens.

Source: arXiv:1904.09751.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mico_jax import rng
from mico_jax.config import GenerationConfig

Real = float | Float[Array, ""]


class Nucleus(NamedTuple):
  """How tokens are drawn.

  Attributes:
    top_p: in [0, 1].
    temperature: by which logits are divided first, > 0.
    keys: one per row; the draws of a row depend on nothing else.
  """

  top_p: Real
  temperature: Real
  keys: Key[Array, " B"]

  def draw(
    self, logits: Float[Array, "B V"], step: Int[Array, ""]
  ) -> Int[Array, " B"]:
    """A token of each row.

    Args:
      logits: of the tokens.
      step: of decoding, part of the key.
    """
    kept = nucleus_logits(logits / self.temperature, self.top_p)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(self.keys)
    draw = jax.vmap(jax.random.categorical)
    return draw(keys, kept).astype(jnp.int32)


def nucleus_logits(
  logits: Float[Array, "B V"], top_p: Real
) -> Float[Array, "B V"]:
  """Logits with -inf for all tokens that are not of the nucleus.

  Of equal tokens at its edge those of smaller ids are in it.
  """
  order = jnp.argsort(-logits, axis=-1, stable=True)
  probability = jax.nn.softmax(logits, axis=-1)
  ordered = jnp.take_along_axis(probability, order, axis=-1)
  before = jnp.cumsum(ordered, axis=-1) - ordered
  # The first is in it also where top_p is 0.
  inside = (before < top_p).at[:, 0].set(True)
  rank = jnp.argsort(order, axis=-1)
  return jnp.where(jnp.take_along_axis(inside, rank, axis=-1), logits, -jnp.inf)


def row_keys(seed: int, rows: Int[Array, " B"]) -> Key[Array, " B"]:
  """Keys of texts by their numbers in a call or a gallery."""
  keys = rng.row_keys(seed, jnp.zeros((), jnp.int32), rows)
  return rng.at_site(keys, "nucleus")


def of(settings: GenerationConfig, rows: Int[Array, " B"]) -> Nucleus | None:
  """The nucleus of a config, for texts of these numbers; None: not drawn."""
  if settings.top_p == 0.0:
    return None
  keys = row_keys(settings.seed, rows)
  return Nucleus(settings.top_p, settings.temperature, keys)
