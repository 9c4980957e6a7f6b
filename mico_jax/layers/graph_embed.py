"""Tokens of graphs: nodes and edges, placed by eigenvectors."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.layers.mlp import Dense


class GraphEmbed(nn.Module):
  """One token for each node and edge.

  Linear maps of the features of nodes, of weight and features of edges, and of
  the two places of a token. A map's bias says which kind a token is.

  Attributes:
    width: of the tokens.
    dtype: compute dtype.
    nodes: tokens of nodes; those of edges follow.
    features: of a node, and of an edge.

  Source: TokenGT, arXiv:2207.02505, section 2.
  """

  width: int
  dtype: Any = jnp.float32
  nodes: int = 64
  features: int = 32

  @nn.compact
  def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L D"]:
    """Returns [B, L, width]; x is kind, weight, features, places."""
    x = jnp.where(x[..., :1] > 0.5, x, 0)
    told = x[..., 1 : 2 + self.features]

    def dense(name: str, **options: Any) -> Dense:
      names = (axes.PATCH, axes.EMBED)
      return Dense(self.width, self.dtype, names=names, name=name, **options)

    nodes = dense("node")(told[:, : self.nodes, 1:])
    edges = dense("edge")(told[:, self.nodes :])
    places = dense("place", use_bias=False)(x[..., 2 + self.features :])
    return jnp.concatenate([nodes, edges], axis=1) + places
