"""Sonar pictures as 8-bit grey PNGs, 0..255 for 0..100 dB."""

from __future__ import annotations

from mico_jax.modalities.base import ArraySpec, Modality
from mico_jax.modalities.media import decode_frames, example_frames
from mico_jax.modalities.spatial import (
  HALF,
  crop_flip,
  frame_mode,
  modes,
  resize_smooth,
  squash,
)

SONAR = Modality(
  key="sonar",
  letter="w",
  kind="knowledge",
  spec=ArraySpec(("T", "Y", "X", "C"), "uint8", "0..100 dB", (0, 255)),
  decode=decode_frames,
  modes=modes(
    frame_mode("plain", squash, resize_smooth, HALF),
    frame_mode("crop_flip", crop_flip, resize_smooth, HALF, eval_mode="plain"),
  ),
  default_mode="plain",
  example=example_frames,
  context_type="sonar",
  extensions=(".sonar",),
)
