"""Configs of tiny models, for tests; a test names the fields it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mico_jax.config import ModelConfig, TextConfig, VisionConfig


def tiny_vision(**changes: Any) -> VisionConfig:
  """A vision transformer of two layers of width 16 on 8 pixels."""
  fields: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 4,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 32,
  }
  return VisionConfig(**(fields | changes))


def tiny_text(**changes: Any) -> TextConfig:
  """A text tower of two layers of width 16 without dropout."""
  fields: dict[str, Any] = {
    "vocab_size": 40,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 32,
    "max_positions": 24,
    "dropout": 0.0,
  }
  return TextConfig(**(fields | changes))


def tiny_model(
  *,
  vision: Mapping[str, Any] | None = None,
  text: Mapping[str, Any] | None = None,
  **changes: Any,
) -> ModelConfig:
  """Both towers, with other fields for each and for the model."""
  fields: dict[str, Any] = {
    "vision": tiny_vision(**(vision or {})),
    "text": tiny_text(**(text or {})),
    "embed_dim": 8,
    "frame_table": {"video": 2, "audio": 2, "depth": 1, "normal": 1},
  }
  return ModelConfig(**(fields | changes))
