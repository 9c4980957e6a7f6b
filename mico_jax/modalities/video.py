"""Video: T frames, one from each of T equal parts of the clip."""

from __future__ import annotations

from mico_jax.config import InputConfig
from mico_jax.modalities.base import ArraySpec, Modality
from mico_jax.modalities.media import example_frames
from mico_jax.modalities.spatial import VISUAL_MODES
from mico_jax.modalities.video_file import decode_video
from mico_jax.modalities.words import SEEN

VIDEO = Modality(
  key="video",
  letter="v",
  kind="knowledge",
  spec=ArraySpec(("T", "Y", "X", "C"), "uint8", "sRGB", (0, 255)),
  decode=decode_video,
  modes=VISUAL_MODES,
  default_mode="plain",
  example=example_frames,
  context_type="video",
  caption=SEEN,
  extensions=(
    *(".mp4", ".webm", ".mkv", ".mov", ".avi", ".mpg", ".mpeg", ".m4v"),
    *(".ts", ".flv"),
  ),
  default_input=InputConfig(frames=4),
  notes="random frame of each chunk in training, the middle one otherwise",
)
