"""Points on the surfaces of a scene, as a scan from all sides gives them.

The whole surface of each solid has evenly spread points, the same number in
each square unit; a coarse grid of the floor beneath gives the scale, so that
size and place of a single solid are known as well. Points are those of the
middle moment, in metres: x right, y away from the viewer, z up, from the floor
below the middle place. Colours are those of the surfaces, without light.

So a cloud shows number, shape, colour, size and place of the solids. The
setting is in its metres, which the record of the modality takes out, so that no
sentence on a cloud states it. Material, strikes and motion change nothing.

Source: additive recurrences of low discrepancy, Roberts, "The unreasonable
  effectiveness of quasirandom sequences", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

from mico_jax.world.render import FLOOR_TINT, metres_per_unit
from mico_jax.world.scene import Scene
from mico_jax.world.solids import Body, bodies

DENSITY = 64.0  # points of a square unit of a solid's surface
FLOOR_X, FLOOR_Z = (-2.0, 2.0, 5), (-1.4, 1.6, 3)  # from, to, points; units
# Of the recurrence in two dimensions: 1 / g and 1 / g**2, g**3 = g + 1.
_STEPS = np.array([0.7548776662466927, 0.5698402909980532])

Shares = Float[np.ndarray, " N"]  # numbers in [0, 1)
# (body, u, v) -> x, y, z of points spread evenly over a part of its surface
Part = Callable[[Body, Shares, Shares], tuple[Shares, Shares, Shares]]


def _ball(body: Body, u: Shares, v: Shares) -> tuple[Shares, Shares, Shares]:
  y = 2.0 * u - 1.0
  ring = np.sqrt(1.0 - y * y)
  turn = 2.0 * math.pi * v
  r = body.radius
  return r * ring * np.cos(turn), r * y, r * ring * np.sin(turn)


def _disc(height: float) -> Part:
  """A disc at a height, in half heights of the solid."""

  def disc(body: Body, u: Shares, v: Shares) -> tuple[Shares, Shares, Shares]:
    r, turn = body.radius * np.sqrt(u), 2.0 * math.pi * v
    y = np.full(len(u), height * body.height)
    return r * np.cos(turn), y, r * np.sin(turn)

  return disc


def _wall(body: Body, u: Shares, v: Shares) -> tuple[Shares, Shares, Shares]:
  """The side of a cylinder."""
  r, turn = body.radius, 2.0 * math.pi * v
  y = body.height * (2.0 * u - 1.0)
  return r * np.cos(turn), y, r * np.sin(turn)


def _mantle(body: Body, u: Shares, v: Shares) -> tuple[Shares, Shares, Shares]:
  """The side of a cone, whose tip is at the top."""
  down = np.sqrt(u)  # the area grows with the square
  r, turn = body.radius * down, 2.0 * math.pi * v
  y = body.height * (1.0 - 2.0 * down)
  return r * np.cos(turn), y, r * np.sin(turn)


def _face(axis: int, side: float) -> Part:
  """A side of a cube, turned as the cube is."""

  def face(body: Body, u: Shares, v: Shares) -> tuple[Shares, Shares, Shares]:
    r = body.radius
    flat = [r * (2.0 * u - 1.0), r * (2.0 * v - 1.0)]
    flat.insert(axis, np.full(len(u), side * r))
    x, y, z = flat
    cos, sin = body.turn
    return cos * x + sin * z, y, cos * z - sin * x

  return face


# Shape -> parts of the surface and the area of each.
_PARTS: Mapping[str, Callable[[Body], list[tuple[Part, float]]]] = {
  "sphere": lambda b: [(_ball, 4.0 * math.pi * b.radius**2)],
  "cube": lambda b: [
    (_face(axis, side), 4.0 * b.radius**2)
    for axis in range(3)
    for side in (-1.0, 1.0)
  ],
  "cylinder": lambda b: [
    (_wall, 4.0 * math.pi * b.radius * b.height),
    (_disc(-1.0), math.pi * b.radius**2),
    (_disc(1.0), math.pi * b.radius**2),
  ],
  "cone": lambda b: [
    (_mantle, math.pi * b.radius * math.hypot(b.radius, 2.0 * b.height)),
    (_disc(-1.0), math.pi * b.radius**2),
  ],
}


def surface_points(
  body: Body, start: tuple[float, float]
) -> Float[np.ndarray, "N 3"]:
  """Points spread evenly over a solid, in scene units: x, y up, z away.

  Args:
    body: the solid, at its first moment.
    start: of the sequence, two numbers in [0, 1).
  """
  out, first = [], 0
  for part, area in _PARTS[body.shape](body):
    count = max(1, round(area * DENSITY))
    at = np.arange(first + 1, first + count + 1)[:, None]
    u, v = ((np.array(start) + at * _STEPS) % 1.0).T
    out.append(np.stack(part(body, u, v), axis=1))
    first += count
  return np.concatenate(out) + body.centre[:, 0, 0, 0].astype(np.float64)


def render_points(scene: Scene) -> Float[np.ndarray, "N 6"]:
  """Points and their colours, float32.

  Returns:
    x, y, z in metres; red, green, blue in 0..1. The floor comes first.
  """
  x, z = np.meshgrid(np.linspace(*FLOOR_X), np.linspace(*FLOOR_Z))
  floor = np.stack([x.ravel(), np.zeros(x.size), z.ravel()], axis=1)
  grey = 85 + 60 * scene.look_of("floor")  # as in pictures
  points, colours = [floor], [[grey * c for c in FLOOR_TINT]]
  for i, body in enumerate(bodies(scene, (0.0,))):
    start = (scene.look_of("yaw", i), scene.look_of("tint", i))
    points.append(surface_points(body, start))
    colours.append(list(body.rgb))
  counts = [len(p) for p in points]
  rgb = np.repeat(np.array(colours) / 255, counts, axis=0)
  metres = np.concatenate(points)[:, [0, 2, 1]] * metres_per_unit(scene)
  return np.concatenate([metres, rgb], axis=1).astype(np.float32)
