"""Motion of solids that start and stop, and what a sensor on them measures.

In v1 a solid goes at one speed, which no accelerometer can tell from rest. From
v2 on it moves from rest to rest by the polynomial of least jerk, through the
same places at the first, middle and last moment; what is seen between them is
`eased`.

An inertial sensor is fixed to one solid after another, from left to right, and
each time records the second of the clip with a rest before and after. It has
the axes of the scene when it rests: x right, y away from the viewer, z up. It
measures what the exact motion implies:

- acceleration of the solid's centre in metres, and gravity, in its own axes;
- a strike (at its moment in the sound) makes the solid rock about its centre,
  by less than a pixel; the gyroscope measures this turn.

So a recording shows the number of solids, which way each goes, and the strikes;
nothing else but the setting changes it, whose metres set the acceleration of
solids that move. As it says nothing where all rest, no sentence on a recording
states the setting.

Source: least jerk, Flash and Hogan, J. Neurosci. 5(7), 1985.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.world.render import metres_per_unit
from mico_jax.world.scene import STRIKES, Scene, stream
from mico_jax.world.solids import MOTION_STEP, bodies
from mico_jax.world.sound import STRIKE_GAP

RATE = 50.0  # samples a second
SAMPLES = 64  # of a solid: 1.28 s, of which the clip takes the middle second
REST = 7  # samples before the clip begins
GRAVITY = 9.80665  # m/s2
ROCKING = 8.0  # Hz
ROCKING_DECAY = 0.06  # seconds to 1/e
ROCKING_SPEED = 0.3  # rad/s, right after a strike
ACCELERATION_NOISE = 0.01  # m/s2, largest
TURN_NOISE = 0.004  # rad/s, largest
_TABLE = 4096  # samples of noise


def eased(time: Any) -> Any:
  """Progress from -1 to 1 at times from -1 to 1; equal at -1, 0 and 1.

  Args:
    time: a number or an array.
  """
  s = (time + 1.0) / 2.0
  return 2.0 * (s * s * s * (10.0 + s * (6.0 * s - 15.0))) - 1.0


def position(
  scene: Scene, solid: int, seconds: Float[np.ndarray, " S"]
) -> Float[np.ndarray, "S 3"]:
  """Centre of a solid in metres, x right, y away, z up.

  Args:
    scene: of the solid.
    solid: its number from the left.
    seconds: of the clip, from 0 to 1; it rests before and after.
  """
  x, y, z = bodies(scene, (0.0,))[solid].centre[:, 0, 0, 0].tolist()
  right, up = MOTION_STEP[scene.solids[solid].motion]
  moved = eased(2.0 * np.clip(seconds, 0.0, 1.0) - 1.0)[:, None]
  places = np.array([x, z, y]) + moved * np.array([right, 0.0, up])
  return places * metres_per_unit(scene)


def acceleration(
  scene: Scene, solid: int, seconds: Float[np.ndarray, " S"]
) -> Float[np.ndarray, "S 3"]:
  """Second derivative of `position`, in m/s2."""
  s = np.clip(seconds, 0.0, 1.0)
  # Of `eased`; 0 at both ends.
  bend = 2.0 * s * (60.0 + s * (120.0 * s - 180.0))
  right, up = MOTION_STEP[scene.solids[solid].motion]
  step = np.array([right, 0.0, up]) * metres_per_unit(scene)
  return bend[:, None] * step


def rocking(
  scene: Scene, solid: int, seconds: Float[np.ndarray, " S"]
) -> tuple[
  Float[np.ndarray, " 3"], Float[np.ndarray, " S"], Float[np.ndarray, " S"]
]:
  """How a solid rocks after strikes: axis, angle in rad, speed in rad/s.

  The axis is horizontal and stays where it is. Each strike starts a damped
  oscillation, at its moment in a second of sound.
  """
  look = 0.08 + 0.34 * scene.look_of("yaw", solid)
  axis = np.array([math.cos(math.pi * look), math.sin(math.pi * look), 0.0])
  rate = complex(-1.0 / ROCKING_DECAY, 2.0 * math.pi * ROCKING)
  first = solid / len(scene.solids)
  swing = np.zeros(len(seconds), np.complex128)
  for k in range(1 + STRIKES.index(scene.strikes)):
    since = seconds - (first + k * STRIKE_GAP)
    swing += np.where(since >= 0, np.exp(rate * np.maximum(since, 0.0)), 0.0)
  # The imaginary part of exp(rate t) is the oscillation, from an angle of 0.
  swing *= ROCKING_SPEED / rate.imag
  return axis, swing.imag, (rate * swing).imag


def measured(
  scene: Scene, solid: int, seconds: Float[np.ndarray, " S"]
) -> Float[np.ndarray, "S 6"]:
  """What a perfect sensor on a solid measures: m/s2, then rad/s.

  Args:
    scene: of the solid.
    solid: its number from the left.
    seconds: of the clip.
  """
  force = acceleration(scene, solid, seconds) + np.array([0.0, 0.0, GRAVITY])
  axis, angle, speed = rocking(scene, solid, seconds)
  # Into the axes of the sensor: turned back by the angle (Rodrigues).
  cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
  along = (force @ axis)[:, None] * axis
  force = cos * force - sin * np.cross(axis, force) + (1.0 - cos) * along
  return np.concatenate([force, speed[:, None] * axis], axis=1)


@functools.lru_cache(maxsize=1)
def _noise() -> Float[np.ndarray, "S 6"]:
  u = stream("imu noise", index=0, count=6 * _TABLE).reshape(_TABLE, 6)
  most = [ACCELERATION_NOISE] * 3 + [TURN_NOISE] * 3
  return (2.0 * u - 1.0) * most


def render_imu(scene: Scene) -> Float[np.ndarray, "S 6"]:
  """Recordings of the solids one after another, float32.

  Returns:
    64 samples of each solid at 50 Hz: acceleration x, y, z in m/s2, with
    gravity; turn about x, y, z in rad/s.
  """
  seconds = (np.arange(SAMPLES) - REST) / RATE
  parts = [measured(scene, i, seconds) for i in range(len(scene.solids))]
  wave = np.concatenate(parts)
  start = int(scene.look_of("noise") * (_TABLE - len(wave)))
  return (wave + _noise()[start : start + len(wave)]).astype(np.float32)
