"""Surface normals as RGB: (n + 1) / 2 with R right, G up, B to the camera."""

from __future__ import annotations

import functools

from mico_jax.modalities.base import Alias, ArraySpec, Caption, Modality
from mico_jax.modalities.media import decode_normals, example_frames
from mico_jax.modalities.spatial import (
  HALF,
  crop_flip,
  demo_mode,
  frame_mode,
  modes,
  resize_smooth,
  squash,
  turn_vectors,
)

_mode = functools.partial(frame_mode, on_flip=turn_vectors)
NORMAL = Modality(
  key="normal",
  letter="n",
  kind="knowledge",
  spec=ArraySpec(("T", "Y", "X", "C"), "uint8", "(n + 1) / 2", (0, 255)),
  decode=decode_normals,
  modes=modes(
    _mode("plain", squash, resize_smooth, HALF, description="squash"),
    _mode(
      *("crop_flip", crop_flip, resize_smooth, HALF),
      description="crop and flip; x changes sign with the flip",
    ),
    demo_mode(on_flip=turn_vectors),
  ),
  default_mode="plain",
  example=example_frames,
  context_type="normal",
  alias=Alias(option="normals_as", key="depth"),
  caption=Caption("normal", fallback=("omni", "vision")),
)
