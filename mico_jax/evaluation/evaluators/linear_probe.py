"""Linear probe on the pooled features of the encoder.

The L2 penalty is that of `penalties` with the best accuracy on a part of the
training samples that is cut off for it; the probe is then fitted on all of
them. The samples that are measured on are never looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mico_jax.config import Config
from mico_jax.config.fields import Items, Range
from mico_jax.data.identity import tell
from mico_jax.evaluation import labelled, metrics
from mico_jax.evaluation.class_accuracy import MEASURES, class_results
from mico_jax.evaluation.evaluator import Evaluator, Job, Needs
from mico_jax.evaluation.linear_probe import fit_probe
from mico_jax.evaluation.queries import evaluated_groups
from mico_jax.evaluation.results import Result


@dataclasses.dataclass(frozen=True)
class LinearProbe(Evaluator):
  """Linear probe on frozen features, trained on `evaluation.probe_source`.

  For each of `evaluation.groups`; classes are the values of
  `evaluation.label`.
  """

  name: ClassVar = "linear_probe"
  title: ClassVar = "linear probe"
  measures: ClassVar = MEASURES

  # L2 penalties to choose from; one: that one
  penalties: Annotated[
    tuple[Annotated[float, Range(0.0, 1e6)], ...], Items(1, 64)
  ] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
  # part of the training samples that they are chosen on
  validation: Annotated[float, Range(0.01, 0.9)] = 0.2

  def check(self, config: Config) -> None:
    """The source exists."""
    labelled.check_source(config)

  def needs(self, config: Config) -> Needs | None:
    """Pooled features of the groups."""
    return labelled.probe_needs(config)

  def measure(self, job: Job) -> list[Result]:
    """Accuracy of each group."""
    groups = evaluated_groups(job.config)
    return [r for group in groups for r in self._accuracy(job, group)]

  def _accuracy(self, job: Job, context: str) -> list[Result]:
    """Accuracy of one group."""
    features, labels, _ = labelled.labelled_training(job, context, self.title)
    classes = sorted(set(labels), key=str)
    number = {label: i for i, label in enumerate(classes)}
    targets = np.asarray([number[x] for x in labels])
    penalty = self._chosen(job, features, targets, len(classes))
    probe = fit_probe(features, targets, len(classes), penalty=penalty)
    test_features, test_labels, _ = labelled.labelled_rows(
      job.gallery, context, job.config.evaluation.label or "label"
    )
    labelled.tell_unseen(f"{self.title}/{context}", test_labels, classes)
    chosen = metrics.predictions(probe.logits(test_features))
    predicted: Sequence[Any] = [classes[i] if i >= 0 else None for i in chosen]
    return class_results(
      job,
      f"{self.title}/{context}",
      predicted,
      test_labels,
      classes=len(classes),
      gallery=len(classes),
    )

  def _chosen(
    self,
    job: Job,
    features: Float[np.ndarray, "N D"],
    targets: Int[np.ndarray, " N"],
    num_classes: int,
  ) -> float:
    """The best penalty on the validation part; of equal ones the largest."""
    if len(self.penalties) == 1:
      return self.penalties[0]
    held = labelled.validation_part(
      targets.tolist(), self.validation, job.protocol.seed
    )
    if held is None:
      middle = sorted(self.penalties)[len(self.penalties) // 2]
      tell(
        "linear probe: a class has a single training sample, so no part can "
        f"be cut off to choose the penalty; it is {middle}."
      )
      return middle
    best = (-1.0, 0.0)
    for penalty in self.penalties:
      probe = fit_probe(
        features[~held], targets[~held], num_classes, penalty=penalty
      )
      right = metrics.predictions(probe.logits(features[held])) == targets[held]
      best = max(best, (float(right.mean()), penalty))
    return best[1]
