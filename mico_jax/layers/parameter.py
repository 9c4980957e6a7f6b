"""Declaring a parameter with its logical axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array


def parameter(
  module: nn.Module,
  name: str,
  init: Callable[..., Any],
  shape: tuple[int, ...],
  names: tuple[str, ...],
) -> Array:
  """A float32 parameter of a module; call it inside a compact method.

  Args:
    module: that owns it.
    name: of the parameter.
    init: initializer.
    shape: of the parameter.
    names: logical axis of each dimension.
  """
  boxed = nn.with_logical_partitioning(init, names)
  value: Any = module.param(name, boxed, shape, jnp.float32)
  return value
