"""Models: encoders, text towers and MiCo itself.

`build(config)` gives a `MiCo`; `PRESETS` and `VISION` hold named configs.
"""

from __future__ import annotations

from mico_jax.models.encoders import ENCODERS, TEXT_ENCODERS
from mico_jax.models.mico import Context, MiCo, build
from mico_jax.models.presets import PRESETS, VISION, list_encoders, list_models
from mico_jax.models.text_tower import ContextKV, KVCache

__all__ = [
  "ENCODERS",
  "PRESETS",
  "TEXT_ENCODERS",
  "VISION",
  "Context",
  "ContextKV",
  "KVCache",
  "MiCo",
  "build",
  "list_encoders",
  "list_models",
]
