"""LayerNorm in float32, whatever the compute dtype."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.kernels.dtypes import accumulation_dtype
from mico_jax.layers.parameter import parameter


class LayerNorm(nn.Module):
  """Normalises the last axis; statistics by two passes, not E[x^2] - E[x]^2.

  Attributes:
    eps: added to the variance.
  """

  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Returns the normalised input in its own dtype."""
    names = (axes.NORM,)
    shape = (x.shape[-1],)
    scale = parameter(self, "scale", nn.initializers.ones, shape, names)
    bias = parameter(self, "bias", nn.initializers.zeros, shape, names)
    dtype = accumulation_dtype(x.dtype)
    y = x.astype(dtype)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(variance + jnp.asarray(self.eps, dtype))
    lead = (1,) * (x.ndim - 1)
    y = y * scale.astype(dtype).reshape(*lead, -1)
    y = y + bias.astype(dtype).reshape(*lead, -1)
    return y.astype(x.dtype)
