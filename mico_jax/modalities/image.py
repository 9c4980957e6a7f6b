"""Images: videos of one frame, with the head and context of video."""

from __future__ import annotations

from mico_jax.config import InputConfig
from mico_jax.modalities.base import ArraySpec, Modality
from mico_jax.modalities.media import decode_frames, example_frames
from mico_jax.modalities.spatial import VISUAL_MODES
from mico_jax.modalities.words import SEEN

IMAGE = Modality(
  key="image",
  letter="i",
  kind="knowledge",
  spec=ArraySpec(("T", "Y", "X", "C"), "uint8", "sRGB", (0, 255)),
  decode=decode_frames,
  modes=VISUAL_MODES,
  default_mode="plain",
  example=example_frames,
  context_type="video",
  head_letter="v",
  caption=SEEN,
  extensions=(".jpg", ".jpeg", ".png", ".webp", ".bmp"),
  default_input=InputConfig(frames=1),
  notes="a one-frame video",
)
