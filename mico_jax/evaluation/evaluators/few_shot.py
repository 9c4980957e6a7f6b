"""Classes from a few samples of each: the nearest class mean.

A class is the mean of the unit-norm features of its samples, made unit-norm;
the class of the highest cosine is predicted, none if several share it. The
samples of a class are drawn several times, and a measured sample counts by the
share of draws in which it is right.

Source: Snell et al., arXiv:1703.05175, section 2.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Items, Range
from mico_jax.data.identity import tell
from mico_jax.evaluation import labelled, metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.evaluators.nearest import unit
from mico_jax.evaluation.queries import evaluated_groups
from mico_jax.evaluation.results import Result


@dataclasses.dataclass(frozen=True)
class FewShot(Evaluator):
  """Accuracy with a few samples per class of `evaluation.probe_source`.

  For each of `evaluation.groups`, by the nearest class mean; classes are the
  values of `evaluation.label`. Numbers of samples that not every class has are
  left out, with a note.
  """

  name: ClassVar = "few_shot"
  title: ClassVar = "few-shot"
  measures: ClassVar = {"accuracy": Measure()}

  # samples of each class
  shots: Annotated[
    tuple[Annotated[int, Range(1, 10**6, "samples")], ...], Items(1, 16)
  ] = (1, 4, 16)
  # draws of them
  draws: Annotated[int, Range(1, 10**4)] = 10

  def check(self, config: Config) -> None:
    """The source exists."""
    labelled.check_source(config)

  def needs(self, config: Config) -> Needs | None:
    """Pooled features of the groups."""
    return labelled.probe_needs(config)

  def measure(self, job: Job) -> list[Result]:
    """Accuracy of each group and number of samples."""
    results = []
    for context in evaluated_groups(job.config):
      results += self._accuracies(job, context)
    return results

  def _accuracies(self, job: Job, context: str) -> list[Result]:
    """Those of one group.

    Raises:
      ConfigError: if no number of samples can be drawn of every class.
    """
    features, labels, _ = labelled.labelled_training(job, context, self.title)
    field = job.config.evaluation.label or "label"
    asked, targets, _ = labelled.labelled_rows(job.gallery, context, field)
    classes = sorted(set(labels), key=str)
    labelled.tell_unseen(f"{self.title}/{context}", targets, classes)
    known, rows = unit(features), unit(asked)
    members = [
      np.asarray([i for i, x in enumerate(labels) if x == name])
      for name in classes
    ]
    least = min(map(len, members))
    shots = [k for k in self.shots if k <= least]
    if len(shots) < len(self.shots):
      left = [str(k) for k in self.shots if k > least]
      text = (
        f"few-shot/{context}: a class of "
        f"{job.config.evaluation.probe_source!r} has {least} samples; "
        f"{', '.join(left)} of each cannot be drawn."
      )
      if not shots:
        raise ConfigError(text)
      tell(text)
    number = {name: i for i, name in enumerate(classes)}
    right = np.asarray([number.get(x, -2) for x in targets])
    results = []
    for k in shots:
      rng = np.random.default_rng((job.protocol.seed, k))
      hits = np.zeros(len(rows))
      for _ in range(self.draws):
        drawn = [rng.choice(m, k, replace=False) for m in members]
        means = unit(np.stack([known[d].mean(axis=0) for d in drawn]))
        hits += metrics.predictions(rows @ means.T) == right
      results.append(
        job.protocol.result(
          f"{self.title}/{context}/{k} of each/accuracy",
          hits / self.draws,
          total=job.gallery.count(),
          gallery=len(classes),
          baseline=1 / len(classes),
        )
      )
    return results
