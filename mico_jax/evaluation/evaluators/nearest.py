"""Classes by the nearest training samples in the space of pooled features.

Features are made unit-norm; each of the k most similar training samples votes
for its class with exp(cosine / temperature). A vote that several classes share
is right for none. A training sample that is the measured one itself has no
vote.

Source: Wu et al., arXiv:1805.01978, section 3.4; DINO, arXiv:2104.14294.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config import Config
from mico_jax.config.fields import Range
from mico_jax.evaluation import labelled, metrics
from mico_jax.evaluation.class_accuracy import MEASURES, class_results
from mico_jax.evaluation.evaluator import Evaluator, Job, Needs
from mico_jax.evaluation.queries import evaluated_groups
from mico_jax.evaluation.results import Result

_BLOCK = 1024  # measured samples at once


@dataclasses.dataclass(frozen=True)
class Nearest(Evaluator):
  """Accuracy of the vote of the nearest samples of `evaluation.probe_source`.

  For each of `evaluation.groups`; classes are the values of
  `evaluation.label`.
  """

  name: ClassVar = "nearest"
  title: ClassVar = "nearest"
  measures: ClassVar = MEASURES

  # samples that vote, at most
  k: Annotated[int, Range(1, 10**6, "samples")] = 20
  # divides the cosines of a vote
  temperature: Annotated[float, Range(1e-3, 1e3)] = 0.07

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
    known, labels, columns = labelled.labelled_training(
      job, context, self.title
    )
    field = job.config.evaluation.label or "label"
    asked, targets, rows = labelled.labelled_rows(job.gallery, context, field)
    same = labelled.same_items(job, labelled.training_gallery(job))
    place = {int(item): i for i, item in enumerate(columns)}
    own = {
      row: [place[c] for c in same.get(int(item), ()) if c in place]
      for row, item in enumerate(rows)
    }
    classes = sorted(set(labels), key=str)
    labelled.tell_unseen(f"{self.title}/{context}", targets, classes)
    votes = class_votes(
      asked,
      known,
      [classes.index(x) for x in labels],
      k=self.k,
      temperature=self.temperature,
      excluded=own,
    )
    chosen = metrics.predictions(votes)
    return class_results(
      job,
      f"{self.title}/{context}",
      [classes[i] if i >= 0 else None for i in chosen],
      targets,
      classes=len(classes),
      gallery=len(known),
    )


def class_votes(
  asked: Float[np.ndarray, "N D"],
  known: Float[np.ndarray, "M D"],
  labels: Sequence[Any],
  *,
  k: int,
  temperature: float,
  excluded: Mapping[int, Sequence[int]],
) -> Float[np.ndarray, "N C"]:
  """Votes for each class, from 0 on.

  Of samples that are equally near at the k-th place the earlier ones vote.

  Args:
    asked: features of the measured samples.
    known: of the training samples.
    labels: their classes, numbered from 0.
    k: samples that vote; more than there are: all.
    temperature: divides the cosines.
    excluded: measured sample -> training samples without a vote on it.
  """
  one_hot = np.eye(max(labels) + 1)[np.asarray(labels)]
  known = unit(known)
  out = []
  for start in range(0, len(asked), _BLOCK):
    part = slice(start, start + _BLOCK)
    cosine = unit(asked[part]) @ known.T
    for row in range(len(cosine)):
      cosine[row, list(excluded.get(start + row, ()))] = -np.inf
    near = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(cosine, near, axis=1)
    weight = np.exp((nearest - 1.0) / temperature)
    out.append(np.einsum("nk,nkc->nc", weight, one_hot[near]))
  return np.concatenate(out) if out else np.zeros((0, one_hot.shape[1]))


def unit(rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
  """Rows of norm 1 in float64; rows of zeros stay."""
  rows = rows.astype(np.float64)
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
