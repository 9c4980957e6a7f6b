"""Thermal pictures: temperatures, raw counts, or pictures of a camera.

Temperatures are in Celsius on the device. Counts and pictures have no scale, so
they never mix with temperatures in one source. False colours are refused.
"""

from __future__ import annotations

from mico_jax.modalities.base import Modality
from mico_jax.modalities.maps import Maps, Unit
from mico_jax.modalities.spatial import modes

ZERO = -273.15  # Celsius
MAPS = Maps(
  "thermal",
  units={
    "celsius": Unit(),
    "kelvin": Unit(offset=ZERO),
    "centikelvin": Unit(0.01, ZERO),  # 16-bit TIFF of many cameras
    "picture": Unit(full=255),
    "counts": Unit(spread=True),
  },
  span=(-40.0, 160.0),
  limits=(-150.0, 2000.0),
)
THERMAL = Modality(
  key=MAPS.key,
  letter="h",
  kind="knowledge",
  spec=MAPS.spec("Celsius or 0..1"),
  decode=MAPS.decode,
  modes=modes(
    *MAPS.placed("metric", "-40..160 C", "celsius"),
    *MAPS.placed("relative", "0..1", "picture"),
  ),
  default_mode="metric",
  native_modes=MAPS.by_kind("metric", "relative"),
  example=MAPS.example,
  context_type="thermal",
  units=tuple(MAPS.units),
  notes="grey in one or three channels; counts: spread over each map's range",
)
