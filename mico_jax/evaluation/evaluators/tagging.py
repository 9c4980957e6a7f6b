"""Multi-label classification by the similarity of class prompts.

Every class ranks all items with a list of labels by the similarity of its
prompts; its average precision counts the items that have it. The mean over the
classes that at least one scored item has is the macro mAP, as for AudioSet.
Ties count against the items that have the class. The interval resamples items,
as the classes are no sample of others.

Source: ImageBind, arXiv:2305.05665, section 4.1, for prompts on AudioSet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from mico_jax.config import Config, ConfigError
from mico_jax.data.identity import tell
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.evaluators.zero_shot import check_options
from mico_jax.evaluation.examples import Entry, Examples
from mico_jax.evaluation.queries import evaluated_groups
from mico_jax.evaluation.results import Result
from mico_jax.inference.zero_shot import class_embeddings


@dataclasses.dataclass(frozen=True)
class Tagging(Evaluator):
  """Mean average precision of classes of which an item may have several.

  For each of `evaluation.groups`; the classes of an item are the texts in its
  field `labels`. The value is a mean over classes, so n counts classes.
  """

  # names of the classes; (): nothing is measured
  names: tuple[str, ...] = ()
  # the labels that mean them; (): the names
  labels: tuple[str, ...] = ()
  # prompts, with {} for the name
  templates: tuple[str, ...] = ("{}",)
  name: ClassVar = "tagging"
  title: ClassVar = "tagging"
  measures: ClassVar = {"mAP": Measure()}

  def check(self, config: Config) -> None:
    """The options fit each other."""
    check_options("tagging", self.names, self.labels, self.templates)

  def needs(self, config: Config) -> Needs | None:
    """The groups, if there are classes."""
    groups = evaluated_groups(config)
    return Needs(embed=groups) if groups and self.names else None

  def measure(self, job: Job) -> list[Result]:
    """MAP of each group."""
    embedder = job.embedder
    weights, prompts = class_embeddings(
      *(embedder.embed_texts, embedder.tokenizer, self.names, self.templates)
    )
    number = {x: i for i, x in enumerate(self.labels or self.names)}
    results = []
    for context in evaluated_groups(job.config):
      items, relevant, unknown = [], [], []
      for i in job.gallery.usable(context):
        record = job.gallery.records[i]
        found = _labels(record.fields) if record is not None else None
        if found is None:
          continue
        row = np.zeros(len(self.names), bool)
        row[[number[x] for x in found if x in number]] = True
        unknown += [x for x in found if x not in number]
        items.append(int(i))
        relevant.append(row)
      if not np.any(relevant):
        raise ConfigError(
          "tagging: no sample that was read has one of the "
          f"{len(self.names)} classes in its field `labels`."
        )
      right = np.stack(relevant).T
      used = right.any(axis=1)
      scores = job.gallery.embeddings[context][items] @ weights[used].T
      scores = scores.T.astype(np.float64)
      if unknown:
        shown = ", ".join(map(repr, sorted(set(unknown))[:3]))
        tell(
          f"{self.title}/{context}: {len(unknown)} labels are none of the "
          f"{len(self.names)} classes ({shown}); they are not asked for."
        )
      if job.examples is not None:
        names = [self.names[i] for i in np.flatnonzero(used)]
        _keep_examples(job.examples, context, names, items, scores, right[used])
      result = job.protocol.result(
        f"{self.title}/{context}/mAP",
        metrics.average_precision(scores, right[used]),
        total=len(self.names),
        prompts=prompts,
        gallery=len(items),
        baseline=float(right[used].mean()),
      )
      interval = None
      if job.protocol.bootstrap:
        interval = map_interval(
          scores,
          right[used],
          num=job.protocol.bootstrap,
          seed=job.protocol.seed,
        )
      results.append(dataclasses.replace(result, interval=interval))
    return results


def _labels(fields: Any) -> list[str] | None:
  """The labels of an item; None: it has no list of them."""
  labels = fields.get("labels")
  is_list = isinstance(labels, (list, tuple))
  return [str(x) for x in labels] if is_list else None


def _keep_examples(
  examples: Examples,
  letters: str,
  names: Sequence[str],
  items: Sequence[int],
  scores: Float[np.ndarray, "C N"],
  right: Bool[np.ndarray, "C N"],
) -> None:
  """A class is a query, the items are its answers."""
  examples.add_ranking(
    f"tagging/{letters}",
    letters,
    metrics.ranks(scores, right),
    lambda row: (scores[row], right[row]),
    lambda row: Entry(text=names[row]),
    lambda column: Entry(item=items[column]),
  )


_DRAWN = 2 * 10**9  # numbers of all draws; of more, fewer draws are taken


def map_interval(
  scores: Float[np.ndarray, "C N"],
  right: Bool[np.ndarray, "C N"],
  *,
  num: int,
  seed: int,
) -> tuple[float, float]:
  """95% bootstrap interval of mAP over items.

  A draw without any item of a class averages over the others. Where all draws
  are equal, the exact interval of a share of as many items stands.

  Args:
    scores: of each class for each item.
    right: whether the item has the class; one or more items of each.
    num: draws; of large sets as few as 100.
    seed: of the draws.
  """
  count = scores.shape[1]
  num = min(num, max(100, _DRAWN // scores.size))
  drawn = np.random.default_rng(seed).multinomial(
    count, np.full(count, 1 / count), size=num
  )
  drawn = drawn.astype(np.float32)
  total, classes = np.zeros(num), np.zeros(num)
  for row, hit in zip(scores, right, strict=True):
    order = np.lexsort((hit, -row))
    places = np.flatnonzero(hit[order])
    weight = drawn[:, order]
    before = np.cumsum(weight, axis=1, dtype=np.float32)[:, places]
    own = weight[:, places]
    hits = np.cumsum(own, axis=1)
    found = hits[:, -1] > 0
    precision = hits / np.maximum(before, 1.0)
    total += (own * precision).sum(axis=1) / np.maximum(hits[:, -1], 1.0)
    classes += found
  means = total[classes > 0] / classes[classes > 0]
  if not len(means) or means.min() == means.max():
    value = float(metrics.average_precision(scores, right).mean())
    return tuple(metrics.exact_interval(value * count, count))
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)
