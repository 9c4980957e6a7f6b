"""Models: encoders, text towers and MiCo itself.

`build(config)` gives a `MiCo`; `PRESETS` holds named configs.
"""

from __future__ import annotations

from mico_jax.models.bert import ContextKV, KVCache
from mico_jax.models.encoders import ENCODERS, TEXT_ENCODERS
from mico_jax.models.mico import Context, MiCo, build
from mico_jax.models.presets import PRESETS, list_models

__all__ = [
  "ENCODERS",
  "PRESETS",
  "TEXT_ENCODERS",
  "Context",
  "ContextKV",
  "KVCache",
  "MiCo",
  "build",
  "list_models",
]
