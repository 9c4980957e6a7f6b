"""LayerNorm and RMSNorm, in float32 for every compute dtype."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.kernels.dtypes import accumulation_dtype
from mico_jax.layers.fusion import barrier
from mico_jax.layers.parameter import parameter

_Saved = tuple[
  Float[Array, "*B D"], Float[Array, "*B 1"], Float[Array, "*B 1"], Array, Array
]


def _rows(vector: Float[Array, " D"], ndim: int) -> Float[Array, "..."]:
  return vector.reshape((1,) * (ndim - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
  x: Float[Array, "*B D"],
  scale: Float[Array, " D"],
  bias: Float[Array, " D"],
  eps: float,
) -> Float[Array, "*B D"]:
  """Normalises the last axis; statistics by two passes, not E[x^2] - E[x]^2.

  For the gradient only the input and two numbers per row are kept.

  Args:
    x: of any float dtype.
    scale: factor after normalising.
    bias: added last.
    eps: added to the variance.

  Returns:
    The normalised input in its own dtype, computed in float32 (or float64).
  """
  return _forward(x, scale, bias, eps)[0]


def _forward(
  x: Float[Array, "*B D"],
  scale: Float[Array, " D"],
  bias: Float[Array, " D"],
  eps: float,
) -> tuple[Float[Array, "*B D"], _Saved]:
  dtype = accumulation_dtype(x.dtype)
  wide = x.astype(dtype)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + jnp.asarray(eps, dtype))
  y = (wide - mean) * inverse * _rows(scale.astype(dtype), x.ndim)
  y = y + _rows(bias.astype(dtype), x.ndim)
  return y.astype(x.dtype), (x, mean, inverse, scale, bias)


def _backward(
  eps: float, saved: _Saved, gradient: Float[Array, "*B D"]
) -> tuple[Float[Array, "*B D"], Float[Array, " D"], Float[Array, " D"]]:
  del eps
  gradient = barrier(gradient)
  x, mean, inverse, scale, bias = saved
  dtype = mean.dtype
  normal = (x.astype(dtype) - mean) * inverse
  g = gradient.astype(dtype)
  lead = tuple(range(x.ndim - 1))
  scale_gradient = jnp.sum(g * normal, axis=lead).astype(scale.dtype)
  bias_gradient = jnp.sum(g, axis=lead).astype(bias.dtype)
  g = g * _rows(scale.astype(dtype), x.ndim)
  along = jnp.mean(g * normal, axis=-1, keepdims=True)
  g = inverse * (g - jnp.mean(g, axis=-1, keepdims=True) - normal * along)
  return g.astype(x.dtype), scale_gradient, bias_gradient


layer_norm.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
  """`layer_norm` with its parameters.

  Attributes:
    eps: added to the variance.
  """

  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Returns the normalised input in its own dtype."""
    shape, names = (x.shape[-1],), (axes.NORM,)
    scale = parameter(self, "scale", nn.initializers.ones, shape, names)
    bias = parameter(self, "bias", nn.initializers.zeros, shape, names)
    return layer_norm(x, scale, bias, self.eps)


class RMSNorm(nn.Module):
  """Divides by the root of the mean square, and scales; no mean, no bias.

  Attributes:
    eps: added to the mean square.

  Source: arXiv:1910.07467.
  """

  eps: float

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Returns the normalised input in its own dtype."""
    scale = parameter(
      self, "scale", nn.initializers.ones, (x.shape[-1],), (axes.NORM,)
    )
    dtype = accumulation_dtype(x.dtype)
    wide = x.astype(dtype)
    square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(square + jnp.asarray(self.eps, dtype))
    return (y * _rows(scale.astype(dtype), x.ndim)).astype(x.dtype)
