"""Highest possible retrieval accuracy, computed from the scene graphs.

A caption states facts, and a set of modalities shows facts. No model can
distinguish items that agree with the caption in every fact that is both stated
and shown, so it finds the right one with probability one over their number.

Between two sets of modalities the same holds of the facts that both show, for a
model that knows of their relation by texts alone: what no text states (light,
exact places) is the same in two pictures of a scene, but nothing tells it so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mico_jax.world.scene import (
  OBSERVABLE,
  SCENE_FACTS,
  STATED_V2,
  Scene,
  observes,
)

# (count, facts of the solids, facts of the scene) that matter for a comparison.
Key = tuple[int, tuple[tuple[str, ...], ...], tuple[str, ...]]


def check_kind(kind: str) -> None:
  """Raises ValueError for an unknown caption kind, listing the known ones."""
  if kind not in STATED_V2:
    raise ValueError(
      f"caption {kind=} is unknown; known: {', '.join(STATED_V2)}."
    )


def shown_facts(modalities: str, kind: str = "omni") -> tuple[str, ...]:
  """Names of the facts that captions of `kind` state and `modalities` show."""
  check_kind(kind)
  return tuple(f for f in STATED_V2[kind] if observes(modalities, f))


def common_facts(first: str, second: str) -> tuple[str, ...]:
  """Names of the facts that both of two sets of modalities show."""
  return tuple(
    f for f in OBSERVABLE if observes(first, f) and observes(second, f)
  )


def facts_key(scene: Scene, names: Sequence[str]) -> Key:
  """Values of the facts called `names`, to compare scenes by."""
  per_solid = [f for f in names if f not in SCENE_FACTS and f != "count"]
  return (
    len(scene.solids) if "count" in names else 0,
    tuple(
      tuple(getattr(solid, f) for f in per_solid)
      for solid in (scene.solids if per_solid else ())
    ),
    tuple(getattr(scene, f) for f in names if f in SCENE_FACTS),
  )


def ceilings(
  scenes: Sequence[Scene], modalities: str, kind: str = "omni"
) -> float:
  """Highest expected text->item R@1 over a gallery of scenes.

  Args:
    scenes: the gallery; each scene is a query and an item.
    modalities: letters of the modalities of each item, e.g. "va".
    kind: caption kind of the queries.

  Returns:
    The mean over queries of 1 / (number of items consistent with the facts that
    are stated and shown), in (0, 1]. It never falls with more modalities.

  Raises:
    ValueError: for no scenes or an unknown kind.
  """
  if not scenes:
    raise ValueError("ceilings needs at least one scene, got none.")
  names = shown_facts(modalities, kind)
  counts = Counter(facts_key(scene, names) for scene in scenes)
  # Each of the c scenes of a group succeeds with probability 1 / c.
  return len(counts) / len(scenes)


def pair_ceiling(scenes: Sequence[Scene], first: str, second: str) -> float:
  """Highest expected R@1 from one modality of a scene to another, by facts.

  Args:
    scenes: the gallery; each scene is a query and an item.
    first: letters of the modalities of each query.
    second: letters of the modalities of each item.

  Returns:
    The mean over queries of 1 / (number of items that agree in the facts that
    both show), in (0, 1].

  Raises:
    ValueError: for no scenes.
  """
  if not scenes:
    raise ValueError("pair_ceiling needs at least one scene, got none.")
  names = common_facts(first, second)
  return len({facts_key(scene, names) for scene in scenes}) / len(scenes)
