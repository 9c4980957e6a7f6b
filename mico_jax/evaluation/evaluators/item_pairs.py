"""Retrieval between items, or from items to texts, right by their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import Config, ConfigError
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.queries import labels_of, queries_of
from mico_jax.evaluation.results import Protocol, Result
from mico_jax.modalities import by_letter


@dataclasses.dataclass(frozen=True)
class ItemPairs(Evaluator):
  """Retrieval for `evaluation.item_pairs`, right if `evaluation.label` agrees.

  "a:i" is from sounds to images, "a:t" from sounds to the texts of items. An
  item, another one with its id, or one that shows the same, is no candidate for
  its own query where both show a common modality, as in "i:i" and "va:v".
  """

  name: ClassVar = "item_pairs"
  title: ClassVar = "class"
  measures: ClassVar = {"R@1": Measure(), "mAP": Measure()}
  cheap: ClassVar = True

  def check(self, config: Config) -> None:
    """Each pair is of the form "a:i", and a label is named."""
    for pair in config.evaluation.item_pairs:
      try:
        check_pair(pair)
      except ValueError as error:
        raise ConfigError(f"config.evaluation: {error}") from None
    if config.evaluation.item_pairs and not config.evaluation.label:
      raise ConfigError("evaluation.item_pairs needs evaluation.label.")

  def needs(self, config: Config) -> Needs | None:
    """Both sides of each pair but the texts."""
    sides = [s for p in config.evaluation.item_pairs for s in check_pair(p)]
    embed = tuple(dict.fromkeys(s for s in sides if s != "t"))
    return Needs(embed=embed) if embed else None

  def measure(self, job: Job) -> list[Result]:
    """Class R@1, and between items mAP."""
    results = []
    labels = labels_of(job.gallery, job.config.evaluation.label)
    for pair in job.config.evaluation.item_pairs:
      if pair.endswith(":t"):
        results.append(_to_text(job, pair.removesuffix(":t"), labels))
      else:
        results += between_items(job.gallery, pair, labels, job.protocol)
    return results


def check_pair(pair: str) -> tuple[str, str]:
  """Query and candidate letters of an entry of `evaluation.item_pairs`.

  Raises:
    ValueError: if it is not of the form "a:i".
  """
  query, colon, candidate = pair.partition(":")
  if not colon or not query or not candidate:
    raise ValueError(
      f"evaluation.item_pairs has {pair!r}; write query and candidate letters "
      "as in 'a:i'."
    )
  return query, candidate


def between_items(
  gallery: Gallery,
  pair: str,
  labels: Sequence[Any],
  protocol: Protocol,
) -> list[Result]:
  """Item to item retrieval, right when the labels agree: class R@1 and mAP.

  Where both sides show a common modality, an item would find itself; it, and
  others with its id or that show the same to the bit, are then no candidates.

  Args:
    gallery: the items.
    pair: query and candidate letters, e.g. "a:i".
    labels: of each item of the gallery; None: unknown, left out.
    protocol: makes the results.

  Raises:
    ValueError: if `pair` is not of that form.
    ConfigError: if no item has a label and the letters.
  """
  query, candidate = check_pair(pair)
  known = {i for i, label in enumerate(labels) if label is not None}
  rows = [i for i in gallery.usable(query) if i in known]
  columns = [i for i in gallery.usable(candidate) if i in known]
  if not rows or not columns:
    lack = (
      f"no sample with a label has the modalities of {pair!r}"
      if known
      else "no sample has the field that evaluation.label names"
    )
    raise ConfigError(f"evaluation.item_pairs={pair!r}: {lack}.")
  values: Mapping[Any, int] = {
    label: i for i, label in enumerate(dict.fromkeys(labels))
  }
  row_labels = np.asarray([values[labels[i]] for i in rows], int)
  column_labels = np.asarray([values[labels[i]] for i in columns], int)
  allowed = np.ones((len(rows), len(columns)), bool)
  if set(query) & set(candidate):
    ids = np.asarray([r.id if r else "" for r in gallery.records])
    allowed = ids[rows][:, None] != ids[columns][None, :]
    common = [by_letter(x).key for x in sorted(set(query) & set(candidate))]
    shown = [gallery.contents[k] for k in common if k in gallery.contents]
    if shown:
      same = [x[rows][:, None] == x[columns][None, :] for x in shown]
      allowed &= ~np.logical_and.reduce(same)
  relevant = (row_labels[:, None] == column_labels[None, :]) & allowed
  kept = relevant.any(axis=1)
  rows, relevant = np.asarray(rows, int)[kept], relevant[kept]
  allowed = allowed[kept]
  scores = (
    gallery.embeddings[query][rows]
    @ gallery.embeddings[candidate][np.asarray(columns, int)].T
  ).astype(np.float64)
  scores[~allowed] = -np.inf
  name, total = f"class/{query}->{candidate}", gallery.count()
  ranks = metrics.ranks(scores, relevant)
  chances = relevant.sum(axis=1) / np.maximum(allowed.sum(axis=1), 1)
  sizes: Any = {"total": total, "gallery": len(columns)}
  return [
    protocol.result(
      f"{name}/R@1",
      metrics.recall_at(ranks, 1),
      baseline=float(chances.mean()) if len(chances) else None,
      **sizes,
    ),
    protocol.result(
      f"{name}/mAP", metrics.average_precision(scores, relevant), **sizes
    ),
  ]


def _to_text(job: Job, letters: str, labels: Sequence[Any]) -> Result:
  """Item to text, right when the text is of an item with the same label.

  Raises:
    ValueError: if no item has a label.
  """
  queries = queries_of(job.config, job.gallery, letters, 1)
  item_labels = [labels[i] for i in queries.items]
  meant = [
    {item_labels[i] for i in queries.items_of(row)} - {None}
    for row in range(len(queries.texts))
  ]
  rows = [i for i, label in enumerate(item_labels) if label is not None]
  relevant = np.asarray(
    [[item_labels[i] in text for text in meant] for i in rows], bool
  )
  texts = job.embedder.embed_texts(queries.texts, queries.kind)
  items = job.gallery.embeddings[letters][queries.items[rows]]
  scores = (items @ texts.T).astype(np.float64)
  return job.protocol.result(
    f"class/{letters}->t/R@1",
    metrics.recall_at(metrics.ranks(scores, relevant), 1),
    total=job.gallery.count(),
    prompts=queries.texts,
    gallery=len(queries.texts),
    baseline=float(relevant.mean()),
  )
