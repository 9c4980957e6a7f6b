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
from jaxtyping import Bool, Float, Shaped

from mico_jax.config import Config
from mico_jax.evaluation import metrics
from mico_jax.evaluation.class_accuracy import MEASURES, class_results
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.heads import (
  head_needs,
  head_of,
  predicted,
  trained_groups,
)
from mico_jax.evaluation.results import Protocol, Result

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
    **MEASURES,
    "ROC AUC": Measure(),
    "top-5": Measure(headline=False),
    "mAP": Measure(),
    "F1": Measure(headline=False),  # of the second of two classes
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
      if one and logits.shape[1] == 2:
        results += second_class_f1(
          f"{self.title}/{group}/F1",
          labels[:, 0] == 1,
          logits[:, 1] > logits[:, 0],
          protocol=job.protocol,
          total=job.gallery.count(),
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
    count, name = logits.shape[1], f"{self.title}/{group}"
    own = np.arange(count) == labels
    predicted = metrics.predictions(logits).tolist()
    true = labels[:, 0].tolist()
    results = class_results(
      job, name, predicted, true, classes=count, gallery=count
    )
    if count > _TOP:
      ranks = metrics.ranks(logits, own)
      results.append(
        job.protocol.result(
          f"{name}/top-{_TOP}",
          metrics.recall_at(ranks, _TOP),
          total=job.gallery.count(),
          gallery=count,
          baseline=_TOP / count,
        )
      )
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


def second_class_f1(
  name: str,
  true: Bool[np.ndarray, " N"],
  taken: Bool[np.ndarray, " N"],
  *,
  protocol: Protocol,
  total: int,
) -> list[Result]:
  """F1 of a class; no result where nothing is of it or taken for it.

  It is 2 J / (1 + J), where J is the share that is both, among the samples that
  are of the class or taken for it; so is its interval.

  Args:
    name: of the result.
    true: whether a sample is of the class.
    taken: whether it is taken for one.
    protocol: makes results.
    total: samples that there are.
  """
  either = true | taken
  if not either.any():
    return []
  share = protocol.result(
    name, (true & taken)[either].astype(np.float64), total=total
  )
  f1 = lambda x: 2 * x / (1 + x)
  ends = share.interval
  return [
    dataclasses.replace(
      share,
      value=f1(share.value),
      interval=ends and (f1(ends[0]), f1(ends[1])),
      n=len(true),
      gallery=2,
      baseline=f1(float(true.mean())),  # of taking all for it
      values=None,
    )
  ]
