"""Accuracy of the matching head."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from mico_jax.config import Config
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.queries import queries_of, trained
from mico_jax.evaluation.results import Result


@dataclasses.dataclass(frozen=True)
class Matching(Evaluator):
  """Accuracy of the matching head, for each group that trains it.

  P(match) > 0.5 must be right, on as many true as false texts. The false text
  is that of a random other item, drawn from the protocol's seed; for "mined
  accuracy" it is the other text most similar to the item.
  """

  name: ClassVar = "matching"
  title: ClassVar = "matching"
  measures: ClassVar = {"accuracy": Measure(), "mined accuracy": Measure()}
  cheap: ClassVar = True

  def needs(self, config: Config) -> Needs | None:
    """The trained groups, embedded to find negatives, and their arrays."""
    groups = trained(config, "matching")
    return Needs(embed=groups, batches=True) if groups else None

  def measure(self, job: Job) -> list[Result]:
    """Two accuracies of each group."""
    results = []
    for context in trained(job.config, "matching"):
      results += _accuracies(job, context)
    return results


def _accuracies(job: Job, letters: str) -> list[Result]:
  """Those of one group.

  Raises:
    ValueError: if all items share one text.
  """
  queries = queries_of(job.config, job.gallery, letters, 1)
  relevant = queries.relevant.T
  if relevant.all(axis=1).any():
    raise ValueError(
      f"matching/{letters}: an item has every text of the gallery; more "
      "different texts are needed."
    )
  true = relevant.argmax(axis=1)
  rng = np.random.default_rng(job.protocol.seed)
  draw = np.where(relevant, -1.0, rng.random(relevant.shape))
  texts = job.embedder.embed_texts(queries.texts, queries.kind)
  similar = job.gallery.embeddings[letters][queries.items] @ texts.T
  choices = {
    "true": true,
    "random": draw.argmax(axis=1),
    "mined": np.where(relevant, -np.inf, similar).argmax(axis=1),
  }
  pairs = np.concatenate(
    [np.stack([c, queries.items], axis=1) for c in choices.values()]
  )
  scores = job.embedder.match(
    job.gallery, letters, queries.texts, queries.kind, pairs
  )
  says = dict(zip(choices, np.split(scores > 0.5, len(choices)), strict=True))
  return [
    job.protocol.result(
      f"matching/{letters}/{name}",
      # One value per item: the mean over its true and its false text.
      (says["true"].astype(np.float64) + ~says[other]) / 2,
      total=job.gallery.count(),
      prompts=queries.texts,
      baseline=0.5,
    )
    for name, other in (("accuracy", "random"), ("mined accuracy", "mined"))
  ]
