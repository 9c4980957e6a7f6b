"""Re-identification: other samples of the same individual, by embeddings.

Every sample with an identity is a query among all others; it is never its own
hit. With `camera`, samples of the query's identity and camera are left out too,
as in the protocols of Market-1501 and SYSU-MM01. A query that has no other
sample of its identity is not asked, and counted as missing.

Source: the measures of Market-1501 (Zheng et al., ICCV 2015), section 5.1.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Label
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.heads import trained_groups
from mico_jax.evaluation.queries import labels_of
from mico_jax.evaluation.results import Result
from mico_jax.objectives import make_objective

OBJECTIVE = "reidentification"
RECALLS = (1, 5, 10)
_BLOCK = 1024  # queries at once


@dataclasses.dataclass(frozen=True)
class Reidentification(Evaluator):
  """R@k and mAP of samples of the same identity, the query itself left out.

  For each group that `reidentification` trains: "i" within one modality, "i:x"
  from each of the two to the other. Identities need not be those of training.

  Attributes:
    camera: record field; samples of equal identity and camera do not count.
  """

  camera: Label = ""

  name: ClassVar = "reidentification"
  title: ClassVar = "re-id"
  measures: ClassVar = {
    **{f"R@{k}": Measure(headline=k == 1) for k in RECALLS},
    "mAP": Measure(),
  }
  cheap: ClassVar = True

  def _pairs(self, config: Config) -> list[tuple[str, str, str]]:
    """(query, gallery, field with the identity) of each direction."""
    head: Any = make_objective(config.objectives, OBJECTIVE)
    found = []
    for group in trained_groups(config, OBJECTIVE):
      (field,) = head.target(group).fields
      first, *others = head.sides(group)
      for other in others or [first]:
        found += [(first, other, field)]
        found += [(other, first, field)] if other != first else []
    return found

  def needs(self, config: Config) -> Needs | None:
    """Embeddings of the sides of the groups."""
    if not trained_groups(config, OBJECTIVE):
      return None
    pairs = self._pairs(config)
    return Needs(embed=tuple(dict.fromkeys(side for side, _, _ in pairs)))

  def measure(self, job: Job) -> list[Result]:
    """R@1, R@5, R@10 and mAP of each direction."""
    results = []
    for pair in self._pairs(job.config):
      results += self._direction(job, *pair)
    return results

  def _direction(
    self, job: Job, query: str, other: str, field: str
  ) -> list[Result]:
    """Those from one side to another, or within one."""
    gallery = job.gallery
    labels = labels_of(gallery, field)
    cameras = labels_of(gallery, self.camera) if self.camera else None
    named = lambda side: np.asarray(
      [i for i in gallery.usable(side) if labels[i] is not None], np.int64
    )
    asked, known = named(query), named(other)
    ranks, precision = identity_ranks(
      gallery.embeddings[query][asked],
      gallery.embeddings[other][known],
      asked,
      known,
      _numbered(labels),
      None if cameras is None else _numbered(cameras),
    )
    if not len(ranks):
      raise ConfigError(
        f"re-identification of {query}->{other}: no sample of "
        f"{job.protocol.source!r} has another one of the same {field!r}."
      )
    rows = {f"R@{k}": metrics.recall_at(ranks, k) for k in RECALLS}
    return [
      job.protocol.result(
        f"{self.title}/{query}->{other}/{name}",
        values,
        total=gallery.count(),
        gallery=len(known),
      )
      for name, values in (*rows.items(), ("mAP", precision))
    ]


def _numbered(labels: list[Any]) -> Int[np.ndarray, " N"]:
  """A number for each label, equal for equal ones; -1 where there is none."""
  number: dict[str, int] = {}
  return np.asarray(
    [
      -1 if x is None else number.setdefault(str(x), len(number))
      for x in labels
    ],
    np.int64,
  )


def identity_ranks(
  query: Float[np.ndarray, "Q E"],
  key: Float[np.ndarray, "G E"],
  asked: Int[np.ndarray, " Q"],
  known: Int[np.ndarray, " G"],
  identity: Int[np.ndarray, " N"],
  camera: Int[np.ndarray, " N"] | None,
) -> tuple[Int[np.ndarray, " A"], Float[np.ndarray, " A"]]:
  """Rank of the first sample of the same identity, and average precision.

  Args:
    query: embeddings of the queries.
    key: of the gallery.
    asked: which samples the queries are.
    known: which samples the gallery holds.
    identity: of every sample.
    camera: of every sample; None: they are not told apart.

  Returns:
    Of the queries that have an answer. Ties count against it.
  """
  ranks, precision = [np.zeros(0, np.int64)], [np.zeros(0)]
  for start in range(0, len(asked), _BLOCK):
    items = asked[start : start + _BLOCK, None]
    scores = (query[start : start + _BLOCK] @ key.T).astype(np.float64)
    same = identity[items] == identity[known]
    left_out = items == known
    if camera is not None:
      left_out |= same & (camera[items] == camera[known])
    relevant = same & ~left_out
    rows = relevant.any(axis=1)
    scores[left_out] = -np.inf  # behind all others
    ranks.append(metrics.ranks(scores[rows], relevant[rows]))
    precision.append(metrics.average_precision(scores[rows], relevant[rows]))
  return np.concatenate(ranks), np.concatenate(precision)
