"""In which dtype sums are taken."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def accumulation_dtype(dtype: Any) -> Any:
  """float32, or float64 for float64: of softmax, norms, logits and losses."""
  wide = jnp.dtype(dtype) == jnp.dtype("float64")
  return jnp.dtype("float64" if wide else "float32")
