"""OmniWorld: a synthetic data set that is rendered on the fly.

A scene has one to three solids, with pictures, depth, normals, sound and
sentences; it is a pure function of (version, seed, split, index). Some facts
can only be seen, some only heard, some only known from depth or from the
subtitle, so each modality adds information, whose effect `ceilings` computes.

    world = World(split="train")
    scene = world.scene(0)
    sample = world.render(scene, size=32, num_frames=2)
    words = world.language(scene, 0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mico_jax.world.ceiling import ceilings, check_kind, shown_facts
from mico_jax.world.language import Language, caption, negatives, vocabulary
from mico_jax.world.render import cast, frame_times
from mico_jax.world.scene import (
  OBSERVABLE,
  SPLITS,
  STATED,
  VERSIONS,
  Scene,
  Solid,
  draw_scene,
  neighbours,
  observes,
  stream,
)
from mico_jax.world.sound import SAMPLE_RATE, render_sound

__all__ = [
  "FIELDS",
  "OBSERVABLE",
  "SAMPLE_RATE",
  "SPLITS",
  "STATED",
  "VERSIONS",
  "Language",
  "Scene",
  "Solid",
  "World",
  "caption",
  "ceilings",
  "negatives",
  "observes",
  "shown_facts",
  "vocabulary",
]

FIELDS = ("video", "image", "depth", "normal", "audio")
HARD_SIZE = 8  # scenes of a hard gallery


@dataclass(frozen=True)
class World:
  """An endless sequence of scenes.

  Attributes:
    version: of the look and sound of scenes, which never changes.
    seed: of the random stream.
    split: "train", "test" or "hard", which have disjoint random streams.

  Raises:
    ValueError: for an unknown version or split, listing the known ones.
  """

  version: str = "v1"
  seed: int = 0
  split: str = "train"

  def __post_init__(self) -> None:
    """Checks the names."""
    if self.version not in VERSIONS:
      raise ValueError(
        f"world version {self.version!r} is unknown; known: "
        f"{', '.join(VERSIONS)}."
      )
    if self.split not in SPLITS:
      raise ValueError(
        f"world split {self.split!r} is unknown; known: {', '.join(SPLITS)}."
      )

  def scene(self, index: int) -> Scene:
    """Scene number `index`, 0 to 2**63 - 1.

    Raises:
      ValueError: for a negative index.
    """
    if index < 0:
      raise ValueError(f"{index=} is negative; scenes count from 0.")
    return draw_scene(self.version, self.seed, self.split, index=int(index))

  def render(
    self,
    scene: Scene,
    *,
    size: int = 32,
    num_frames: int | Mapping[str, int] = 2,
    fields: Sequence[str] = FIELDS,
    seconds: float = 1.0,
  ) -> dict[str, np.ndarray]:
    """Renders pictures and sound of a scene.

    Args:
      scene: what to render.
      size: height and width in pixels, 32 to 224.
      num_frames: 1 to 8, evenly spaced from the first to the last moment; one
        frame is the middle. A mapping gives video, depth and normal a number
        each (1 where absent).
      fields: which of `FIELDS` to make.
      seconds: of sound.

    Returns:
      video uint8 [T, Y, X, 3]; image uint8 [1, Y, X, 3], the middle moment;
      depth float32 [T, Y, X] in metres along the optical axis; normal float32
      [T, Y, X, 3], unit, camera space (x right, y up, z to the viewer); audio
      float32 [samples], 16 kHz, in [-1, 1].

    Raises:
      ValueError: for an unknown field or a number out of range.
    """
    for name in fields:
      if name not in FIELDS:
        raise ValueError(f"field {name!r} is unknown; known: {FIELDS}.")
    moments: dict[str, tuple[float, ...]] = {}
    for name in fields:
      if name == "image":
        moments[name] = (0.0,)
      elif name != "audio":
        frames = (
          num_frames if isinstance(num_frames, int) else num_frames.get(name, 1)
        )
        moments[name] = frame_times(frames)
    out: dict[str, np.ndarray] = {}
    times = tuple(sorted({t for ts in moments.values() for t in ts}))
    if times:
      rgb, depth, normal = cast(scene, size, times)
      arrays = {"video": rgb, "image": rgb, "depth": depth, "normal": normal}
      for name, ts in moments.items():
        array = arrays[name]
        out[name] = (
          array if ts == times else array[[times.index(t) for t in ts]]
        )
    if "audio" in fields:
      out["audio"] = render_sound(scene, seconds=seconds)
    return out

  def language(self, scene: Scene, index: int) -> Language:
    """All sentences about a scene; `index` seeds the negatives."""
    return Language(scene, int(index))

  def hard_gallery(self, index: int, *, letters: str = "va") -> list[Scene]:
    """A scene and seven others, each with a different fact changed.

    Args:
      index: number of the scene, which comes first.
      letters: of modalities; only facts that they show together are changed, so
        that a perfect model can find the first scene. With "va" these include
        facts that are only seen (colour, place, motion) or only heard
        (material, strikes); with "vad" also the setting.
    """
    scene = self.scene(index)
    names = [f for f in shown_facts(letters, "omni") if f != "count"]
    key = (self.version, self.seed, self.split, "hard")
    u = stream(*key, index=int(index), count=40).tolist()
    changed = neighbours(scene, HARD_SIZE - 1, names, u)
    return [scene, *(other for _, other in changed)]

  def gallery(self, n: int, *, kind: str = "omni", start: int = 0) -> list[int]:
    """Indices of `n` scenes whose captions of a kind all differ.

    Args:
      n: number of scenes.
      kind: of the captions.
      start: index of the first scene to look at.

    Raises:
      ValueError: if there are too few different captions of this kind.
    """
    check_kind(kind)
    seen: set[str] = set()
    out: list[int] = []
    for index in range(start, start + 1000 + 20 * n):
      if len(out) == n:
        break
      text = caption(self.scene(index), kind)
      if text not in seen:
        seen.add(text)
        out.append(index)
    if len(out) < n:
      raise ValueError(
        f"only {len(out)} different {kind} captions found, {n} asked for; "
        "ask for fewer or another kind."
      )
    return out
