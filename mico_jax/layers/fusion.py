"""Barriers against fusions of the TPU compiler that cost time.

Fusions may cost more than they save: an MLP whose two products become one
operation computes the activation for every tile of the second product again,
and a product whose result is reduced along its rows at once runs at half its
rate. Barriers prevent both; they do nothing on other platforms.
In ViT-g's step they take the compiler's estimate from 47% of the peak to 54%
on v5p (`docs/results.md`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax.kernels import target


def barrier(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """The array, computed before anything that uses it."""
  if target.current().platform != "tpu":
    return x
  return jax.lax.optimization_barrier(x)


@jax.custom_vjp
def forward_barrier(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """`barrier` of the value alone: its gradient fuses freely."""
  return barrier(x)


forward_barrier.defvjp(
  lambda x: (barrier(x), None), lambda _, gradient: (gradient,)
)


@jax.custom_vjp
def add_bias(
  x: Float[Array, "*B D"], bias: Float[Array, " D"]
) -> Float[Array, "*B D"]:
  """Adds a bias whose gradient is summed by a matrix product.

  For gradients that come out of a Pallas kernel: a plain sum cannot be fused
  with it, and the compiler's own reduction of bfloat16 takes as long as the
  product of the layer. Elsewhere it is a plain sum.
  """
  return x + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _add_bias_forward(
  x: Float[Array, "*B D"], bias: Float[Array, " D"]
) -> tuple[Float[Array, "*B D"], None]:
  return add_bias(x, bias), None


def _add_bias_backward(
  _: None, gradient: Float[Array, "*B D"]
) -> tuple[Float[Array, "*B D"], Float[Array, " D"]]:
  narrow = gradient.dtype == jnp.bfloat16
  if not narrow or target.current().platform != "tpu":
    lead = tuple(range(gradient.ndim - 1))
    return gradient, jnp.sum(gradient, axis=lead)
  # Eight equal rows fill a tile. No reshape: tokens may be split over devices.
  ones = jnp.ones((8, *gradient.shape[:-1]), gradient.dtype)
  total = jnp.tensordot(
    ones, gradient, gradient.ndim - 1, preferred_element_type=jnp.float32
  )
  return gradient, total[0].astype(gradient.dtype)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)
