"""Point clouds: 64 groups of 32 neighbours a frame, with or without colours."""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.points import Points

POINTS = Points("pointcloud", groups=64, size=32)
POINTCLOUD = Modality(
  key=POINTS.key,
  letter="p",
  kind="knowledge",
  spec=POINTS.spec,
  decode=POINTS.decode,
  modes=POINTS.modes(),
  default_mode="plain",
  example=POINTS.example,
  embedding=POINTS.embedding,
  context_type="pointcloud",
  extensions=(".ply", ".las", ".laz"),
  draw=POINTS.draw,
  notes="moved and scaled to the unit sphere; equal points are one",
)
