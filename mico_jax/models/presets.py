"""Model configs by name: encoders, and MiCo with one of them.

Giant is the official MiCo: EVA-01-CLIP ViT-g/14 and BERT-base
(arXiv:2406.09412, arXiv:2303.15389). Large, base and small take the encoder
sizes of ViT (arXiv:2010.11929, table 1; small: arXiv:2012.12877) in the form of
EVA-01; the paper states only their totals. The EVA-02 and CLIP models are the
other encoders that the official code can be built with. Swin, ConvNeXt V2 and
UniRepLKNet have the sizes that their authors published. Tiny is for the demo
and for tests.

Any encoder goes with any MiCo:
`dataclasses.replace(PRESETS["mico_b16"], vision=VISION["vit_h14"])`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from mico_jax.config import ModelConfig, TextConfig, VisionConfig
from mico_jax.models import convnext, swin, unireplknet

# Plain ViT: width, depth, heads, width of the MLP. Tiny, small:
# arXiv:2012.12877; base to huge: arXiv:2010.11929; giant: table 2 of
# arXiv:2106.04560; gigantic: the same, as g/14 and G/14 are written there.
SIZES: dict[str, tuple[int, int, int, int]] = {
  "ti": (192, 12, 3, 768),
  "s": (384, 12, 6, 1536),
  "b": (768, 12, 12, 3072),
  "l": (1024, 24, 16, 4096),
  "h": (1280, 32, 16, 5120),
  "giant": (1408, 40, 16, 6144),
  "gigantic": (1664, 48, 16, 8192),
}


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


def _eva02(
  width: int, depth: int, heads: int, mlp: int, patch: int
) -> VisionConfig:
  """EVA-02 as a CLIP tower (arXiv:2303.15389, table 11)."""
  return VisionConfig(
    patch_size=patch,
    width=width,
    depth=depth,
    num_heads=heads,
    mlp_dim=mlp,
    mlp="swiglu",
    sub_norm=True,
    rope_grid=16,
  )


def _clip(width: int, depth: int, patch: int, image: int = 224) -> VisionConfig:
  """OpenAI's CLIP (arXiv:2103.00020, table 20)."""
  return dataclasses.replace(
    _vision(width, depth, width // 64, patch, image),
    norm_eps=1e-5,
    mlp="quick_gelu",
    qkv_bias="all",
    patch_bias=False,
    pre_norm=True,
    clip_embed_bias=False,
  )


def _plain() -> Iterator[tuple[str, VisionConfig]]:
  """Plain ViT at every size and patch, as in timm and big_vision."""
  for name, (width, depth, heads, mlp) in SIZES.items():
    for patch in (14, 16, 32):
      vision = dataclasses.replace(
        _vision(width, depth, heads, patch), mlp_dim=mlp, qkv_bias="all"
      )
      yield f"vit_{name}{patch}", vision


_L14 = _eva02(1024, 24, 16, 2730, 14)

VISION: dict[str, VisionConfig] = {
  "eva01_g14": VisionConfig(),
  "eva02_b16": _eva02(768, 12, 12, 2048, 16),
  "eva02_l14": _L14,
  "eva02_l14_336": dataclasses.replace(_L14, image_size=336),
  # The 4.4 B parameters of EVA-02-CLIP-E, plain and plus (whose text tower is
  # the larger one).
  "eva02_bige14_plus": VisionConfig(
    width=1792, depth=64, mlp_dim=15360, norm="post"
  ),
  "clip_b32": _clip(768, 12, 32),
  "clip_b16": _clip(768, 12, 16),
  "clip_l14": _clip(1024, 24, 14),
  "clip_l14_336": _clip(1024, 24, 14, 336),
  **dict(_plain()),
  **{f"swin_{name}": size for name, size in swin.SIZES.items()},
  **{f"convnext_{name}": size for name, size in convnext.SIZES.items()},
  **{f"unireplknet_{name}": size for name, size in unireplknet.SIZES.items()},
}

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
  "mico_g14": ModelConfig(vision=VISION["eva01_g14"]),
  **{
    f"mico_{name}": ModelConfig(vision=VISION[name])
    for name in (
      "eva02_b16",
      "eva02_l14",
      "eva02_bige14_plus",
      "clip_b16",
      "clip_l14_336",
      "swin_b",
      "convnext_base",
      "convnext_huge",
      "unireplknet_b",
      "unireplknet_xl",
    )
  },
}


def list_models() -> list[str]:
  """Names of the packaged model configs."""
  return list(PRESETS)


def list_encoders() -> list[str]:
  """Names of the packaged encoder configs."""
  return list(VISION)
