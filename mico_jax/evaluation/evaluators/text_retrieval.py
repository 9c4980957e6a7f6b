"""Retrieval between texts and items.

Queries are the distinct texts of the gallery; an item is relevant to a text if
that text is one of its captions. Items that share a caption are therefore all
right answers, and several captions per item are several queries; from items to
texts the best-ranked caption of the item counts. An item that could not be used
takes its captions with it: as many as most of the items have. Intervals
resample items with all their captions.

Re-ranking follows the official protocol: for each query the `top` best
candidates by similarity get P(match) of the matching head as their score, all
others 0. With `evaluation.rerank_by="both"` their similarity counts, too.

Source: MiCo, arXiv:2406.09412; VAST, arXiv:2305.18500.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int, Shaped

from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Path
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.evaluators.zero_shot import read_lines
from mico_jax.evaluation.examples import Entry, Examples
from mico_jax.evaluation.features import Gallery, joint_scores
from mico_jax.evaluation.queries import (
  Queries,
  among,
  evaluated_groups,
  queries_of,
  scenes_of,
)
from mico_jax.evaluation.results import Protocol, Result
from mico_jax.evaluation.streamed_ranks import answers_from, streamed_ranks
from mico_jax.world import shown_facts
from mico_jax.world.ceiling import facts_key

RECALLS = (1, 5, 10)
_FIXED = " (fixed texts)"  # behind the letters, where a file gives the texts
Scores = Float[np.ndarray, "Q G"]
Ranks = Int[np.ndarray, " Q"]


@dataclasses.dataclass(frozen=True)
class Ranking:
  """The candidates of all queries in one direction.

  Attributes:
    ranks: of the best right answer of each query, from 1.
    scores_of: computes the scores of a query's candidates.
  """

  ranks: Ranks
  scores_of: Callable[[int], Float[np.ndarray, " G"]]


@dataclasses.dataclass(frozen=True)
class TextRetrieval(Evaluator):
  """Text to item and item to text for each of `evaluation.groups`.

  With `evaluation.rerank` also in the order of the matching head.
  """

  # file with a text per line to retrieve from, instead of the captions; a line
  # is right for the items of which it is a caption, and items without one are
  # left out and counted; "": the captions
  texts: Path = ""
  # every caption of every item is a query, answered by its own item alone, as
  # the official protocols count; False: equal captions are one query, answered
  # by each item that has it
  each_text: bool = False
  name: ClassVar = "text_retrieval"
  title: ClassVar = "retrieval"
  measures: ClassVar = {f"R@{k}": Measure(headline=k == 1) for k in RECALLS}
  cheap: ClassVar = True

  def check(self, config: Config) -> None:
    """The file can be read."""
    del config
    if self.texts and self.each_text:
      raise ConfigError(
        f"evaluation.options.{self.name}: give `texts` or `each_text`, as the "
        "lines of a file belong to no single item."
      )
    if self.texts:
      read_lines(self.texts, f"evaluation.options.{self.name}.texts")

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
        each=self.each_text,
      )
      mark = ""
      if self.texts:
        queries, mark = among(queries, read_lines(self.texts, "texts")), _FIXED
      results += _results(job, queries, context, mark)
    return results


def _results(
  job: Job, queries: Queries, letters: str, mark: str = ""
) -> list[Result]:
  """All results of one set of context letters."""
  total = job.gallery.count()
  lost = (total - len(queries.items)) * usual_count(queries)
  ceiling = world_ceiling(job.gallery, queries, letters)
  results = []
  texts, items = (queries.asked(of_texts=x) for x in (True, False))
  pairs = len(queries.pairs)
  for suffix, forward, backward in _all_ranks(job, queries, letters):
    results += recall_results(
      job.protocol,
      f"retrieval/t->{letters}{mark}{suffix}",
      forward.ranks,
      candidates=len(queries.items),
      chance=pairs / (len(texts) * len(queries.items)),
      total=len(texts) + lost,
      items=queries.items[queries.first(of_texts=True)],
      prompts=queries.texts,
      ceiling=ceiling,
    )
    results += recall_results(
      job.protocol,
      f"retrieval/{letters}->t{mark}{suffix}",
      backward.ranks,
      candidates=len(queries.texts),
      chance=pairs / (len(items) * len(queries.texts)),
      total=total,
      prompts=queries.texts,
    )
    if job.examples is not None:
      _keep_examples(
        job.examples, queries, letters, mark + suffix, forward, backward
      )
  return results


def _keep_examples(
  examples: Examples,
  queries: Queries,
  letters: str,
  suffix: str,
  forward: Ranking,
  backward: Ranking,
) -> None:
  """Single queries of both directions."""
  text = lambda i: Entry(text=queries.texts[i])
  item = lambda i: Entry(item=int(queries.items[i]))
  texts, items = len(queries.texts), len(queries.items)
  asked = [queries.asked(of_texts=x) for x in (True, False)]
  for name, found, right, rows, count, query, answer in (
    (f"t->{letters}", forward, queries.items_of, asked[0], items, text, item),
    (f"{letters}->t", backward, queries.texts_of, asked[1], texts, item, text),
  ):
    examples.add_ranking(
      f"retrieval/{name}{suffix}",
      letters,
      found.ranks,
      lambda row, found=found, right=right, rows=rows, count=count: (
        found.scores_of(row),
        np.isin(np.arange(count), right(int(rows[row]))),
      ),
      lambda row, query=query, rows=rows: query(rows[row]),
      answer,
    )


def _all_ranks(
  job: Job, queries: Queries, letters: str
) -> Iterator[tuple[str, Ranking, Ranking]]:
  """Suffix of the name, from text to item and from item to text."""
  embedder, gallery = job.embedder, job.gallery
  texts = embedder.embed_texts(queries.texts, queries.kind)
  items = gallery.embeddings[letters][queries.items]
  t, i = (queries.asked(of_texts=x) for x in (True, False))
  of_texts = answers_from(queries.pairs, len(texts))
  of_items = answers_from(queries.pairs[:, ::-1], len(items))
  yield (
    "",
    Ranking(
      streamed_ranks(_part(texts, t), items, _part(of_texts, t)),
      lambda row: (items @ texts[t[row]]).astype(np.float64),
    ),
    Ranking(
      streamed_ranks(_part(items, i), texts, _part(of_items, i)),
      lambda row: (texts @ items[i[row]]).astype(np.float64),
    ),
  )
  top = 0 if job.cheap else job.config.evaluation.rerank
  if not top:
    return

  def match(pairs: Int[np.ndarray, "P 2"]) -> Float[np.ndarray, " P"]:
    pairs = np.stack([pairs[:, 0], queries.items[pairs[:, 1]]], axis=1)
    return embedder.match(gallery, letters, queries.texts, queries.kind, pairs)

  relevant = queries.relevant
  scores = (texts @ items.T).astype(np.float64)
  both = job.config.evaluation.rerank_by == "both"
  options = {"temperature": embedder.temperature(letters)} if both else {}
  of_text = lambda pairs: match(np.stack([t[pairs[:, 0]], pairs[:, 1]], axis=1))
  of_item = lambda pairs: match(np.stack([pairs[:, 1], i[pairs[:, 0]]], axis=1))
  forward = rerank(scores[t], top, of_text, **options)
  backward = rerank(scores.T[i], top, of_item, **options)
  yield (
    f" (re-ranked {top}{', both' * both})",
    Ranking(metrics.ranks(forward, relevant[t]), lambda row: forward[row]),
    Ranking(metrics.ranks(backward, relevant.T[i]), lambda row: backward[row]),
  )


def _part(
  rows: Shaped[np.ndarray, "N ..."], chosen: Int[np.ndarray, " M"]
) -> Shaped[np.ndarray, "M ..."]:
  """Some rows in their order; all of them are not copied."""
  return rows if len(chosen) == len(rows) else rows[chosen]


def rerank(
  scores: Scores,
  top: int,
  match: Callable[[Int[np.ndarray, "P 2"]], Float[np.ndarray, " P"]],
  *,
  temperature: float = 0.0,
) -> Scores:
  """Replaces the `top` best scores of each query; all others come last.

  Args:
    scores: similarities; ties go to the earlier candidate.
    top: candidates kept per query; more than there are: all.
    match: P(match) of pairs (query, candidate).
    temperature: > 0: new scores are `joint_scores`; 0: P(match), others 0.

  Raises:
    ValueError: if `top` is not positive.
  """
  if top < 1:
    raise ValueError(f"{top=} candidates cannot be re-ranked; use 1 or more.")
  top = min(top, scores.shape[1])
  best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
  queries = np.repeat(np.arange(len(scores)), top)
  pairs = np.stack([queries, best.reshape(-1)], axis=1)
  at, found = (pairs[:, 0], pairs[:, 1]), match(pairs)
  if temperature:
    found = joint_scores(found, scores[at], temperature)
  last = found.min() - 1 if temperature and found.size else 0.0
  out = np.full(scores.shape, last, np.float64)
  out[at] = found
  return out


def usual_count(queries: Queries) -> int:
  """Texts that most items have; of equally frequent numbers the larger."""
  texts = np.bincount(queries.pairs[:, 1], minlength=len(queries.items))
  numbers, items = np.unique(texts, return_counts=True)
  return int(numbers[items == items.max()].max())


def recall_results(
  protocol: Protocol,
  name: str,
  ranks: Ranks,
  *,
  candidates: int,
  chance: float,
  total: int,
  items: Int[np.ndarray, " Q"] | None = None,
  prompts: Sequence[str] = (),
  ceiling: float | None = None,
) -> list[Result]:
  """R@1, R@5 and R@10.

  Args:
    protocol: makes the results.
    name: without the "/R@k".
    ranks: of the best right answer of each query, from 1.
    candidates: of each query.
    chance: share of right answers among them.
    total: queries that the protocol asks for.
    items: which item each query is of; None: each is of its own.
    prompts: texts shown to the model.
    ceiling: of R@1.
  """
  return [
    protocol.result(
      f"{name}/R@{k}",
      metrics.recall_at(ranks, k),
      total=total,
      items=items,
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
  scenes = scenes_of(gallery, queries.items)
  if scenes is None:
    return None
  names = shown_facts(context, queries.kind)
  keys = [facts_key(scene, names) for scene in scenes]
  shares = []
  for row in queries.asked(of_texts=True).tolist():
    own = queries.items_of(row)
    fitting = {keys[i] for i in own}
    shares.append(len(own) / sum(key in fitting for key in keys))
  return float(np.mean(shares))
