"""Retrieval of an item's other modality: which depth map is of this picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Groups
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.queries import scenes_of
from mico_jax.evaluation.results import Result
from mico_jax.evaluation.streamed_ranks import answers_from, streamed_ranks
from mico_jax.modalities import has_text, sides
from mico_jax.world import Scene, common_facts, pair_ceiling
from mico_jax.world.ceiling import Key, facts_key

RECALLS = (1, 5)
FACTS = "facts@1"


@dataclasses.dataclass(frozen=True)
class InstancePairs(Evaluator):
  """Retrieval of the very partner of an item in another modality, both ways.

  For the pairs of contexts that tasks contrast without a text, or for `pairs`,
  which may have met in no task; an item with equal scores counts as ranked
  before the partner. Of scenes of OmniWorld also "facts@1": the first item
  agrees with the query in all facts that both contexts show. Scenes that agree
  in these limit R@1, for a model that knows of the two by their texts alone.

  Attributes:
    pairs: such as "i:d"; (): those of the contrastive tasks.
  """

  pairs: Groups = ()

  name: ClassVar = "instance_pairs"
  title: ClassVar = "instance"
  measures: ClassVar = {
    **{f"R@{k}": Measure(headline=k == 1) for k in RECALLS},
    FACTS: Measure(),
  }
  cheap: ClassVar = True

  def check(self, config: Config) -> None:
    """Each pair is of two contexts."""
    del config
    for pair in self.pairs:
      if has_text(pair):
        raise ConfigError(
          f"evaluation.options.{self.name}.pairs has {pair!r}, which has a "
          "text; set evaluation.groups for it, and write pairs as 'i:d'."
        )
      try:
        sides(pair)
      except ValueError as error:
        raise ConfigError(
          f"evaluation.options.{self.name}.pairs: {error}"
        ) from None

  def compared(self, config: Config) -> tuple[tuple[str, str], ...]:
    """The contexts of each pair."""
    trained = (
      group
      for task in config.tasks.values()
      for group in task.objectives.get("contrastive", ())
      if not has_text(group)
    )
    return tuple(dict.fromkeys(sides(pair) for pair in self.pairs or trained))

  def needs(self, config: Config) -> Needs | None:
    """Both contexts of each pair."""
    contexts = dict.fromkeys(c for p in self.compared(config) for c in p)
    return Needs(embed=tuple(contexts)) if contexts else None

  def measure(self, job: Job) -> list[Result]:
    """R@1 and R@5, both ways, and by facts where they are known."""
    results = []
    for first, second in self.compared(job.config):
      items = job.gallery.usable(f"{first}{second}")
      one, other = (job.gallery.embeddings[c][items] for c in (first, second))
      scenes = scenes_of(job.gallery, items)
      sizes: Any = {"total": job.gallery.count(), "gallery": len(items)}
      names = (f"{first}->{second}", f"{second}->{first}")
      for name, query, key in zip(
        names, (one, other), (other, one), strict=True
      ):
        ranks = partner_ranks(query, key)
        ceiling = pair_ceiling(scenes, first, second) if scenes else None
        results += [
          job.protocol.result(
            f"{self.title}/{name}/R@{k}",
            metrics.recall_at(ranks, k),
            ceiling=ceiling if k == 1 else None,
            baseline=min(k / max(len(items), 1), 1.0),
            **sizes,
          )
          for k in RECALLS
        ]
        if scenes:
          pairs = agreeing(scenes, first, second)
          answers = answers_from(pairs, len(scenes))
          ranks = streamed_ranks(query, key, answers)
          results.append(
            job.protocol.result(
              f"{self.title}/{name}/{FACTS}",
              metrics.recall_at(ranks, 1),
              baseline=len(pairs) / len(scenes) ** 2,
              **sizes,
            )
          )
    return results


def agreeing(
  scenes: Sequence[Scene], first: str, second: str
) -> Int[np.ndarray, "P 2"]:
  """Pairs of scenes, sorted, that agree in the facts that both contexts show.

  Args:
    scenes: of the gallery.
    first: letters of a context.
    second: letters of the other.
  """
  names = common_facts(first, second)
  keys = [facts_key(scene, names) for scene in scenes]
  rows: dict[Key, list[int]] = {}
  for i, key in enumerate(keys):
    rows.setdefault(key, []).append(i)
  pairs = [(i, j) for i, key in enumerate(keys) for j in rows[key]]
  return np.asarray(pairs, np.int64)


def partner_ranks(
  query: Float[np.ndarray, "N E"], key: Float[np.ndarray, "N E"]
) -> Int[np.ndarray, " N"]:
  """Rank from 1 of key i among all keys for query i."""
  if not len(query):
    return np.zeros(0, np.int64)  # the result says that none could be scored
  partners = np.arange(len(query), dtype=np.int32)[:, None]
  return streamed_ranks(query, key, partners)
