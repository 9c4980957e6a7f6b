"""Tokens of rows of tables: one for each field."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.layers.parameter import parameter

NUMBER, CATEGORY, MISSING = 1, 2, 3  # states, as `modalities.tables` has them
# Half of a token's variance says which field it is, half what stands in it.
_INIT = nn.initializers.normal(0.7)


class FieldEmbed(nn.Module):
  """One token for each field: what field it is, and what its value is.

  A number is a linear map, of the field alone, of its shares of intervals; a
  category and a missing value are vectors. A field's own vector stands for its
  position.

  Attributes:
    width: of the tokens.
    dtype: compute dtype.
    rows: most categories of all fields together; row 0 is of none.

  Source: FT-Transformer, arXiv:2106.11959, section 3.3.
  """

  width: int
  dtype: Any = jnp.float32
  rows: int = 1024

  @nn.compact
  def __call__(self, x: Float[Array, "B F C"]) -> Float[Array, "B F D"]:
    """Returns [B, fields, width]; x is state, category, shares."""
    _, fields, columns = x.shape
    named = (axes.POSITION, axes.EMBED)

    def table(name: str, rows: int) -> Float[Array, "N D"]:
      shape = (rows, self.width)
      return parameter(self, name, _INIT, shape, named, dtype=self.dtype)

    numbers = parameter(
      self,
      "numbers",
      nn.initializers.normal(0.7 / (columns - 2) ** 0.5),
      (fields, columns - 2, self.width),
      (axes.POSITION, axes.UNSHARDED, axes.EMBED),
      dtype=self.dtype,
    )
    state = x[..., :1]
    shares = jnp.where(state == NUMBER, x[..., 2:], 0).astype(self.dtype)
    category = jnp.where(state == CATEGORY, x[..., 1:2], 0)[..., 0]
    value = jnp.einsum("bfk,fkd->bfd", shares, numbers)
    chosen = jnp.take(
      table("categories", self.rows + 1), category.astype(jnp.int32), axis=0
    )
    value = jnp.where(state == CATEGORY, chosen, value)
    missing = table("missing", fields)[None]
    value = jnp.where(state == MISSING, missing, value)
    return table("fields", fields)[None] + value
