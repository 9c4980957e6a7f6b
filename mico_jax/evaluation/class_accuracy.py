"""Accuracy over classes, and where they differ in size also its mean over them.

A set whose classes have unequal numbers of samples is won by knowing the large
ones; the mean over classes (balanced accuracy, mean per-class recall) counts
each class the same, as Caltech-101 is reported (Fei-Fei et al., 2004).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Job, Measure
from mico_jax.evaluation.results import Result

ACCURACY, PER_CLASS = "accuracy", "mean per class"
MEASURES = {ACCURACY: Measure(), PER_CLASS: Measure(headline=False)}


def class_results(
  job: Job,
  name: str,
  predicted: Sequence[Any],
  targets: Sequence[Any],
  *,
  classes: int,
  gallery: int,
  prompts: Sequence[str] = (),
) -> list[Result]:
  """The results of predicted classes.

  Args:
    job: the evaluation.
    name: of the results before the measure, "<title>/<letters>".
    predicted: class of each measured item; one that is no class, as None or a
      negative number, is right for none.
    targets: its true class.
    classes: how many are chosen from; the mean over them counts those that an
      item has, so its n is theirs.
    gallery: see `Result`.
    prompts: see `Result`.
  """
  right = metrics.accuracy(predicted, targets)
  results = [
    job.protocol.result(
      f"{name}/{ACCURACY}",
      right,
      total=job.gallery.count(),
      prompts=prompts,
      gallery=gallery,
      baseline=1 / classes,
    )
  ]
  sizes = Counter(targets)
  if len(set(sizes.values())) > 1:
    results.append(
      job.protocol.result(
        f"{name}/{PER_CLASS}",
        metrics.class_means(right, targets),
        total=classes,
        prompts=prompts,
        gallery=gallery,
        baseline=1 / classes,
      )
    )
  return results
