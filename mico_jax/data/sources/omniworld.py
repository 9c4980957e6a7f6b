"""Data source of OmniWorld: scenes rendered by `mico_jax.world`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import Config, ConfigError, SourceConfig
from mico_jax.data.records import Lazy, Record
from mico_jax.data.sources.base import SourceKind
from mico_jax.modalities import MODALITIES, UNSTATED, Stated
from mico_jax.printing import known_names
from mico_jax.world import FIELDS_OF, RATES, UNITS, Scene, World, negatives
from mico_jax.world.language import NUM_PHRASINGS, caption
from mico_jax.world.scene import SCENE_FACTS, SOLID_FACTS

DEFAULT_SIZE = 100_000  # scenes of a split
_SMALLEST, _LARGEST = 32, 224  # sizes in pixels that can be rendered


class OmniWorldSource(SourceKind):
  """Scenes of OmniWorld, rendered when they are read, at the encoder's size."""

  kind: ClassVar = "omniworld"
  reads: ClassVar = ("seed", "version", "negative_facts")
  depth_unit: ClassVar = "metre"

  def __init__(self, name: str, spec: SourceConfig, config: Config):
    """Prepares a split of the world.

    Raises:
      ConfigError: for an unknown version, split or fact, a `where` filter,
        `fields` or `captions`, and for units and rates that are not those of
        the scenes.
    """
    if spec.where:
      raise ConfigError(f"data.sources.{name}.where: OmniWorld has no filter.")
    if spec.fields or spec.captions:
      raise ConfigError(
        f"data.sources.{name}: scenes are not mapped by fields or captions; "
        "remove them."
      )
    if spec.depth_unit not in ("", "metre"):
      raise ConfigError(
        f"data.sources.{name}.depth_unit={spec.depth_unit!r}: OmniWorld "
        "measures in metres."
      )
    _check_stated(name, spec)
    facts = [*SOLID_FACTS, *SCENE_FACTS]
    for fact in spec.negative_facts:
      if fact not in facts:
        raise ConfigError(
          f"data.sources.{name}.negative_facts: {fact!r} is not a fact of "
          f"OmniWorld; {known_names(fact, facts)}"
        )
    self._negative_facts = spec.negative_facts
    try:
      self.world = World(version=spec.version, seed=spec.seed, split=spec.split)
    except ValueError as error:
      raise ConfigError(f"data.sources.{name}: {error}") from error
    self._split = spec.split
    self._size = spec.size or DEFAULT_SIZE
    pixels = config.model.vision.image_size
    self._pixels = min(max(pixels, _SMALLEST), _LARGEST)
    self._frames = {
      key: config.data.inputs[key].frames
      if key in config.data.inputs
      else MODALITIES[key].default_input.frames
      for key in ("video", "depth", "normal", "thermal")
    }
    text = f"omniworld {spec.version} {spec.seed} {spec.split} {self._size}"
    self.sha256 = hashlib.sha256(text.encode()).hexdigest()

  @classmethod
  def open(
    cls, name: str, spec: SourceConfig, config: Config
  ) -> OmniWorldSource:
    """Prepares a split of the world for the input sizes of a config."""
    return cls(name, spec, config)

  @classmethod
  def usual(cls, spec: SourceConfig, key: str) -> Stated:
    """Units and rates of what the version has."""
    if key not in FIELDS_OF.get(spec.version, ()):
      return UNSTATED
    return Stated(UNITS.get(key, ""), RATES.get(key, 0.0))

  def __len__(self) -> int:
    """Number of scenes."""
    return self._size

  def record(self, index: int) -> Record:
    """Record of scene `index` of the split."""
    return self.scene_record(
      self.world.scene(int(index)), int(index), f"{self._split}-{index}"
    )

  def scene_record(self, scene: Scene, index: int, sample_id: str) -> Record:
    """Record of any scene, such as one with a changed fact.

    Args:
      scene: of the world.
      index: of the scene; seeds its negatives.
      sample_id: id of the record.
    """
    language = self.world.language(scene, index)

    # Computed by kind, as a batch needs one or two kinds.
    def captions(kind: str) -> tuple[str, ...]:
      return tuple(caption(scene, kind, p) for p in range(NUM_PHRASINGS))

    def opposites(kind: str) -> tuple[str, ...]:
      # In all phrasings, as true captions are: otherwise the phrasing alone
      # would give the negatives away.
      return tuple(
        text
        for phrasing in range(NUM_PHRASINGS)
        for text in negatives(
          scene, kind, index, phrasing, self._negative_facts
        )
      )

    def read_many(keys: Sequence[str]) -> dict[str, Any]:
      out: dict[str, Any] = self.world.render(
        scene, size=self._pixels, num_frames=self._frames, fields=tuple(keys)
      )
      if "normal" in out:
        out["normal"] = np.rint(127.5 + 127.5 * out["normal"]).astype(np.uint8)
      return out

    return Record(
      id=sample_id,
      media={key: _one(read_many, key) for key in self.world.fields},
      captions=Lazy(tuple(self.world.stated), captions),
      negatives=Lazy(tuple(self.world.stated), opposites),
      questions=_Questions(language),
      fields={"scene": scene},
      read_many=read_many,
    )


def _check_stated(name: str, spec: SourceConfig) -> None:
  """Raises ConfigError for a unit or rate that is not that of the scenes."""
  for field, told, own in (
    ("units", spec.units, UNITS),
    ("rates", spec.rates, RATES),
  ):
    for key, value in told.items():
      if value != own.get(key, value):
        raise ConfigError(
          f"data.sources.{name}.{field}[{key!r}]={value!r}: OmniWorld has "
          f"{own[key]!r}; remove it."
        )


def _one(read_many: Any, key: str) -> Any:
  return lambda: read_many((key,))[key]


class _Questions(Sequence[tuple[str, str, str]]):
  """Questions about a scene, computed on access."""

  def __init__(self, language: Any):
    self._language = language

  def __len__(self) -> int:
    return len(self._language.questions)

  def __getitem__(self, index: Any) -> Any:
    question, answer, needs = self._language.questions[index]
    return question, answer, "".join(sorted(needs))
