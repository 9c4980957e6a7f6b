"""Small galleries of OmniWorld scenes that differ in one fact."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mico_jax.config import Config
from mico_jax.data.sources.omniworld import OmniWorldSource
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.queries import (
  evaluated_groups,
  kind_of,
  texts_of,
  trained,
)
from mico_jax.evaluation.results import Result
from mico_jax.modalities import has_words
from mico_jax.world import World, shown_facts
from mico_jax.world.ceiling import facts_key


@dataclasses.dataclass(frozen=True)
class HardGalleries(Evaluator):
  """R@1 among eight scenes that differ from the queried one in one fact.

  For those of `evaluation.groups` that have several letters and no subtitles,
  in `evaluation.hard` galleries; for contexts that tasks train matching on also
  in the order of the matching head, which sees every scene of the gallery.
  """

  name: ClassVar = "hard_galleries"
  title: ClassVar = "hard"
  measures: ClassVar = {"R@1": Measure()}
  source_kind: ClassVar = "omniworld"

  def needs(self, config: Config) -> Needs | None:
    """Nothing of the common gallery."""
    return Needs() if config.evaluation.hard and _contexts(config) else None

  def measure(self, job: Job) -> list[Result]:
    """R@1 of each group, by similarity and by the matching head."""
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
  """R@1 of one group, each query in a gallery of its own."""
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
    orders[f" (re-ranked {size})"] = found.reshape(count, size).astype(float)
  first = np.zeros((count, size), bool)
  first[:, 0] = True
  names = shown_facts(context, kind)
  keys = [[facts_key(scene, names) for scene in g] for g in galleries]
  protocol = dataclasses.replace(job.protocol, split="hard")
  return [
    protocol.result(
      f"hard/t->{context}{suffix}/R@1",
      metrics.recall_at(metrics.ranks(scores, first), 1),
      total=count,
      prompts=texts,
      gallery=size,
      ceiling=float(np.mean([1 / k.count(k[0]) for k in keys])),
      baseline=1 / size,
    )
    for suffix, scores in orders.items()
  ]
