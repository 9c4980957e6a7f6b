"""mico_jax: omni-modal pretraining in JAX.

    import mico_jax
    model = mico_jax.load("runs/demo")
    model.embed(image=["photo.jpg"], text=["a dog barks"])

The names below are imported when first used, so `import mico_jax` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from mico_jax.checkpoint.manifest import CheckpointError
  from mico_jax.config import Config, ConfigError
  from mico_jax.inference.index import Index
  from mico_jax.inference.omni_model import OmniModel, load
  from mico_jax.modalities import MODALITIES, DecodeError
  from mico_jax.models import build
  from mico_jax.models.presets import list_encoders, list_models
  from mico_jax.pretrained import list_pretrained

__version__ = "0.1.0"

_PUBLIC = {
  "MODALITIES": "mico_jax.modalities",
  "CheckpointError": "mico_jax.checkpoint.manifest",
  "Config": "mico_jax.config",
  "ConfigError": "mico_jax.config",
  "DecodeError": "mico_jax.modalities",
  "Index": "mico_jax.inference.index",
  "OmniModel": "mico_jax.inference.omni_model",
  "build": "mico_jax.models",
  "list_encoders": "mico_jax.models.presets",
  "list_models": "mico_jax.models.presets",
  "list_pretrained": "mico_jax.pretrained",
  "load": "mico_jax.inference.omni_model",
}

__all__ = [
  "MODALITIES",
  "CheckpointError",
  "Config",
  "ConfigError",
  "DecodeError",
  "Index",
  "OmniModel",
  "__version__",
  "build",
  "list_encoders",
  "list_models",
  "list_pretrained",
  "load",
]


def __getattr__(name: str) -> Any:
  """Imports a public name when it is first used."""
  if name not in _PUBLIC:
    raise AttributeError(f"module 'mico_jax' has no attribute {name!r}")
  value = getattr(importlib.import_module(_PUBLIC[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """The public names."""
  return sorted(__all__)
