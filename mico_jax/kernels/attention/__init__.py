"""Attention behind one door; see `api.py`."""

from __future__ import annotations

from mico_jax.kernels.attention.api import (
  AUTO_ORDER,
  BACKENDS,
  MASKED_ROWS,
  attention,
  combine_masks,
)

__all__ = [
  "AUTO_ORDER",
  "BACKENDS",
  "MASKED_ROWS",
  "attention",
  "combine_masks",
]
