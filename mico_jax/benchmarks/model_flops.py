"""Model FLOPs of a vision tower by part.

Counts matrix products, with two operations per multiply-add, but no
recomputation, norms, softmax or optimizer. A training step is three forward
passes, less the gradient of the pixels.
"""

from __future__ import annotations

from mico_jax.config import VisionConfig


def tokens(config: VisionConfig) -> int:
  """Tokens of an image, class token included."""
  return (config.image_size // config.patch_size) ** 2 + 1


def forward(config: VisionConfig) -> dict[str, float]:
  """FLOPs of one image's forward pass by part.

  Args:
    config: of a plain vision transformer.

  Raises:
    NotImplementedError: for an encoder in stages.
  """
  if config.encoder != "vit":
    raise NotImplementedError(f"model FLOPs of encoder {config.encoder!r}")
  length, width = tokens(config), config.width
  per_layer = 2.0 * config.depth * length
  hidden = config.mlp_dim * (2 if config.mlp == "swiglu" else 1)
  return {
    "patch embedding": 2.0 * (length - 1) * 3 * config.patch_size**2 * width,
    "qkv projection": per_layer * 3 * width**2,
    "attention": per_layer * 2 * length * width,
    "output projection": per_layer * width**2,
    "MLP in": per_layer * width * hidden,
    "MLP out": per_layer * width * config.mlp_dim,
  }


def train(config: VisionConfig) -> dict[str, float]:
  """FLOPs of one image in a training step, by part."""
  return {
    part: flops * (2 if part == "patch embedding" else 3)
    for part, flops in forward(config).items()
  }
