"""Multi-label classification by the similarity of class prompts.

Every class ranks all items by the similarity of its prompts; its average
precision counts the items that have it. The mean over the classes that at
least one scored item has is the macro mAP, as for AudioSet. Ties count against
the items that have the class.

Source: ImageBind, arXiv:2305.05665, section 4.1, for prompts on AudioSet.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import Config, ConfigError
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.evaluators.zero_shot import check_options
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
      items, relevant = [], []
      for i in job.gallery.usable(context):
        record = job.gallery.records[i]
        found = _labels(record.fields) if record is not None else []
        row = np.zeros(len(self.names), bool)
        row[[number[x] for x in found if x in number]] = True
        if row.any():
          items.append(int(i))
          relevant.append(row)
      if not items:
        raise ConfigError(
          "tagging: no sample that was read has one of the "
          f"{len(self.names)} classes in its field `labels`."
        )
      right = np.stack(relevant).T
      used = right.any(axis=1)
      scores = job.gallery.embeddings[context][items] @ weights[used].T
      results.append(
        job.protocol.result(
          f"{self.title}/{context}/mAP",
          metrics.average_precision(scores.T.astype(np.float64), right[used]),
          total=len(self.names),
          prompts=prompts,
          gallery=len(items),
          baseline=float(right[used].mean()),
        )
      )
    return results


def _labels(fields: Any) -> list[str]:
  labels = fields.get("labels")
  return [str(x) for x in labels] if isinstance(labels, (list, tuple)) else []
