"""In which dtype sums are taken, and which one the machine computes in."""

from __future__ import annotations

import functools
import logging
from typing import Any

import jax.numpy as jnp

from mico_jax.kernels import target

_logger = logging.getLogger(__name__)


def accumulation_dtype(dtype: Any) -> Any:
  """float32, or float64 for float64: of softmax, norms, logits and losses."""
  wide = jnp.dtype(dtype) == jnp.dtype("float64")
  return jnp.dtype("float64" if wide else "float32")


def supported_dtype(name: str) -> str:
  """The named dtype, or float32 for bfloat16 on a GPU that lacks it.

  GPUs below compute capability 8.0 (T4, V100) have no bfloat16; their float16
  is fast but needs a scaled loss to train, so it is taken only if named.

  Args:
    name: of the config.
  """
  machine = target.current()
  if name != "bfloat16" or not 0.0 < machine.capability < 8.0:
    return name
  _say(machine.capability)
  return "float32"


@functools.cache
def _say(capability: float) -> None:
  _logger.info(
    "compute in float32: compute capability %s has no bfloat16 (model.dtype="
    "float16 is faster there)",
    capability,
  )
