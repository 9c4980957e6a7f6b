"""Temperatures of the surfaces of a scene, as a thermal camera maps them.

All solids were heated alike and have cooled for the same time, so a solid is
the warmer, the more heat a volume of its material holds: metal, stone, glass,
wood. A lamp, the light of the pictures, warms the side that is turned to it:
little where heat spreads through the solid, much where it does not. Floor and
wall have the temperature of the room, the floor less in shadows.

So a map shows number, shape, size, place and material of the solids; neither
colour, strikes nor setting change it. The camera is that of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mico_jax.world.render import camera, ground_of, light_of, see
from mico_jax.world.scene import Scene
from mico_jax.world.solids import bodies

# Material -> temperature away from the lamp, and how much warmer the side is
# that faces it, both in kelvin.
MATERIAL_HEAT = {
  "metal": (342.0, 0.5),
  "stone": (326.0, 3.0),
  "glass": (312.0, 5.0),
  "wood": (300.0, 7.0),
}
SPREAD = 4.0  # kelvin between the coldest and warmest of a material
WALL, FLOOR = (286.0, 290.0), (288.0, 292.0)  # kelvin, coldest and warmest
SHADE = 1.5  # kelvin by which a shadow is colder


def render_thermal(
  scene: Scene, size: int, times: Sequence[float]
) -> Float[np.ndarray, "T Y X"]:
  """Surface temperatures in kelvin, float32.

  Args:
    scene: to measure.
    size: height and width in pixels, 32 to 224.
    times: of the frames, as `mico_jax.world.render.cast` takes them.

  Raises:
    ValueError: for a size out of range.
  """
  view, light = camera(size), light_of(scene)
  solids = bodies(scene, times)
  wall = WALL[0] + (WALL[1] - WALL[0]) * scene.look_of("wall")
  floor = FLOOR[0] + (FLOOR[1] - FLOOR[0]) * scene.look_of("floor")
  levels = np.array([wall, floor, floor - SHADE], np.float32)
  kelvin = levels[ground_of(view, scene, solids, len(times))]
  depth = np.broadcast_to(view.depth, kelvin.shape).copy()
  for i, (solid, body) in enumerate(zip(scene.solids, solids, strict=True)):
    surface = see(view, body, depth)
    if surface is None:
      continue
    rest, rise = MATERIAL_HEAT[solid.material]
    rest += SPREAD * (scene.look_of("tint", i) - 0.5)
    warm = (rest + rise * surface.lit(light)).astype(np.float32)
    part = kelvin[:, surface.rows, surface.columns]
    np.copyto(part, warm, where=surface.seen)
  return kelvin
