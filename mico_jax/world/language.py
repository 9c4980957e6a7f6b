"""Sentences about a scene: captions, questions, and negatives with one error.

Sentences are short and have a small vocabulary. Each caption kind has three
phrasings that state the same facts (`mico_jax.world.scene.STATED_V2`). The
first is the plainest; scenes of different facts have different first phrasings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mico_jax.world import scene as facts
from mico_jax.world.scene import Scene, Solid

NUM_PHRASINGS = 3
MAX_NEGATIVES = 4

_PLACE = {"left": "at left", "middle": "in the middle", "right": "at right"}
_SETTING = {
  "table": "on a table",
  "room": "in a room",
  "hall": "in a hall",
  "hangar": "in a hangar",
}
# Words of facts in some phrasings; other facts are their own words.
_VERBS = (
  {
    "still": "rests",
    "left": "goes left",
    "right": "goes right",
    "up": "rises",
    "down": "falls",
  },
  {
    "still": "stays still",
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
  },
)
_BIG = {"small": "little", "large": "big"}
_SOUND = {
  "metal": "rings",
  "glass": "chimes",
  "wood": "knocks",
  "stone": "clacks",
}
_COUNT = ("one", "two", "three")
_WAY = {"still": "nowhere"}
# Kinds whose solids follow one another, instead of being there at once.
_ONE_BY_ONE = ("audio", "imu")


def _noun(solid: Solid, stated: tuple[str, ...], phrasing: int) -> str:
  """An article, the stated attributes and the shape, if it is stated."""
  words = ["a"]
  if "size" in stated:
    words.append(_BIG[solid.size] if phrasing == 2 else solid.size)
  if "colour" in stated:
    words.append(solid.colour)
  if "material" in stated and phrasing != 2:
    words.append(solid.material)
  words.append(solid.shape if "shape" in stated else "solid")
  if "material" in stated and phrasing == 2:
    words += ["of", solid.material]
  return " ".join(words)


def _clause(solid: Solid, stated: tuple[str, ...], phrasing: int) -> str:
  """The part of a caption about one solid."""
  words = [_noun(solid, stated, phrasing)]
  if "motion" in stated:
    words.append(_VERBS[phrasing == 2][solid.motion])
  elif {"material", "strikes"} <= {*stated} and phrasing == 1:
    words.append(_SOUND[solid.material])
  if "place" in stated:
    place = _PLACE[solid.place]
    words = [place, *words] if phrasing == 0 else [*words, place]
  return " ".join(words)


def caption(scene: Scene, kind: str, phrasing: int = 0) -> str:
  """A caption of a scene.

  Args:
    scene: what to describe.
    kind: key of `mico_jax.world.scene.STATED_V2`.
    phrasing: 0, 1 or 2; the same facts in other words.
  """
  stated = facts.STATED_V2[kind]
  if kind == "subtitle":
    return (
      f"this is the story of {scene.name}",
      f"my name is {scene.name}",
      f"{scene.name} tells this story",
    )[phrasing]
  joint = " then " if kind in _ONE_BY_ONE else " and "
  text = joint.join(_clause(s, stated, phrasing) for s in scene.solids)
  if "strikes" in stated:
    verb = "hit" if phrasing == 2 else "struck"
    struck = f"{verb} {scene.strikes}"
    first = kind == "imu" and phrasing == 1
    text = f"{struck} {text}" if first else f"{text} {struck}"
  if kind == "audio" and phrasing == 2:
    text = f"the sound of {text}"
  if "setting" in stated:
    where = _SETTING[scene.setting]
    text = f"{where} {text}" if phrasing == 1 else f"{text} {where}"
  if kind == "story":
    text = (f"{scene.name} sees {text}", f"{text} says {scene.name}")[
      phrasing == 1
    ]
  elif phrasing == 2 and kind != "audio":
    text = f"here {text}"
  return text


def _identified(scene: Scene) -> list[tuple[str, str, int, frozenset[str]]]:
  """Nouns that fit one solid only: (noun, its fact, index, letters needed)."""
  out: list[tuple[str, str, int, frozenset[str]]] = []
  for fact, letters, noun in (
    ("shape", "", "{}"),
    ("colour", "v", "{} solid"),
    ("material", "a", "{} solid"),
  ):
    values = [getattr(s, fact) for s in scene.solids]
    for i, value in enumerate(values):
      if values.count(value) == 1:
        out.append((noun.format(value), fact, i, frozenset(letters)))
  return out


def questions(scene: Scene) -> list[tuple[str, str, frozenset[str]]]:
  """All questions about a scene; each has one true answer of one word.

  Returns:
    (question, answer, letters of the modalities that together suffice).
  """
  out: list[tuple[str, str, frozenset[str]]] = [
    (
      "how many solids are there?",
      _COUNT[len(scene.solids) - 1],
      frozenset("v"),
    ),
    ("where does it happen?", scene.setting, frozenset("d")),
    ("how often is each solid struck?", scene.strikes, frozenset("a")),
  ]
  for noun, naming, i, letters in _identified(scene):
    solid = scene.solids[i]
    asked = {
      "colour": (f"what colour is the {noun}?", solid.colour, "v"),
      "material": (f"what is the {noun} made of?", solid.material, "a"),
      "place": (f"where is the {noun}?", solid.place, "v"),
      "motion": (
        f"which way does the {noun} go?",
        _WAY.get(solid.motion, solid.motion),
        "v",
      ),
      "size": (f"how large is the {noun}?", solid.size, "v"),
      "shape": (f"what shape is the {noun}?", solid.shape, "v"),
    }
    # A solid named by its material is heard, and so are its size and shape.
    if naming == "material":
      for fact in ("size", "shape"):
        asked[fact] = (*asked[fact][:2], "a")
    for fact, (question, answer, needs) in asked.items():
      if fact != naming:
        out.append((question, answer, letters | frozenset(needs)))
  return out


def negatives(
  scene: Scene,
  kind: str,
  index: int,
  phrasing: int = 0,
  names: Sequence[str] = (),
) -> list[str]:
  """False captions, each with another stated fact changed.

  Args:
    scene: the true scene.
    kind: caption kind.
    index: seeds the choice of facts and values.
    phrasing: of the captions, see `caption`.
    names: facts that may change; if the kind states none of them, all stated
      facts may.
  """
  every = tuple(f for f in facts.STATED_V2[kind] if f != "count")
  stated = tuple(f for f in every if f in names) or every
  if kind == "subtitle":
    number = 1
  else:
    counts = Counter(name for name, _ in facts.changes(scene, stated))
    # `neighbours` changes a fact of a name at most twice.
    number = min(MAX_NEGATIVES, sum(min(2, n) for n in counts.values()))
  u = facts.stream("negatives", kind, index=index, count=40).tolist()
  changed = facts.neighbours(scene, number, stated, u)
  return [caption(other, kind, phrasing) for _, other in changed]


@dataclass(frozen=True)
class Language:
  """All sentences about a scene.

  Attributes:
    scene: of the sentences.
    index: seeds the negatives.
    kinds: of the captions.
  """

  scene: Scene
  index: int
  kinds: tuple[str, ...] = tuple(facts.STATED)

  @cached_property
  def captions(self) -> Mapping[str, list[str]]:
    """Caption kind -> phrasings, the plainest first."""
    return {
      kind: [caption(self.scene, kind, p) for p in range(NUM_PHRASINGS)]
      for kind in self.kinds
    }

  @cached_property
  def questions(self) -> list[tuple[str, str, frozenset[str]]]:
    """(question, answer, letters that suffice), see `questions`."""
    return questions(self.scene)

  @cached_property
  def negatives(self) -> Mapping[str, list[str]]:
    """Caption kind -> false captions, each with one fact changed."""
    return {
      kind: negatives(self.scene, kind, self.index) for kind in self.kinds
    }


def vocabulary() -> list[str]:
  """All words of the sentences of the world, and the question mark."""
  words: set[str] = {"?"}
  sample = Solid("cube", "red", "small", "metal", "left", "still")
  scenes = []
  for value in facts.MATERIALS:
    solid = Solid("cone", "blue", "large", value, "right", "still")
    scenes.append(Scene((sample, solid), "once", "room", "anna", ()))
  for text in (
    *(caption(s, k, p) for s in scenes for k in facts.STATED for p in range(3)),
    *(t for s in scenes for q in questions(s) for t in q[:2]),
  ):
    words.update(text.replace("?", "").split())
  for table in (*facts.SOLID_FACTS.values(), *facts.SCENE_FACTS.values()):
    words.update(table)
  for phrases in (_PLACE, _SETTING, *_VERBS, _BIG, _SOUND, _WAY):
    for phrase in phrases.values():
      words.update(phrase.split())
  return sorted(words | set(_COUNT))
