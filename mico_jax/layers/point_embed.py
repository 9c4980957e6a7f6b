"""Tokens of point clouds: groups of neighbours, each through a PointNet."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mico_jax import axes
from mico_jax.layers.activations import gelu
from mico_jax.layers.mlp import Dense

_NONE = -1e4  # below all values of a point that is there


class PointEmbed(nn.Module):
  """One token for each group of points, whatever their order.

  Two layers on each point; their largest values beside each point's own; two
  layers more, and the largest values again. The place of the centre, which is
  the first point, is added by an MLP. There is no batch normalisation, which
  would make a token depend on other samples.

  Attributes:
    width: of the tokens.
    dtype: compute dtype.
    hidden: width of the layers inside.

  Source: PointNet, arXiv:1612.00593; groups as Point-BERT, arXiv:2111.14819,
    section 3.1.
  """

  width: int
  dtype: Any = jnp.float32
  hidden: int = 128

  @nn.compact
  def __call__(self, x: Float[Array, "B G K C"]) -> Float[Array, "B G D"]:
    """Returns [B, groups, width]; x is x y z, colour, coloured, there."""
    there = x[..., -1:] > 0.5
    x = jnp.where(there, x, 0)
    centre = x[:, :, :1, :3]
    near = jnp.where(there, x[..., :3] - centre, 0)
    points = jnp.concatenate([near, x[..., :3], x[..., 3:7]], axis=-1)
    inner = {"names": (axes.UNSHARDED, axes.UNSHARDED)}
    inner |= {"bias_name": axes.UNSHARDED}
    outer = {"names": (axes.UNSHARDED, axes.EMBED)}

    def dense(name: str, features: int, kind: Any) -> Dense:
      return Dense(features, self.dtype, name=name, **kind)

    h = gelu(dense("fc1", self.hidden, inner)(points))
    h = dense("fc2", self.hidden, inner)(h)
    common = jnp.broadcast_to(_largest(h, there), h.shape)
    h = jnp.concatenate([h, common], axis=-1)
    h = gelu(dense("fc3", 2 * self.hidden, inner)(h))
    tokens = _largest(dense("fc4", self.width, outer)(h), there)
    place = gelu(dense("place1", self.hidden, inner)(centre))
    place = dense("place2", self.width, outer)(place)
    return (tokens + place)[:, :, 0]


def _largest(
  values: Float[Array, "B G K D"], there: Bool[Array, "B G K 1"]
) -> Float[Array, "B G 1 D"]:
  """The largest values of the points that are there."""
  least = jnp.asarray(_NONE, values.dtype)
  return jnp.where(there, values, least).max(axis=2, keepdims=True)
