"""Pictures, depth and normals of a scene by analytic ray casting.

A pinhole camera looks down at solids (`mico_jax.world.solids`) above a floor
and before a wall; shadows on the floor are found with rays to the light.
Geometry is in scene units. The setting sets the metres per unit, so it changes
the depth and neither colours nor normals.

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
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mico_jax.world.scene import Scene
from mico_jax.world.solids import Body, bodies, interval, normals

MIN_SIZE, MAX_SIZE = 32, 224  # pixels
MAX_FRAMES = 8

# Metres from the camera to the middle of the scene.
SETTING_DISTANCE = {"table": 0.5, "room": 3.0, "hall": 12.0, "hangar": 48.0}

_CAMERA = (0.0, 2.4, -6.0)
_LOOK_AT_HEIGHT = 0.85
_DISTANCE = math.hypot(_CAMERA[2], _CAMERA[1] - _LOOK_AT_HEIGHT)
_SIN = (_CAMERA[1] - _LOOK_AT_HEIGHT) / _DISTANCE  # of the downward pitch
_COS = -_CAMERA[2] / _DISTANCE
_HALF_WIDTH = 1.75 / _DISTANCE  # tangent of half the field of view
_WALL_Z = 4.0
FLOOR_TINT = (1.05, 1.0, 0.92)  # red, green, blue of the floor
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


def light_of(scene: Scene) -> tuple[float, float, float]:
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
  _, _, dark, _ = interval(body, origin, ray)
  ground[:, rows, columns] += (dark & (ground[:, rows, columns] == 1)).astype(
    np.uint8
  )


def ground_of(
  view: View, scene: Scene, solids: Sequence[Body], frames: int
) -> UInt8[np.ndarray, "T Y X"]:
  """What is behind the solids: 0 the wall, 1 the floor, 2 its shadows."""
  light = light_of(scene)
  ground = np.broadcast_to(view.floor, (frames, *view.floor.shape)).copy()
  for body in solids:
    _shadow(view, body, light, ground)
  return ground


@dataclass(frozen=True)
class Surface:
  """The part of a picture in which a solid is seen.

  Attributes:
    rows: of the pixels that it can cover.
    columns: likewise.
    seen: which of them show it.
    normal: world normals at these pixels: x, y, z arrays that broadcast.
  """

  rows: slice
  columns: slice
  seen: Bool[np.ndarray, "T y x"]
  normal: tuple[Any, Any, Any]

  def lit(self, light: tuple[float, float, float]) -> Any:
    """Cosine of the angle to the light; 0 on the far side."""
    (lx, ly, lz), (nx, ny, nz) = light, self.normal
    return np.maximum(lx * nx + ly * ny + lz * nz, 0.0)


def see(
  view: View, body: Body, depth: Float[np.ndarray, "T Y X"]
) -> Surface | None:
  """Where a solid is nearest; None: outside of the picture.

  Args:
    view: of the camera.
    body: the solid.
    depth: scene units to what was seen so far; updated in place.
  """
  rows, columns = _box(view, body.centre[:, :, 0, 0], body.bound)
  d = view.rays[:, rows, columns]
  if not d.size:
    return None
  d = (d[0], d[1], d[2])
  o = tuple(np.float32(_CAMERA[i]) - body.centre[i] for i in range(3))
  near, _, hit, extra = interval(body, o, d)
  target = depth[:, rows, columns]
  hit = hit & (near < target)
  normal = normals(body, o, d, near, extra)
  np.copyto(target, near, where=hit)
  return Surface(rows, columns, hit, normal)


def _draw(
  view: View,
  body: Body,
  light: tuple[float, float, float],
  depth: Float[np.ndarray, "T Y X"],
  normal: Float[np.ndarray, "T Y X 3"],
  rgb: UInt8[np.ndarray, "T Y X 3"],
) -> None:
  """Draws a solid into the buffers where it is nearest, in place."""
  surface = see(view, body, depth)
  if surface is None:
    return
  rows, columns = surface.rows, surface.columns
  nx, ny, nz = surface.normal
  shade = _AMBIENT + _DIFFUSE * surface.lit(light)
  hit = surface.seen[..., None]
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
  light = light_of(scene)
  solids = bodies(scene, times)
  ground = ground_of(view, scene, solids, len(times))
  wall = 120 + 60 * scene.look_of("wall")
  floor = 85 + 60 * scene.look_of("floor")
  palette = np.array(
    [
      [wall, wall, wall * 1.04],
      [floor * c for c in FLOOR_TINT],
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
