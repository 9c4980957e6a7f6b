"""Small galleries of OmniWorld scenes that differ in one fact."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config import Config
from mico_jax.data.sources.omniworld import OmniWorldSource
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.features import joint_scores
from mico_jax.evaluation.queries import (
  evaluated_groups,
  kind_of,
  texts_of,
  trained,
)
from mico_jax.evaluation.results import Protocol, Result
from mico_jax.modalities import has_words
from mico_jax.world import Scene, World, shown_facts
from mico_jax.world.ceiling import facts_key

PAIRS_WON = "pairs won"  # last part of the names of results by fact


@dataclasses.dataclass(frozen=True)
class HardGalleries(Evaluator):
  """R@1 among eight scenes that differ from the queried one in one fact.

  For those of `evaluation.groups` that have several letters and no subtitles,
  in `evaluation.hard` galleries; for contexts that tasks train matching on also
  in the order of the matching head, which sees every scene of the gallery, and
  with `evaluation.rerank_by="both"` in that of both heads. "pairs won" says for
  each fact how often the queried scene comes before the one that differs in it.
  """

  name: ClassVar = "hard_galleries"
  title: ClassVar = "hard"
  measures: ClassVar = {
    "R@1": Measure(),
    PAIRS_WON: Measure(headline=False),
  }
  source_kind: ClassVar = "omniworld"

  def needs(self, config: Config) -> Needs | None:
    """Nothing of the common gallery."""
    return Needs() if config.evaluation.hard and _contexts(config) else None

  def measure(self, job: Job) -> list[Result]:
    """R@1 and pairs of each group, by similarity and by the matching head."""
    if not isinstance(job.source, OmniWorldSource):
      raise TypeError(f"expected an OmniWorldSource, got {job.source!r}.")
    world = dataclasses.replace(job.source.world, split="hard")
    return [
      result
      for context in _contexts(job.config)
      for result in _results(job, job.source, world, context)
    ]


def _contexts(config: Config) -> list[str]:
  groups = evaluated_groups(config)
  return [c for c in groups if len(c) > 1 and not has_words(c)]


def _results(
  job: Job, source: OmniWorldSource, world: World, context: str
) -> list[Result]:
  """Results of one group, each query in a gallery of its own."""
  matched = context in trained(job.config, "matching")
  count = job.config.evaluation.hard
  galleries = [world.hard_gallery(i, letters=context) for i in range(count)]
  size = len(galleries[0])
  records = [
    source.scene_record(scene, i, f"hard-{i}-{k}")
    for i, scenes in enumerate(galleries)
    for k, scene in enumerate(scenes)
  ]
  gallery = job.embedder.embed_gallery(
    job.protocol.source, (context,), records=records, keep_batches=matched
  )
  kind = kind_of(job.config, context)
  texts = [texts_of(records[i * size], kind, 1)[0] for i in range(count)]
  queries = job.embedder.embed_texts(texts, kind)
  items = gallery.embeddings[context].reshape(count, size, -1)
  orders = {"": np.einsum("qe,qge->qg", queries, items).astype(np.float64)}
  if matched:
    query = np.repeat(np.arange(count), size)
    pairs = np.stack([query, np.arange(count * size)], axis=1)
    found = job.embedder.match(gallery, context, texts, kind, pairs)
    found = found.reshape(count, size)
    orders[f" (re-ranked {size})"] = found.astype(np.float64)
    if job.config.evaluation.rerank_by == "both":
      temperature = job.embedder.temperature(context)
      both = joint_scores(found, orders[""], temperature)
      orders[f" (re-ranked {size}, both)"] = both
  first = np.zeros((count, size), bool)
  first[:, 0] = True
  names = shown_facts(context, kind)
  keys = [[facts_key(scene, names) for scene in g] for g in galleries]
  ceiling = float(np.mean([1 / k.count(k[0]) for k in keys]))
  protocol = dataclasses.replace(job.protocol, split="hard")
  results = []
  for suffix, scores in orders.items():
    name = f"hard/t->{context}{suffix}"
    results.append(
      protocol.result(
        f"{name}/R@1",
        metrics.recall_at(metrics.ranks(scores, first), 1),
        total=count,
        prompts=texts,
        gallery=size,
        ceiling=ceiling,
        baseline=1 / size,
      )
    )
    results += _pairs(protocol, name, galleries, scores, texts)
  return results


def _pairs(
  protocol: Protocol,
  name: str,
  galleries: list[list[Scene]],
  scores: Float[np.ndarray, "Q G"],
  texts: list[str],
) -> list[Result]:
  """How often the first scene beats the one that differs in a fact; by fact."""
  won: dict[str, list[float]] = {}
  items: dict[str, list[int]] = {}
  for i, (scene, *others) in enumerate(galleries):
    facts = scene.facts()
    for score, other in zip(scores[i, 1:], others, strict=True):
      changed = other.facts()
      fact = next(key[0] for key in facts if facts[key] != changed[key])
      won.setdefault(fact, []).append(float(scores[i, 0] > score))
      items.setdefault(fact, []).append(i)
  return [
    protocol.result(
      f"{name}/{fact}/{PAIRS_WON}",
      np.asarray(won[fact]),
      total=len(won[fact]),
      items=np.asarray(items[fact]),
      prompts=texts,
      gallery=2,
      baseline=0.5,
    )
    for fact in sorted(won)
  ]
