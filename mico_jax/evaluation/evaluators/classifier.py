"""Classes of samples by the trained heads of the objective `classification`.

Of one class of a sample the accuracy is measured; a score that several classes
share is right for none of them. If there are two classes, the area under the
ROC curve stands beside it, which is the same for either. Of several classes of
a sample the mean average precision over the classes that at least one sample
has, as in `tagging`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.config import Config
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.heads import (
  head_needs,
  head_of,
  predicted,
  trained_groups,
)
from mico_jax.evaluation.results import Result

OBJECTIVE = "classification"
_TOP = 5


@dataclasses.dataclass(frozen=True)
class Classifier(Evaluator):
  """Accuracy and ROC AUC, or mAP, of the heads that `classification` trains.

  For each of its groups; samples without a label, or of a class that the head
  does not know, are left out and counted.
  """

  name: ClassVar = "classifier"
  title: ClassVar = "classifier"
  measures: ClassVar = {
    "accuracy": Measure(),
    "ROC AUC": Measure(),
    "top-5": Measure(headline=False),
    "mAP": Measure(),
  }
  cheap: ClassVar = True

  def needs(self, config: Config) -> Needs | None:
    """Pooled features of the groups."""
    return head_needs(config, OBJECTIVE)

  def measure(self, job: Job) -> list[Result]:
    """Accuracy and top-5, or mAP, of each group."""
    head = head_of(job, OBJECTIVE)
    results = []
    for group in trained_groups(job.config, OBJECTIVE):
      logits, labels, _ = predicted(job, head, group)
      one = head.target(group).kind == "class"
      results += (self._one if one else self._several)(
        job, group, logits, labels
      )
    return results

  def _one(
    self,
    job: Job,
    group: str,
    logits: Float[np.ndarray, "N K"],
    labels: Shaped[np.ndarray, "N 1"],
  ) -> list[Result]:
    """Accuracy; of two classes ROC AUC, of more than five those of the best."""
    count = logits.shape[1]
    own = np.arange(count) == labels
    ranks = metrics.ranks(logits, own)
    results = [
      job.protocol.result(
        f"{self.title}/{group}/{name}",
        metrics.recall_at(ranks, k),
        total=job.gallery.count(),
        gallery=count,
        baseline=k / count,
      )
      for name, k in (("accuracy", 1), (f"top-{_TOP}", _TOP))
      if k == 1 or count > _TOP
    ]
    if count == 2 and own.any(axis=0).all():
      odds = logits[:, 1] - logits[:, 0]
      area, interval = metrics.roc_auc(odds, own[:, 1])
      results.append(
        dataclasses.replace(
          results[0],
          name=f"{self.title}/{group}/ROC AUC",
          value=area,
          interval=tuple(interval) if job.protocol.bootstrap else None,
          baseline=0.5,
          values=None,  # it is no mean over items
        )
      )
    return results

  def _several(
    self,
    job: Job,
    group: str,
    logits: Float[np.ndarray, "N K"],
    labels: Shaped[np.ndarray, "N K"],
  ) -> list[Result]:
    """The mean over classes, so n counts classes."""
    right = labels.T > 0
    used = right.any(axis=1)
    return [
      job.protocol.result(
        f"{self.title}/{group}/mAP",
        metrics.average_precision(
          logits.T[used].astype(np.float64), right[used]
        ),
        total=labels.shape[1],
        gallery=len(logits),
        baseline=float(right[used].mean()),
      )
    ]
