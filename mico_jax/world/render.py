"""Pictures, depth and normals of a scene by analytic ray casting.

A pinhole camera looks down at solids above a floor and before a wall. A solid
is the intersection of slabs and a quadric, so a ray meets it in one interval in
closed form; shadows on the floor are found with rays to the light. Geometry is
in scene units. The setting sets the metres per unit, so it changes the depth
and neither colours nor normals.

There is one ray per pixel, for all frames at once, within the bounding sphere
of each solid. Arithmetic per pixel uses only operations that IEEE 754 rounds
correctly (no matrix products, sines or powers), so pictures are equal bit by
bit on every platform.

Conventions: depth is the distance along the optical axis, in metres; normals
are unit vectors in camera space, x right, y up, z towards the viewer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from mico_jax.world.scene import PLACES, Scene

MIN_SIZE, MAX_SIZE = 32, 224  # pixels
MAX_FRAMES = 8

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
# Metres from the camera to the middle of the scene.
SETTING_DISTANCE = {"table": 0.5, "room": 3.0, "hall": 12.0, "hangar": 48.0}

_CAMERA = (0.0, 2.4, -6.0)
_LOOK_AT_HEIGHT = 0.85
_DISTANCE = math.hypot(_CAMERA[2], _CAMERA[1] - _LOOK_AT_HEIGHT)
_SIN = (_CAMERA[1] - _LOOK_AT_HEIGHT) / _DISTANCE  # of the downward pitch
_COS = -_CAMERA[2] / _DISTANCE
_HALF_WIDTH = 1.75 / _DISTANCE  # tangent of half the field of view
_WALL_Z = 4.0
_HOVER = 0.88  # height of the solids' centres
_AMBIENT, _DIFFUSE = 0.42, 0.58
_SHADOW = 0.55


@dataclass(frozen=True)
class View:
  """Rays and background of the camera at one image size.

  Attributes:
    focal: focal length in pixels; the optical axis is at the centre.
    rays: [3, Y, X] world directions, forward component 1, so that the ray
      parameter is the distance along the optical axis.
    depth: [Y, X] scene units to floor or wall.
    normal: [Y, X, 3] camera-space normals of floor or wall.
    floor: uint8 [Y, X], 1 where the floor is seen, 0 where the wall is.
  """

  focal: float
  rays: Float[np.ndarray, "3 Y X"]
  depth: Float[np.ndarray, "Y X"]
  normal: Float[np.ndarray, "Y X 3"]
  floor: UInt8[np.ndarray, "Y X"]


@functools.lru_cache(maxsize=8)
def camera(size: int) -> View:
  """The view at `size` x `size` pixels.

  Raises:
    ValueError: for a size outside 32..224.
  """
  if not MIN_SIZE <= size <= MAX_SIZE:
    raise ValueError(
      f"{size=} is outside {MIN_SIZE}..{MAX_SIZE} px; render within and resize."
    )
  focal = size / 2 / _HALF_WIDTH
  grid = (np.arange(size) + 0.5 - size / 2) / focal
  right, up = grid[None, :], -grid[:, None]
  zero = np.zeros((size, size))
  rays = np.stack(
    [zero + right, zero + up * _COS - _SIN, zero + up * _SIN + _COS]
  )
  rays[np.abs(rays) < 1e-6] = 1e-6
  to_floor = np.where(rays[1] < 0, -_CAMERA[1] / rays[1], np.inf)
  to_wall = (_WALL_Z - _CAMERA[2]) / rays[2]
  floor = to_floor < to_wall
  normal = np.where(
    floor[..., None],
    np.array([0.0, _COS, _SIN]),
    np.array([0.0, -_SIN, _COS]),
  )
  view = View(
    focal,
    rays.astype(np.float32),
    np.minimum(to_floor, to_wall).astype(np.float32),
    normal.astype(np.float32),
    floor.astype(np.uint8),
  )
  for array in (view.rays, view.depth, view.normal, view.floor):
    array.setflags(write=False)
  return view


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


def _interval(body: Body, o, d):
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


def _normals(body: Body, o, d, near, extra):
  """World normals (x, y, z) at the points where rays enter a solid."""
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


def _box(
  view: View, points: Float[np.ndarray, "3 K"], reach: float
) -> tuple[slice, slice]:
  """Rows and columns of the pixels that spheres can cover.

  Args:
    view: of the camera.
    points: centres in world coordinates.
    reach: radius.
  """
  size = view.depth.shape[0]
  x, y, z = points[0], points[1] - _CAMERA[1], points[2] - _CAMERA[2]
  up, forward = _COS * y + _SIN * z, _COS * z - _SIN * y
  closest = np.maximum(forward - reach, 0.5)
  margin = (1.1 * view.focal * reach / closest).max() + 1.0
  u = size / 2 + view.focal * x / forward
  v = size / 2 - view.focal * up / forward
  rows, columns = (
    slice(
      max(0, int(w.min() - margin)),
      max(0, min(size, int(w.max() + margin) + 1)),
    )
    for w in (v, u)
  )
  return rows, columns


def _light(scene: Scene) -> tuple[float, float, float]:
  """Unit vector from the scene to the light."""
  x = -0.7 + 0.8 * scene.look_of("light_side")
  y, z = 1.5 + 0.5 * scene.look_of("light_height"), -1.3
  length = math.sqrt(x * x + y * y + z * z)
  return x / length, y / length, z / length


def _shadow(
  view: View, body: Body, light, ground: UInt8[np.ndarray, "T Y X"]
) -> None:
  """Changes floor pixels (1) in the shadow of a solid to 2, in place."""
  lx, ly, lz = light
  centre = body.centre[:, :, 0, 0]
  drop = centre[1] / ly
  wide = body.bound * math.sqrt(1 + (lx / ly) ** 2)
  deep = body.bound * math.sqrt(1 + (lz / ly) ** 2)
  foot_x, foot_z = centre[0] - lx * drop, centre[2] - lz * drop
  corners = np.stack(
    [
      np.concatenate([foot_x - wide, foot_x + wide] * 2),
      np.zeros(4 * len(drop), np.float32),
      np.concatenate([foot_z - deep] * 2 + [foot_z + deep] * 2),
    ]
  )
  rows, columns = _box(view, corners, 0.0)
  seen = view.floor[rows, columns]
  if not seen.any():
    return
  depth = view.depth[rows, columns]
  points = view.rays[:, rows, columns] * depth
  ray = tuple(np.float32(x) for x in light)
  origin = (
    points[0] + _CAMERA[0] - body.centre[0],
    points[1] + _CAMERA[1] - body.centre[1],
    points[2] + _CAMERA[2] - body.centre[2],
  )
  _, _, dark, _ = _interval(body, origin, ray)
  ground[:, rows, columns] += (dark & (ground[:, rows, columns] == 1)).astype(
    np.uint8
  )


def _draw(
  view: View,
  body: Body,
  light: tuple[float, float, float],
  depth: Float[np.ndarray, "T Y X"],
  normal: Float[np.ndarray, "T Y X 3"],
  rgb: UInt8[np.ndarray, "T Y X 3"],
) -> None:
  """Draws a solid into the buffers where it is nearest, in place."""
  rows, columns = _box(view, body.centre[:, :, 0, 0], body.bound)
  d = view.rays[:, rows, columns]
  if not d.size:
    return
  d = (d[0], d[1], d[2])
  o = tuple(np.float32(_CAMERA[i]) - body.centre[i] for i in range(3))
  near, _, hit, extra = _interval(body, o, d)
  target = depth[:, rows, columns]
  hit = hit & (near < target)
  nx, ny, nz = _normals(body, o, d, near, extra)
  np.copyto(target, near, where=hit)
  lx, ly, lz = light
  shade = _AMBIENT + _DIFFUSE * np.maximum(lx * nx + ly * ny + lz * nz, 0.0)
  hit = hit[..., None]
  colour = shade[..., None] * np.array(body.rgb, np.float32) + 0.5
  np.copyto(rgb[:, rows, columns], colour, where=hit, casting="unsafe")
  to_camera = np.empty((*shade.shape, 3), np.float32)
  to_camera[..., 0] = nx
  to_camera[..., 1] = _COS * ny + _SIN * nz
  to_camera[..., 2] = _SIN * ny - _COS * nz
  np.copyto(normal[:, rows, columns], to_camera, where=hit)


def metres_per_unit(scene: Scene) -> float:
  """Metres of a scene unit, which only the setting changes."""
  jitter = 0.88 + 0.24 * scene.look_of("scale")
  return SETTING_DISTANCE[scene.setting] * jitter / _DISTANCE


def cast(
  scene: Scene, size: int, times: Sequence[float]
) -> tuple[
  UInt8[np.ndarray, "T Y X 3"],
  Float[np.ndarray, "T Y X"],
  Float[np.ndarray, "T Y X 3"],
]:
  """Colours, depth in metres and normals of a scene.

  Args:
    scene: to draw.
    size: height and width in pixels, 32 to 224.
    times: of the frames, from -1 (first) to 1 (last); 0 is the middle.

  Raises:
    ValueError: for a size out of range.
  """
  view = camera(size)
  shape = (len(times), size, size)
  light = _light(scene)
  solids = bodies(scene, times)
  ground = np.broadcast_to(view.floor, shape).copy()
  for body in solids:
    _shadow(view, body, light, ground)
  wall = 120 + 60 * scene.look_of("wall")
  floor = 85 + 60 * scene.look_of("floor")
  palette = np.array(
    [
      [wall, wall, wall * 1.04],
      [floor * 1.05, floor, floor * 0.92],
      [floor * _SHADOW, floor * _SHADOW, floor * _SHADOW],
    ]
  ).astype(np.uint8)
  rgb = palette[ground]
  depth = np.broadcast_to(view.depth, shape).copy()
  normal = np.broadcast_to(view.normal, (*shape, 3)).copy()
  for body in solids:
    _draw(view, body, light, depth, normal, rgb)
  depth *= np.float32(metres_per_unit(scene))
  return rgb, depth, normal


def frame_times(frames: int) -> tuple[float, ...]:
  """Times of frames: evenly from -1 to 1, or 0 for a single frame.

  Raises:
    ValueError: for a number outside 1..8.
  """
  if not 1 <= frames <= MAX_FRAMES:
    raise ValueError(f"{frames=} is outside 1..{MAX_FRAMES}.")
  if frames == 1:
    return (0.0,)
  return tuple(2.0 * i / (frames - 1) - 1.0 for i in range(frames))
