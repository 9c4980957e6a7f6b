"""Softmax attention with several backends; the entry points are in `api.py`."""

from __future__ import annotations

from mico_jax.kernels.attention.api import (
  AUTO_ORDER,
  BACKENDS,
  MASKED_ROWS,
  attention,
  folded_scale,
  packed_attention,
)
from mico_jax.kernels.attention.pallas_tpu import ATTENTION_SUMS

__all__ = [
  "ATTENTION_SUMS",
  "AUTO_ORDER",
  "BACKENDS",
  "MASKED_ROWS",
  "attention",
  "folded_scale",
  "packed_attention",
]
