"""Dtypes of accumulators, and of the compute of a machine."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from mico_jax.kernels import target


def accumulation_dtype(dtype: Any) -> Any:
  """Dtype of softmax, norms, logits and losses: at least float32."""
  wide = jnp.dtype(dtype) == jnp.dtype("float64")
  return jnp.dtype("float64" if wide else "float32")


def supported_dtype(name: str) -> str:
  """The compute dtype: float32 in place of bfloat16 on GPUs without it.

  GPUs below compute capability 8.0 (T4, V100) have no bfloat16; their float16
  is fast but needs loss scaling to train, so it is used only if named.

  Args:
    name: `model.dtype` of the config.
  """
  machine = target.current()
  if name != "bfloat16" or not 0.0 < machine.capability < 8.0:
    return name
  target.log_once(
    __name__,
    f"compute in float32: compute capability {machine.capability} has no "
    "bfloat16 (model.dtype=float16 is faster there)",
  )
  return "float32"
