"""Comparison with numbers of the original code, stored in folders.

`python -m mico_jax.testing.golden DIR [--cases A,B]` runs every case found.
"""

from __future__ import annotations

from mico_jax.testing.golden.case import (
  CONFIGS,
  LOSS_LIMIT,
  OUTPUT_LIMIT,
  WEIGHT_LIMIT,
  Case,
  Check,
  Folder,
  Missing,
  Unsupported,
  case_named,
)
from mico_jax.testing.golden.demo import demo_e2e
from mico_jax.testing.golden.generation import generate
from mico_jax.testing.golden.layout import ckpt_layout
from mico_jax.testing.golden.losses import losses
from mico_jax.testing.golden.model import mico_full
from mico_jax.testing.golden.preprocess import preprocess
from mico_jax.testing.golden.resize import pos_resize
from mico_jax.testing.golden.swin import vision_swin
from mico_jax.testing.golden.text import text_bert
from mico_jax.testing.golden.token_masker import token_masker
from mico_jax.testing.golden.vision import vision_clip, vision_eva
from mico_jax.testing.golden.wordpiece import wordpiece

# Case named by the folder's config -> function.
CASES: dict[str, Case] = {
  "vision_eva01": vision_eva,
  "vision_eva02": vision_eva,
  "vision_eva02_e": vision_eva,
  "vision_clip": vision_clip,
  "vision_swin": vision_swin,
  "text_bert": text_bert,
  "mico_full": mico_full,
  "losses": losses,
  "generate": generate,
  "pos_resize": pos_resize,
  "preprocess": preprocess,
  "demo_e2e": demo_e2e,
  "token_masker": token_masker,
  "wordpiece": wordpiece,
  "ckpt_layout": ckpt_layout,
}

__all__ = [
  "CASES",
  "CONFIGS",
  "LOSS_LIMIT",
  "OUTPUT_LIMIT",
  "WEIGHT_LIMIT",
  "Case",
  "Check",
  "Folder",
  "Missing",
  "Unsupported",
  "case_named",
]
