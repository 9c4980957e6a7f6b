"""Inertial sensors: accelerometer and gyroscope at 50 Hz, frames of 10.24 s.

Axes are those of the sensor. An accelerometer that was freed of gravity and one
that was not differ by 1 g: a corpus has one of the two.
"""

from __future__ import annotations

import math

from mico_jax.modalities.base import Modality
from mico_jax.modalities.series import Series

GRAVITY = 9.80665  # m/s2, standard
_TURN = math.pi / 180
AXES = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
SERIES = Series(
  "imu",
  slots=6,
  length=512,
  window=16,
  names=AXES,
  rate=50.0,
  units={
    "m/s2,rad/s": 1.0,
    "m/s2,deg/s": (*(1.0,) * 3, *(_TURN,) * 3),
    "g,rad/s": (*(GRAVITY,) * 3, *(1.0,) * 3),
    "g,deg/s": (*(GRAVITY,) * 3, *(_TURN,) * 3),
  },
  limits=(*(200 * GRAVITY,) * 3, *(100.0,) * 3),  # beyond what sensors reach
  scale=(*(1 / GRAVITY,) * 3, *(1.0,) * 3),
)
IMU = Modality(
  key=SERIES.key,
  letter="m",
  kind="knowledge",
  spec=SERIES.spec("g and rad/s, with flags"),
  decode=SERIES.decode,
  modes=SERIES.modes(plain="g and rad/s"),
  default_mode="plain",
  example=SERIES.example,
  embedding=SERIES.embedding,
  context_type="imu",
  draw=SERIES.draw,
  notes=f"any rate, resampled to 50 Hz; channels {' '.join(AXES)}",
  **SERIES.stated,
)
