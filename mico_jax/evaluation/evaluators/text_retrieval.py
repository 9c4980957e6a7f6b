"""Retrieval between texts and items.

Queries are the distinct texts of the gallery; an item is relevant to a text if
that text is one of its captions. Items that share a caption are therefore all
right answers, and several captions per item are several queries; from items to
texts the best-ranked caption of the item counts.

Re-ranking follows the official protocol: for each query the `top` best
candidates by similarity get P(match) of the matching head as their score, all
others 0.

Source: MiCo, arXiv:2406.09412; VAST, arXiv:2305.18500.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from mico_jax.config import Config
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.examples import Entry, Examples
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.queries import Queries, evaluated_groups, queries_of
from mico_jax.evaluation.results import Protocol, Result
from mico_jax.world import shown_facts
from mico_jax.world.ceiling import facts_key

RECALLS = (1, 5, 10)
Scores = Float[np.ndarray, "Q G"]


@dataclasses.dataclass(frozen=True)
class TextRetrieval(Evaluator):
  """Text to item and item to text for each of `evaluation.groups`.

  With `evaluation.rerank` also in the order of the matching head.
  """

  name: ClassVar = "text_retrieval"
  title: ClassVar = "retrieval"
  measures: ClassVar = {f"R@{k}": Measure(headline=k == 1) for k in RECALLS}
  cheap: ClassVar = True

  def needs(self, config: Config) -> Needs | None:
    """The groups, and their arrays where they are re-ranked."""
    groups = evaluated_groups(config)
    batches = bool(config.evaluation.rerank)
    return Needs(embed=groups, batches=batches) if groups else None

  def measure(self, job: Job) -> list[Result]:
    """R@1, R@5 and R@10, both ways."""
    results = []
    for context in evaluated_groups(job.config):
      queries = queries_of(
        job.config,
        job.gallery,
        context,
        job.config.evaluation.texts_per_item,
      )
      results += _results(job, queries, context)
    return results


def _results(job: Job, queries: Queries, letters: str) -> list[Result]:
  """All results of one set of context letters."""
  # Items that could not be used take their texts with them.
  total = len(job.gallery.records)
  lost = total - len(queries.items)
  ceiling = world_ceiling(job.gallery, queries, letters)
  results = []
  for suffix, forward, backward in _score_matrices(job, queries, letters):
    results += recall_results(
      job.protocol,
      f"retrieval/t->{letters}{suffix}",
      forward,
      queries.relevant,
      total=len(queries.texts) + lost,
      prompts=queries.texts,
      ceiling=ceiling,
    )
    results += recall_results(
      job.protocol,
      f"retrieval/{letters}->t{suffix}",
      backward,
      queries.relevant.T,
      total=total,
      prompts=queries.texts,
    )
    if job.examples is not None:
      _keep_examples(job.examples, queries, letters, suffix, forward, backward)
  return results


def _keep_examples(
  examples: Examples,
  queries: Queries,
  letters: str,
  suffix: str,
  forward: Scores,
  backward: Scores,
) -> None:
  """Single queries of both ways."""
  text = lambda i: Entry(text=queries.texts[i])
  item = lambda i: Entry(item=int(queries.items[i]))
  for name, scores, relevant, query, answer in (
    (f"t->{letters}", forward, queries.relevant, text, item),
    (f"{letters}->t", backward, queries.relevant.T, item, text),
  ):
    examples.add_ranking(
      f"retrieval/{name}{suffix}",
      letters,
      metrics.ranks(scores, relevant),
      lambda row, scores=scores, right=relevant: (scores[row], right[row]),
      query,
      answer,
    )


def _score_matrices(
  job: Job, queries: Queries, letters: str
) -> Iterator[tuple[str, Scores, Scores]]:
  """Suffix of the name, and scores of text to item and of item to text."""
  embedder, gallery = job.embedder, job.gallery
  texts = embedder.embed_texts(queries.texts, queries.kind)
  items = gallery.embeddings[letters][queries.items]
  scores = (texts @ items.T).astype(np.float64)
  yield "", scores, scores.T
  top = 0 if job.cheap else job.config.evaluation.rerank
  if not top:
    return

  def match(pairs: Int[np.ndarray, "P 2"]) -> Float[np.ndarray, " P"]:
    pairs = np.stack([pairs[:, 0], queries.items[pairs[:, 1]]], axis=1)
    return embedder.match(gallery, letters, queries.texts, queries.kind, pairs)

  yield (
    f" (re-ranked {top})",
    rerank(scores, top, match),
    rerank(scores.T, top, lambda pairs: match(pairs[:, ::-1])),
  )


def rerank(
  scores: Scores,
  top: int,
  match: Callable[[Int[np.ndarray, "P 2"]], Float[np.ndarray, " P"]],
) -> Scores:
  """Replaces the `top` best scores of each query, sets all others to 0.

  Args:
    scores: similarities; ties go to the earlier candidate.
    top: candidates kept per query; more than there are: all.
    match: P(match) of pairs (query, candidate).

  Raises:
    ValueError: if `top` is not positive.
  """
  if top < 1:
    raise ValueError(f"{top=} candidates cannot be re-ranked; use 1 or more.")
  top = min(top, scores.shape[1])
  best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
  queries = np.repeat(np.arange(len(scores)), top)
  pairs = np.stack([queries, best.reshape(-1)], axis=1)
  out = np.zeros(scores.shape, np.float64)
  out[pairs[:, 0], pairs[:, 1]] = match(pairs)
  return out


def recall_results(
  protocol: Protocol,
  name: str,
  scores: Scores,
  relevant: Bool[np.ndarray, "Q G"],
  *,
  total: int,
  prompts: Sequence[str] = (),
  ceiling: float | None = None,
) -> list[Result]:
  """R@1, R@5 and R@10 of a score matrix.

  Args:
    protocol: makes the results.
    name: without the "/R@k".
    scores: higher is better.
    relevant: right answers.
    total: queries that the protocol asks for.
    prompts: texts shown to the model.
    ceiling: of R@1.
  """
  ranks = metrics.ranks(scores, relevant)
  candidates = scores.shape[1]
  chance = float(relevant.mean())
  return [
    protocol.result(
      f"{name}/R@{k}",
      metrics.recall_at(ranks, k),
      total=total,
      prompts=prompts,
      gallery=candidates,
      ceiling=ceiling if k == 1 else None,
      baseline=chance if k == 1 else None,
    )
    for k in RECALLS
    if k == 1 or k < candidates
  ]


def world_ceiling(
  gallery: Gallery, queries: Queries, context: str
) -> float | None:
  """Best expected text to item R@1 from the scene graphs; None: no scenes.

  A text fits every item that agrees in the facts that it states and the
  modalities show, and a perfect model picks one of them at random.
  """
  scenes = []
  for item in queries.items:
    record = gallery.records[item]
    scene = None if record is None else record.fields.get("scene")
    if scene is None:
      return None
    scenes.append(scene)
  names = shown_facts(context, queries.kind)
  keys = [facts_key(scene, names) for scene in scenes]
  shares = []
  for row in queries.relevant:
    fitting = {keys[i] for i in np.flatnonzero(row)}
    shares.append(row.sum() / sum(key in fitting for key in keys))
  return float(np.mean(shares))
