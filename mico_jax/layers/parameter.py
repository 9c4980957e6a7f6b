"""Declaring a parameter with its logical axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mico_jax.layers.fsdp_gather import gathered


def parameter(
  module: nn.Module,
  name: str,
  init: Callable[..., Any],
  shape: tuple[int, ...],
  names: tuple[str, ...],
  *,
  dtype: Any = jnp.float32,
  factors: Array | None = None,
) -> Array:
  """A float32 parameter of a module; call it inside a compact method.

  Args:
    module: that owns it.
    name: of the parameter.
    init: initializer.
    shape: of the parameter.
    names: logical axis of each dimension.
    dtype: that it is used in; it travels between devices in this one.
    factors: of the last dimension, multiplied with before it is rounded.
  """
  boxed = nn.with_logical_partitioning(init, names)
  value: Any = module.param(name, boxed, shape, jnp.float32)
  if factors is not None:
    value = value * factors.reshape((1,) * (len(shape) - 1) + (-1,))
  if module.is_initializing():
    return value.astype(dtype)
  return gathered(value.astype(dtype), names)
