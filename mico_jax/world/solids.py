"""Geometry of the solids of a scene, in scene units.

A solid is the intersection of slabs and a quadric, so a ray meets it in one
interval in closed form.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.world.scene import PLACES, Scene

RGB = {
  "red": (225, 25, 25),
  "orange": (245, 125, 10),
  "yellow": (240, 225, 20),
  "green": (25, 165, 40),
  "cyan": (30, 215, 225),
  "blue": (30, 60, 225),
  "purple": (160, 40, 205),
  "white": (250, 250, 250),
}
RADIUS = {"small": 0.34, "large": 0.53}  # scene units
PLACE_X = dict(zip(PLACES, (-1.1, 0.0, 1.1), strict=True))
# Scene units from the middle to the last frame.
MOTION_STEP = {
  "still": (0.0, 0.0),
  "left": (-0.27, 0.0),
  "right": (0.27, 0.0),
  "up": (0.0, 0.30),
  "down": (0.0, -0.30),
}
_HOVER = 0.88  # height of the solids' centres

Rays = Sequence[Any]  # x, y, z: arrays or numbers that broadcast


@dataclass(frozen=True)
class Body:
  """Geometry of a solid over the frames, in scene units.

  Attributes:
    shape: key of the interval function.
    centre: [3, T, 1, 1] world coordinates.
    radius: of the base (half the side of a cube).
    height: half the height.
    bound: radius of the bounding sphere.
    turn: (cosine, sine) of the turn about the vertical axis.
    rgb: [3] colour, 0..255.
  """

  shape: str
  centre: Float[np.ndarray, "3 T 1 1"]
  radius: float
  height: float
  bound: float
  turn: tuple[float, float]
  rgb: tuple[float, ...]


# Shape -> radius and half height, of a solid of radius 1.
_PROPORTION = {
  "sphere": (1.0, 1.0),
  "cube": (0.8, 0.8),
  "cylinder": (0.72, 1.0),
  "cone": (1.0, 1.05),
}


def bodies(scene: Scene, times: Sequence[float]) -> list[Body]:
  """Geometry of the solids at times from -1 (first frame) to 1 (last)."""
  out = []
  middle = 0.8 if scene.look_of("middle_depth") < 0.5 else -0.6
  for i, solid in enumerate(scene.solids):
    look = functools.partial(scene.look_of, solid=i)
    step = MOTION_STEP[solid.motion]
    x = PLACE_X[solid.place] + 0.16 * (look("x") - 0.5)
    y = _HOVER + 0.10 * (look("height") - 0.5)
    z = 0.3 * (look("z") - 0.5) + (middle if solid.place == "middle" else 0.0)
    centre = np.array(
      [[x + step[0] * t, y + step[1] * t, z] for t in times], np.float32
    )
    size = RADIUS[solid.size] * (0.94 + 0.12 * look("radius"))
    wide, high = _PROPORTION[solid.shape]
    radius, height = size * wide, size * high
    bound = {
      "sphere": radius,
      "cube": math.sqrt(3.0) * radius,
    }.get(solid.shape, math.hypot(radius, height))
    angle = math.pi * (0.08 + 0.34 * look("yaw"))
    tint = 0.9 + 0.1 * look("tint")
    out.append(
      Body(
        shape=solid.shape,
        centre=np.ascontiguousarray(centre.T)[:, :, None, None],
        radius=radius,
        height=height,
        bound=bound,
        turn=(math.cos(angle), math.sin(angle)),
        rgb=tuple(tint * c for c in RGB[solid.colour]),
      )
    )
  return out


def _slab(o, d, half):
  """Ray parameters where |o + t d| <= half."""
  inverse = 1.0 / d
  centre = -o * inverse
  width = np.abs(half * inverse)
  return centre - width, centre + width


def _quadric(a, b, c):
  """Roots of a t^2 + 2 b t + c, and whether they are real."""
  square = b * b - a * c
  root = np.sqrt(np.maximum(square, 0.0))
  inverse = 1.0 / a
  return (-b - root) * inverse, (root - b) * inverse, square > 0.0


def _nonzero(d):
  return np.where(np.abs(d) < 1e-6, np.float32(1e-6), d)


def interval(body: Body, o: Rays, d: Rays) -> tuple[Any, Any, Any, Any]:
  """Where rays are inside a solid.

  Args:
    body: the solid.
    o: ray origins relative to its centre: x, y, z arrays that broadcast.
    d: ray directions, likewise.

  Returns:
    near, far, whether the ray meets the solid, and values for the normal.
  """
  (ox, oy, oz), (dx, dy, dz) = o, d
  if body.shape == "sphere":
    near, far, hit = _quadric(
      dx * dx + dy * dy + dz * dz,
      dx * ox + dy * oy + dz * oz,
      ox * ox + oy * oy + oz * oz - body.radius * body.radius,
    )
    return near, far, hit, None
  y_near, y_far = _slab(oy, dy, body.height)
  if body.shape == "cube":
    cos, sin = body.turn
    ux, uz = _nonzero(cos * dx - sin * dz), _nonzero(sin * dx + cos * dz)
    x_near, x_far = _slab(cos * ox - sin * oz, ux, body.radius)
    z_near, z_far = _slab(sin * ox + cos * oz, uz, body.radius)
    side = np.maximum(x_near, z_near)
    near = np.maximum(side, y_near)
    far = np.minimum(np.minimum(x_far, z_far), y_far)
    return near, far, near < far, (side, x_near, ux, uz)
  a, b = dx * dx + dz * dz, dx * ox + dz * oz
  c = ox * ox + oz * oz
  if body.shape == "cylinder":
    c = c - body.radius * body.radius
  else:  # cone: radius * (height - y) / (2 height) at height y
    slope = body.radius / (2.0 * body.height)
    slope *= slope
    top = oy - body.height
    a, b, c = a - slope * dy * dy, b - slope * dy * top, c - slope * top * top
  side, side_far, real = _quadric(a, b, c)
  near, far = np.maximum(side, y_near), np.minimum(side_far, y_far)
  return near, far, real & (near < far), (side,)


def normals(
  body: Body, o: Rays, d: Rays, near: Any, extra: Any
) -> tuple[Any, Any, Any]:
  """World normals (x, y, z) at the points where rays enter a solid.

  Args:
    body: the solid.
    o: see `interval`.
    d: likewise.
    near: ray parameter of the points.
    extra: what `interval` gave for the normal.
  """
  if body.shape == "sphere":
    inverse = 1.0 / body.radius
    return tuple(
      (oi + near * di) * inverse for oi, di in zip(o, d, strict=True)
    )
  cap = near > extra[0]
  cap_y = -np.sign(d[1])
  if body.shape == "cube":
    _, x_near, ux, uz = extra
    cos, sin = body.turn
    on_x = near == x_near
    sx, sz = -np.sign(ux) * on_x, -np.sign(uz) * ~on_x
    nx, nz, ny = cos * sx + sin * sz, cos * sz - sin * sx, 0.0
  else:
    nx, nz = o[0] + near * d[0], o[2] + near * d[2]
    if body.shape == "cylinder":
      inverse, ny = 1.0 / body.radius, 0.0
    else:
      full = 2.0 * body.height
      ny = body.radius / math.hypot(body.radius, full)
      # The horizontal part points away from the axis, length full / slant.
      inverse = (full / math.hypot(body.radius, full)) / np.maximum(
        np.sqrt(nx * nx + nz * nz), 1e-6
      )
    nx, nz = nx * inverse, nz * inverse
  return (
    np.where(cap, 0.0, nx),
    np.where(cap, cap_y, ny),
    np.where(cap, 0.0, nz),
  )
