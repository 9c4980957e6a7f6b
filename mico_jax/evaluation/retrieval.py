"""Retrieval between texts and items, between items by class, and matching.

Queries are the distinct texts of the gallery; an item is relevant to a text if
that text is one of its own. So items that share a caption are all right
answers, and several captions per item are several queries; in the other
direction the best-placed own caption counts.

Re-ranking follows the released protocol: for each query the `top` best
candidates by similarity get P(match) of the matching head as their score, all
others 0.

Source: MiCo, arXiv:2406.09412; VAST, arXiv:2305.18500.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mico_jax.evaluation import metrics
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.evaluation.report import Protocol, Result

RECALLS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Queries:
  """The texts of a gallery and which items they describe.

  Attributes:
    texts: distinct, in order of first appearance.
    relevant: whether a text is one of the item's own.
    items: indices of the items in their gallery, one per column.
    kind: caption kind.
  """

  texts: list[str]
  relevant: Bool[np.ndarray, "Q G"]
  items: Int[np.ndarray, " G"]
  kind: str


def make_queries(
  texts: Sequence[Sequence[str]], items: Int[np.ndarray, " G"], kind: str
) -> Queries:
  """Collects the distinct texts of items.

  Args:
    texts: those of each item, in the order of `items`; one or more each.
    items: indices of the items in their gallery.
    kind: caption kind.
  """
  index: dict[str, int] = {}
  for own in texts:
    for text in own:
      index.setdefault(text, len(index))
  relevant = np.zeros((len(index), len(items)), bool)
  for column, own in enumerate(texts):
    relevant[[index[text] for text in own], column] = True
  return Queries(list(index), relevant, np.asarray(items), kind)


def rerank(
  scores: Float[np.ndarray, "Q G"],
  top: int,
  match: Callable[[Int[np.ndarray, "P 2"]], Float[np.ndarray, " P"]],
) -> Float[np.ndarray, "Q G"]:
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
  scores: Float[np.ndarray, "Q G"],
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


def text_retrieval(
  embedder: Embedder,
  gallery: Gallery,
  queries: Queries,
  letters: str,
  protocol: Protocol,
  *,
  top: int = 0,
  ceiling: float | None = None,
) -> list[Result]:
  """Text to item and item to text for one set of letters.

  Args:
    embedder: embeds the texts, and matches where asked.
    gallery: the items.
    queries: their texts, over items that have all letters.
    letters: of the context, e.g. "va".
    protocol: makes the results.
    top: candidates re-ranked with the matching head; 0: none.
    ceiling: of text to item R@1.
  """
  texts = embedder.embed_texts(queries.texts, queries.kind)
  items = gallery.embeddings[letters][queries.items]
  scores = (texts @ items.T).astype(np.float64)
  # Items that could not be used take their texts with them.
  total = len(gallery.records)
  lost = total - len(queries.items)
  results = []
  rounds: list[tuple[str, Any, Any]] = [("", scores, scores.T)]
  if top:

    def match(pairs: Int[np.ndarray, "P 2"]) -> Float[np.ndarray, " P"]:
      pairs = np.stack([pairs[:, 0], queries.items[pairs[:, 1]]], axis=1)
      return embedder.match(
        gallery, letters, queries.texts, queries.kind, pairs
      )

    rounds.append(
      (
        f" (re-ranked {top})",
        rerank(scores, top, match),
        rerank(scores.T, top, lambda pairs: match(pairs[:, ::-1])),
      )
    )
  for suffix, forward, backward in rounds:
    results += recall_results(
      protocol,
      f"retrieval/t->{letters}{suffix}",
      forward,
      queries.relevant,
      total=len(queries.texts) + lost,
      prompts=queries.texts,
      ceiling=ceiling,
    )
    results += recall_results(
      protocol,
      f"retrieval/{letters}->t{suffix}",
      backward,
      queries.relevant.T,
      total=total,
      prompts=queries.texts,
    )
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


def class_retrieval(
  gallery: Gallery,
  pair: str,
  labels: Sequence[Any],
  protocol: Protocol,
) -> list[Result]:
  """Item to item retrieval, right when the labels agree: class R@1 and mAP.

  Args:
    gallery: the items.
    pair: query and candidate letters, e.g. "a:i".
    labels: of each item of the gallery; None: unknown, left out.
    protocol: makes the results.

  Raises:
    ValueError: if `pair` is not of that form.
  """
  query, candidate = check_pair(pair)
  known = {i for i, label in enumerate(labels) if label is not None}
  rows = [i for i in gallery.usable(query) if i in known]
  columns = [i for i in gallery.usable(candidate) if i in known]
  values: Mapping[Any, int] = {
    label: i for i, label in enumerate(dict.fromkeys(labels))
  }
  row_labels = np.asarray([values[labels[i]] for i in rows], int)
  column_labels = np.asarray([values[labels[i]] for i in columns], int)
  relevant = row_labels[:, None] == column_labels[None, :]
  kept = relevant.any(axis=1)
  rows, relevant = np.asarray(rows, int)[kept], relevant[kept]
  scores = (
    gallery.embeddings[query][rows]
    @ gallery.embeddings[candidate][np.asarray(columns, int)].T
  ).astype(np.float64)
  name, total = f"class/{query}->{candidate}", len(gallery.records)
  ranks = metrics.ranks(scores, relevant)
  common: Any = {"total": total, "gallery": len(columns)}
  return [
    protocol.result(
      f"{name}/R@1",
      metrics.recall_at(ranks, 1),
      baseline=float(relevant.mean()),
      **common,
    ),
    protocol.result(
      f"{name}/mAP", metrics.average_precision(scores, relevant), **common
    ),
  ]


def class_text_retrieval(
  embedder: Embedder,
  gallery: Gallery,
  queries: Queries,
  letters: str,
  labels: Sequence[Any],
  protocol: Protocol,
) -> list[Result]:
  """Item to text, right when the text is of an item with the same label.

  Args:
    embedder: embeds the texts.
    gallery: the items.
    queries: their texts.
    letters: of the items, e.g. "a".
    labels: of each item of the gallery; None: unknown, left out.
    protocol: makes the results.

  Raises:
    ValueError: if no item has a label.
  """
  own = [labels[i] for i in queries.items]
  meant = [
    {own[i] for i in np.flatnonzero(row) if own[i] is not None}
    for row in queries.relevant
  ]
  rows = [i for i, label in enumerate(own) if label is not None]
  relevant = np.asarray(
    [[own[i] in text for text in meant] for i in rows], bool
  )
  texts = embedder.embed_texts(queries.texts, queries.kind)
  items = gallery.embeddings[letters][queries.items[rows]]
  scores = (items @ texts.T).astype(np.float64)
  return [
    protocol.result(
      f"class/{letters}->t/R@1",
      metrics.recall_at(metrics.ranks(scores, relevant), 1),
      total=len(gallery.records),
      prompts=queries.texts,
      gallery=len(queries.texts),
      baseline=float(relevant.mean()),
    )
  ]


def matching_accuracy(
  embedder: Embedder,
  gallery: Gallery,
  queries: Queries,
  letters: str,
  protocol: Protocol,
) -> list[Result]:
  """How often P(match) > 0.5 is right, on as many true as false texts.

  The false text is that of a random other item, drawn from the protocol's
  seed; beside it, the other text most similar to the item (a mined negative).

  Args:
    embedder: matches.
    gallery: the items, made with `keep_batches`.
    queries: their texts.
    letters: of the context.
    protocol: makes the results.

  Raises:
    ValueError: if all items share one text.
  """
  relevant = queries.relevant.T
  if relevant.all(axis=1).any():
    raise ValueError(
      f"matching/{letters}: an item has every text of the gallery; more "
      "different texts are needed."
    )
  true = relevant.argmax(axis=1)
  rng = np.random.default_rng(protocol.seed)
  draw = np.where(relevant, -1.0, rng.random(relevant.shape))
  texts = embedder.embed_texts(queries.texts, queries.kind)
  similar = gallery.embeddings[letters][queries.items] @ texts.T
  choices = {
    "true": true,
    "random": draw.argmax(axis=1),
    "mined": np.where(relevant, -np.inf, similar).argmax(axis=1),
  }
  pairs = np.concatenate(
    [np.stack([c, queries.items], axis=1) for c in choices.values()]
  )
  scores = embedder.match(gallery, letters, queries.texts, queries.kind, pairs)
  says = dict(zip(choices, np.split(scores > 0.5, len(choices)), strict=True))
  total = len(gallery.records)
  return [
    protocol.result(
      f"matching/{letters}/{name}",
      # One value per item: the mean over its true and its false text.
      (says["true"].astype(np.float64) + ~says[other]) / 2,
      total=total,
      prompts=queries.texts,
      baseline=0.5,
    )
    for name, other in (("accuracy", "random"), ("mined accuracy", "mined"))
  ]
