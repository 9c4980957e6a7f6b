"""OmniWorld: a synthetic data set that is rendered on the fly.

A scene has one to three solids, with pictures, depth, normals, sound and
sentences; it is a pure function of (version, seed, split, index). Some facts
can only be seen, some only heard, some only known from depth or from the
subtitle, so each modality adds information, whose effect `ceilings` computes.

Version "v2" has the scenes of "v1", with solids that start and stop, and adds
temperatures, recordings of inertial sensors and point clouds.

    world = World(split="train")
    scene = world.scene(0)
    sample = world.render(scene, size=32, num_frames=2)
    words = world.language(scene, 0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mico_jax.world.ceiling import (
  ceilings,
  check_kind,
  common_facts,
  pair_ceiling,
  shown_facts,
)
from mico_jax.world.language import Language, caption, negatives, vocabulary
from mico_jax.world.motion import RATE, eased, render_imu
from mico_jax.world.points import render_points
from mico_jax.world.render import cast, frame_times
from mico_jax.world.scene import (
  OBSERVABLE,
  SPLITS,
  STATED,
  STATED_V2,
  VERSIONS,
  Scene,
  Solid,
  draw_scene,
  neighbours,
  observes,
  stream,
)
from mico_jax.world.sound import SAMPLE_RATE, render_sound
from mico_jax.world.thermal import render_thermal

__all__ = [
  "FIELDS",
  "FIELDS_OF",
  "FIELDS_V2",
  "OBSERVABLE",
  "RATES",
  "SAMPLE_RATE",
  "SPLITS",
  "STATED",
  "STATED_V2",
  "UNITS",
  "VERSIONS",
  "Language",
  "Scene",
  "Solid",
  "World",
  "caption",
  "ceilings",
  "common_facts",
  "negatives",
  "observes",
  "pair_ceiling",
  "shown_facts",
  "vocabulary",
]

FIELDS = ("video", "image", "depth", "normal", "audio")  # of v1
FIELDS_V2 = (*FIELDS, "thermal", "imu", "pointcloud")
FIELDS_OF: Mapping[str, tuple[str, ...]] = {"v1": FIELDS, "v2": FIELDS_V2}
# Of arrays of v2: their unit, and samples a second.
UNITS = {"thermal": "kelvin", "imu": "m/s2,rad/s"}
RATES = {"imu": RATE}
HARD_SIZE = 8  # scenes of a hard gallery
_SCENES = "v1"  # names the random stream of the scenes of all versions


def _pictures(
  scene: Scene, size: int, moments: Mapping[str, tuple[float, ...]]
) -> dict[str, np.ndarray]:
  """Pictures, depth and normals, each at its moments, all cast at once."""
  times = tuple(sorted({t for ts in moments.values() for t in ts}))
  if not times:
    return {}
  rgb, depth, normal = cast(scene, size, times)
  arrays = {"video": rgb, "image": rgb, "depth": depth, "normal": normal}
  return {
    name: array if ts == times else array[[times.index(t) for t in ts]]
    for name, ts in moments.items()
    for array in [arrays[name]]
  }


@dataclass(frozen=True)
class World:
  """An endless sequence of scenes.

  Attributes:
    version: of what is rendered of scenes, which never changes.
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

  @property
  def fields(self) -> tuple[str, ...]:
    """What can be rendered."""
    return FIELDS_OF[self.version]

  @property
  def stated(self) -> Mapping[str, tuple[str, ...]]:
    """Caption kind -> facts that its captions state."""
    return STATED if self.version == "v1" else STATED_V2

  def scene(self, index: int) -> Scene:
    """Scene number `index`, 0 to 2**63 - 1.

    Raises:
      ValueError: for a negative index.
    """
    if index < 0:
      raise ValueError(f"{index=} is negative; scenes count from 0.")
    return draw_scene(_SCENES, self.seed, self.split, index=int(index))

  def render(
    self,
    scene: Scene,
    *,
    size: int = 32,
    num_frames: int | Mapping[str, int] = 2,
    fields: Sequence[str] | None = None,
    seconds: float = 1.0,
  ) -> dict[str, np.ndarray]:
    """Renders pictures, sound and other measurements of a scene.

    Args:
      scene: what to render.
      size: height and width in pixels, 32 to 224.
      num_frames: 1 to 8, evenly spaced from the first to the last moment; one
        frame is the middle. A mapping gives video, depth, normal and thermal
        a number each (1 where absent).
      fields: which of `self.fields` to make; None: all.
      seconds: of sound.

    Returns:
      video uint8 [T, Y, X, 3]; image uint8 [1, Y, X, 3], the middle moment;
      depth float32 [T, Y, X] in metres along the optical axis; normal float32
      [T, Y, X, 3], unit, camera space (x right, y up, z to the viewer); audio
      float32 [samples], 16 kHz, in [-1, 1]. Of v2 also: thermal float32
      [T, Y, X] in kelvin; imu float32 [samples, 6], m/s2 and rad/s at 50 Hz,
      see `motion`; pointcloud float32 [points, 6], metres and colours in 0..1,
      see `points`.

    Raises:
      ValueError: for an unknown field or a number out of range.
    """
    fields = self.fields if fields is None else fields
    for name in fields:
      if name not in self.fields:
        raise ValueError(
          f"field {name!r} is unknown; known in {self.version}: {self.fields}."
        )
    many = lambda name: (
      num_frames if isinstance(num_frames, int) else num_frames.get(name, 1)
    )
    moments = {
      name: (0.0,) if name == "image" else self._times(many(name))
      for name in fields
      if name in ("image", "video", "depth", "normal")
    }
    out = _pictures(scene, size, moments)
    if "audio" in fields:
      out["audio"] = render_sound(scene, seconds=seconds)
    if "thermal" in fields:
      times = self._times(many("thermal"))
      out["thermal"] = render_thermal(scene, size, times)
    if "imu" in fields:
      out["imu"] = render_imu(scene)
    if "pointcloud" in fields:
      out["pointcloud"] = render_points(scene)
    return out

  def _times(self, frames: int) -> tuple[float, ...]:
    """Progress of the motion at each frame, from -1 to 1."""
    times = frame_times(frames)
    return times if self.version == "v1" else tuple(map(eased, times))

  def language(self, scene: Scene, index: int) -> Language:
    """All sentences about a scene; `index` seeds the negatives."""
    return Language(scene, int(index), tuple(self.stated))

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
    key = (_SCENES, self.seed, self.split, "hard")
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
