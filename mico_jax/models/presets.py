"""Model configs by name.

Giant is the released MiCo: EVA-01-CLIP ViT-g/14 and BERT-base
(arXiv:2406.09412, arXiv:2303.15389). Large, base and small take the encoder
sizes of ViT (arXiv:2010.11929, table 1; small: arXiv:2012.12877); the paper
states only their totals. Tiny is for the demo and for tests.
"""

from __future__ import annotations

from mico_jax.config import ModelConfig, TextConfig, VisionConfig


def _vision(
  width: int, depth: int, heads: int, patch: int, image: int = 224
) -> VisionConfig:
  return VisionConfig(
    image_size=image,
    patch_size=patch,
    width=width,
    depth=depth,
    num_heads=heads,
    mlp_dim=4 * width,
  )


PRESETS: dict[str, ModelConfig] = {
  "mico_tiny": ModelConfig(
    vision=_vision(64, 3, 4, 8, image=32),
    text=TextConfig(
      vocab_size=512,
      width=64,
      depth=3,
      num_heads=4,
      mlp_dim=256,
      max_positions=80,
      dropout=0.0,
    ),
    embed_dim=64,
  ),
  "mico_s16": ModelConfig(
    vision=_vision(384, 12, 6, 16),
    text=TextConfig(width=384, num_heads=6, mlp_dim=1536),
    embed_dim=384,
  ),
  "mico_b16": ModelConfig(vision=_vision(768, 12, 12, 16)),
  "mico_l14": ModelConfig(vision=_vision(1024, 24, 16, 14)),
  "mico_g14": ModelConfig(),
}


def list_models() -> list[str]:
  """Names of the packaged model configs."""
  return list(PRESETS)
