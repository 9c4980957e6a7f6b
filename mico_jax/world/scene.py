"""Scene graphs: facts, their random draw, and the modalities that show them.

A scene is one to three solids, listed from left to right, and facts of the
whole scene. A fact is a word of a short list; `look` holds the continuous
variation (light, jitter of position, pitch, ...) that no sentence mentions.
Neighbouring scenes (one fact changed) have the same `look`, so they differ in
nothing else.

`OBSERVABLE` lists the modalities that show a fact, and `STATED` the facts that
a caption states; ceilings, hard galleries and questions follow from these.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

# v2 has the scenes of v1 and all that is rendered of them, but solids that
# start and stop (`mico_jax.world.motion`), and further sensors and sentences.
VERSIONS = ("v1", "v2")
SPLITS = ("train", "test", "hard")

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLOURS = (
  "red",
  "orange",
  "yellow",
  "green",
  "cyan",
  "blue",
  "purple",
  "white",
)
SIZES = ("small", "large")
MATERIALS = ("metal", "glass", "wood", "stone")
PLACES = ("left", "middle", "right")
MOTIONS = ("still", "left", "right", "up", "down")
STRIKES = ("once", "twice", "thrice")
SETTINGS = ("table", "room", "hall", "hangar")
NAMES = (
  "anna",
  "ben",
  "clara",
  "david",
  "emma",
  "felix",
  "greta",
  "henry",
  "ida",
  "jonas",
  "kira",
  "leo",
  "mia",
  "noah",
  "olga",
  "paul",
  "rosa",
  "simon",
  "tina",
  "victor",
)

# Facts of each solid, and facts of the scene, with their possible values.
SOLID_FACTS: Mapping[str, tuple[str, ...]] = {
  "shape": SHAPES,
  "colour": COLOURS,
  "size": SIZES,
  "material": MATERIALS,
  "place": PLACES,
  "motion": MOTIONS,
}
SCENE_FACTS: Mapping[str, tuple[str, ...]] = {
  "strikes": STRIKES,
  "setting": SETTINGS,
  "name": NAMES,
}

# Fact -> sets of modality letters, each of which suffices to observe it. `v`
# is several frames; image, depth, normal and thermal (`h`) are one frame, `m`
# are the recordings of an inertial sensor on each solid, `p` is a point cloud
# in the unit sphere. "count" is the number of solids, "place" one of left,
# middle and right. The order of the solids is also heard, since they are struck
# from left to right, and recorded in this order.
OBSERVABLE: Mapping[str, tuple[frozenset[str], ...]] = {
  "count": tuple(frozenset(x) for x in "viadnhmp"),
  "shape": tuple(frozenset(x) for x in "viadnhp"),
  "size": tuple(frozenset(x) for x in "viadnhp"),
  "colour": tuple(frozenset(x) for x in "vip"),
  "place": tuple(frozenset(x) for x in "vidnhp"),
  "motion": tuple(frozenset(x) for x in "vm"),
  "material": tuple(frozenset(x) for x in "ah"),
  "strikes": tuple(frozenset(x) for x in "am"),
  "setting": (frozenset("d"),),
  "name": (frozenset("s"),),
}

# Caption kind of v1 -> facts that its captions state.
STATED: Mapping[str, tuple[str, ...]] = {
  "vision": ("count", "shape", "colour", "size", "place", "motion"),
  "audio": ("count", "shape", "size", "material", "strikes"),
  "omni": (
    "count",
    "shape",
    "colour",
    "size",
    "material",
    "place",
    "motion",
    "strikes",
    "setting",
  ),
  "depth": ("count", "shape", "size", "place", "setting"),
  "normal": ("count", "shape", "size", "place"),
  "subtitle": ("name",),
  "story": (
    "count",
    "shape",
    "colour",
    "size",
    "material",
    "place",
    "motion",
    "strikes",
    "setting",
    "name",
  ),
}

# The kinds of v2: those of v1, and what each further sensor can tell.
STATED_V2: Mapping[str, tuple[str, ...]] = {
  **STATED,
  "thermal": ("count", "shape", "size", "material", "place"),
  "imu": ("count", "motion", "strikes"),
  "pointcloud": ("count", "shape", "colour", "size", "place"),
}

# Entries of `Scene.look`: uniform in [0, 1), multiples of 1/256.
LOOK_SCENE = (
  "light_side",
  "light_height",
  "floor",
  "wall",
  "scale",
  "middle_depth",
  "noise",
)
LOOK_SOLID = ("x", "height", "z", "radius", "yaw", "tint", "pitch", "loudness")
_LOOK_LENGTH = len(LOOK_SCENE) + 3 * len(LOOK_SOLID)

# (fact, index of the solid or None for a fact of the scene)
Fact = tuple[str, int | None]


@dataclass(frozen=True)
class Solid:
  """One solid; every attribute is a word of the table of the same name."""

  shape: str
  colour: str
  size: str
  material: str
  place: str
  motion: str


@dataclass(frozen=True)
class Scene:
  """All facts and the look of a scene.

  Attributes:
    solids: one to three, from left to right; struck in this order.
    strikes: how often each solid is struck.
    setting: place of the scene, which sets the metres per unit of the geometry
      and nothing else.
    name: of the narrator, which only the subtitle states.
    look: continuous variation that no sentence mentions, see `LOOK_SCENE` and
      `LOOK_SOLID`.
  """

  solids: tuple[Solid, ...]
  strikes: str
  setting: str
  name: str
  look: tuple[float, ...]

  def look_of(self, name: str, solid: int | None = None) -> float:
    """An entry of `look`, of the scene or of a solid, in [0, 1)."""
    if solid is None:
      return self.look[LOOK_SCENE.index(name)]
    start = len(LOOK_SCENE) + solid * len(LOOK_SOLID)
    return self.look[start + LOOK_SOLID.index(name)]

  def value(self, fact: Fact) -> str:
    """The value of a fact."""
    name, solid = fact
    return getattr(self if solid is None else self.solids[solid], name)

  def with_fact(self, fact: Fact, value: str) -> Scene:
    """This scene with one fact changed."""
    name, solid = fact
    if solid is None:
      return dataclasses.replace(self, **{name: value})
    changed = dataclasses.replace(self.solids[solid], **{name: value})
    solids = (*self.solids[:solid], changed, *self.solids[solid + 1 :])
    return dataclasses.replace(self, solids=solids)

  def facts(self) -> dict[Fact, str]:
    """All facts, except the number of solids."""
    out: dict[Fact, str] = {}
    for i in range(len(self.solids)):
      for name in SOLID_FACTS:
        out[name, i] = self.value((name, i))
    for name in SCENE_FACTS:
      out[name, None] = self.value((name, None))
    return out

  def alternatives(self, fact: Fact) -> tuple[str, ...]:
    """Other values of a fact that keep the solids in their order."""
    name, solid = fact
    if solid is None:
      values = SCENE_FACTS[name]
    else:
      values = SOLID_FACTS[name]
      if name == "place":
        order = [PLACES.index(s.place) for s in self.solids]
        low = order[solid - 1] if solid else -1
        high = order[solid + 1] if solid + 1 < len(order) else len(PLACES)
        values = PLACES[low + 1 : high]
    now = self.value(fact)
    return tuple(v for v in values if v != now)

  def to_dict(self) -> dict[str, Any]:
    """Plain data, for JSON."""
    return dataclasses.asdict(self)


def stream(
  *key: str | int, index: int, count: int
) -> Float[np.ndarray, " count"]:
  """Uniform random numbers in [0, 1), a pure function of the arguments.

  They are the raw Philox stream, which is the same in all versions of NumPy.

  Args:
    *key: names the stream, e.g. version, seed, split, purpose.
    index: of the sample; each has 2**64 blocks of the counter.
    count: of the numbers.
  """
  text = "omniworld|" + "|".join(map(str, key))
  digest = hashlib.sha256(text.encode()).digest()
  bits = np.random.Philox(
    key=np.frombuffer(digest[:16], "<u8"),
    counter=np.array([0, index, 0, 0], np.uint64),
  )
  return (bits.random_raw(count) >> 11) * 2.0**-53


def _places(count: int, u: float) -> tuple[str, ...]:
  if count == 1:
    return (PLACES[int(u * 3)],)
  if count == 2:
    gap = int(u * 3)
    return tuple(p for i, p in enumerate(PLACES) if i != gap)
  return PLACES


def draw_scene(*key: str | int, index: int) -> Scene:
  """Draws scene `index` of the random stream `key`.

  One solid in 40% of the scenes, two in 40%, three in 20%; every other fact is
  uniform over its values and independent of the rest.
  """
  u = stream(*key, "scene", index=index, count=24 + _LOOK_LENGTH).tolist()
  numbers = iter(u)

  def choose(values: Sequence[str]) -> str:
    return values[int(next(numbers) * len(values))]

  size = next(numbers)
  count = 1 if size < 0.4 else 2 if size < 0.8 else 3
  places = _places(count, next(numbers))
  strikes, setting, name = choose(STRIKES), choose(SETTINGS), choose(NAMES)
  solids = tuple(
    Solid(
      shape=choose(SHAPES),
      colour=choose(COLOURS),
      size=choose(SIZES),
      material=choose(MATERIALS),
      place=place,
      motion=choose(MOTIONS),
    )
    for place in places
  )
  look = tuple(int(x * 256) / 256 for x in u[24:])
  return Scene(solids, strikes, setting, name, look)


def observes(modalities: str, fact: str) -> bool:
  """Whether modalities together show a fact.

  Args:
    modalities: their letters.
    fact: its name.

  Raises:
    ValueError: for an unknown fact.
  """
  if fact not in OBSERVABLE:
    raise ValueError(f"{fact=} is unknown; known: {', '.join(OBSERVABLE)}.")
  return any(need <= set(modalities) for need in OBSERVABLE[fact])


def changes(scene: Scene, names: Sequence[str]) -> Iterator[Fact]:
  """Yields the facts called `names` that can be changed in this scene."""
  for name in names:
    if name in SCENE_FACTS:
      yield name, None
    elif name in SOLID_FACTS:
      for i in range(len(scene.solids)):
        if scene.alternatives((name, i)):
          yield name, i


def neighbours(
  scene: Scene, number: int, names: Sequence[str], u: Sequence[float]
) -> list[tuple[Fact, Scene]]:
  """Scenes that differ from a scene in one fact each, all in different facts.

  Names of facts are used evenly: a second fact of a name (of another solid) is
  changed only after each name was used.

  Args:
    scene: to change.
    number: of scenes.
    names: of the facts that may change, equally likely.
    u: at least `number + 20` random numbers in [0, 1).

  Returns:
    The changed fact and the scene of each.

  Raises:
    ValueError: if fewer than `number` facts can change.
  """
  queues: dict[str, list[Fact]] = {}
  for fact in changes(scene, names):
    queues.setdefault(fact[0], []).append(fact)
  numbers = iter(u)
  rounds: list[tuple[int, float, Fact]] = []
  for facts in queues.values():
    shift = int(next(numbers) * len(facts))
    turned = facts[shift:] + facts[:shift]
    rounds += [(i, next(numbers), f) for i, f in enumerate(turned[:2])]
  rounds.sort()
  if len(rounds) < number:
    raise ValueError(
      f"only {len(rounds)} facts of this scene can change among "
      f"{', '.join(names)}, {number} were asked for; ask for fewer."
    )
  out = []
  for _, _, fact in rounds[:number]:
    values = scene.alternatives(fact)
    value = values[int(next(numbers) * len(values))]
    out.append((fact, scene.with_fact(fact, value)))
  return out
