"""Declaring a parameter with its logical axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax.layers.fsdp_gather import gathered


def parameter(
  module: nn.Module,
  name: str,
  init: Callable[..., Any],
  shape: tuple[int, ...],
  names: tuple[str, ...],
  *,
  dtype: Any = jnp.float32,
  factors: Float[Array, " D"] | None = None,
) -> Float[Array, "..."]:
  """A float32 parameter of a module; call it inside a compact method.

  Args:
    module: its owner.
    name: of the parameter.
    init: initializer.
    shape: of the parameter.
    names: logical axis of each dimension.
    dtype: of its use, and of its transfer between devices.
    factors: of the last dimension, applied before rounding to `dtype`.
  """
  boxed = nn.with_logical_partitioning(init, names)
  value: Any = module.param(name, boxed, shape, jnp.float32)
  if factors is not None:
    value = value * factors.reshape((1,) * (len(shape) - 1) + (-1,))
  if module.is_initializing():
    return value.astype(dtype)
  return gathered(value.astype(dtype), names)
