"""Re-identification: other samples of the same individual, by embeddings.

Every sample with an identity is a query among all others; it is never its own
hit. With `camera`, samples of the query's identity and camera are left out too,
as in the protocols of Market-1501 and SYSU-MM01; with `place`, all samples of
its place. A query that has no other sample of its identity is not asked, and
counted as missing.

With `shots`, a gallery holds as many samples of each identity (and camera),
drawn by the seed and the number of the trial; values of a query are its mean
over the trials.

Source: the measures of Market-1501 (Zheng et al., ICCV 2015), section 5.1; of
galleries that are drawn, SYSU-MM01 (Wu et al., ICCV 2017), section 6.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Label, Range, Seed
from mico_jax.data.samples import keys_of
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.heads import trained_groups
from mico_jax.evaluation.queries import labels_of
from mico_jax.evaluation.results import Protocol, Result
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
  # record field; samples of the query's place do not count, whoever they show
  place: Label = ""
  # samples of each identity (and camera) in a gallery; 0: all
  shots: Annotated[int, Range(0, 10**6, "samples")] = 0
  # galleries that are drawn, where `shots` is set
  trials: Annotated[int, Range(1, 1000)] = 10
  seed: Seed = 0

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
      results += self.direction(job.gallery, job.protocol, *pair)
    return results

  def direction(
    self,
    gallery: Gallery,
    protocol: Protocol,
    query: str,
    other: str,
    field: str,
  ) -> list[Result]:
    """Those from one side to another, or within one.

    Args:
      gallery: with embeddings of both sides.
      protocol: makes results.
      query: letters of the side that asks.
      other: of the side that is searched.
      field: record field with the identity.

    Raises:
      ConfigError: if no query has an answer.
    """
    labels = labels_of(gallery, field)
    cameras, places = (
      self._kinds(gallery, name) for name in (self.camera, self.place)
    )
    named = lambda side: np.asarray(
      [i for i in gallery.usable(side) if labels[i] is not None], np.int64
    )
    asked, all_known = named(query), named(other)
    identity = _numbered(labels)
    tallies, size = [], len(all_known)
    for known in self._galleries(all_known, identity, cameras):
      size = len(known)
      tallies.append(
        _tally(
          gallery.embeddings[query][asked],
          gallery.embeddings[other][known],
          asked,
          known,
          (identity, cameras, places),
        )
      )
    table = np.stack(tallies)  # [trials, queries, measures], NaN: not asked
    answered = np.isfinite(table[..., 0]).any(axis=0)
    if not answered.any():
      raise ConfigError(
        f"re-identification of {query}->{other}: no sample of "
        f"{protocol.source!r} has another one of the same {field!r}."
      )
    means = np.nanmean(table[:, answered], axis=0)
    asks = _with_files(gallery, query)
    return [
      protocol.result(
        f"{self.title}/{query}->{other}/{name}",
        means[:, column],
        total=asks,
        gallery=size,
      )
      for column, name in enumerate(self.measures)
    ]

  def _kinds(self, gallery: Gallery, name: str) -> Any:
    """A number for each value of a record field; None: there is none to ask.

    Raises:
      ConfigError: if no sample has the field.
    """
    if not name:
      return None
    labels = labels_of(gallery, name)
    if all(x is None for x in labels):
      raise ConfigError(
        f"evaluation.options.{self.name}: no sample has a field {name!r}."
      )
    return _numbered(labels)

  def _galleries(
    self,
    known: Int[np.ndarray, " G"],
    identity: Int[np.ndarray, " N"],
    cameras: Int[np.ndarray, " N"] | None,
  ) -> Iterator[Int[np.ndarray, " g"]]:
    """The samples of each gallery."""
    if not self.shots:
      yield known
      return
    kinds: dict[tuple[int, int], list[int]] = {}
    for i in known.tolist():
      camera = -1 if cameras is None else int(cameras[i])
      kinds.setdefault((int(identity[i]), camera), []).append(i)
    for trial in range(self.trials):
      rng = np.random.default_rng([self.seed, trial])
      drawn = [rng.permutation(items)[: self.shots] for items in kinds.values()]
      yield np.sort(np.concatenate(drawn))


def _with_files(gallery: Gallery, side: str) -> int:
  """Items that have files of a side, or could not be read.

  An item of the other side alone is no query that is missing.
  """
  keys = keys_of((side,))
  return sum(
    record is None or all(key in record.media for key in keys)
    for i, record in enumerate(gallery.records)
    if i not in gallery.repeats
  )


def _tally(
  query: Float[np.ndarray, "Q E"],
  key: Float[np.ndarray, "G E"],
  asked: Int[np.ndarray, " Q"],
  known: Int[np.ndarray, " G"],
  kinds: tuple[Any, Any, Any],
) -> Float[np.ndarray, "Q M"]:
  """R@k and average precision of each query; NaN where it has no answer."""
  rows, ranks, precision = identity_ranks(query, key, asked, known, *kinds)
  out = np.full((len(asked), len(RECALLS) + 1), np.nan)
  for column, k in enumerate(RECALLS):
    out[rows, column] = metrics.recall_at(ranks, k)
  out[rows, -1] = precision
  return out


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
  place: Int[np.ndarray, " N"] | None = None,
) -> tuple[
  Int[np.ndarray, " A"], Int[np.ndarray, " A"], Float[np.ndarray, " A"]
]:
  """Rank of the first sample of the same identity, and average precision.

  Args:
    query: embeddings of the queries.
    key: of the gallery.
    asked: which samples the queries are.
    known: which samples the gallery holds.
    identity: of every sample.
    camera: of every sample; samples of the query's identity and camera do not
      count. None: they are not told apart.
    place: of every sample; samples of the query's place do not count. None:
      likewise; -1: unknown.

  Returns:
    Which queries have an answer, and both of these. Ties count against a query.
  """
  answered = [np.zeros(0, np.int64)]
  ranks, precision = [np.zeros(0, np.int64)], [np.zeros(0)]
  for start in range(0, len(asked), _BLOCK):
    items = asked[start : start + _BLOCK, None]
    scores = (query[start : start + _BLOCK] @ key.T).astype(np.float64)
    same = identity[items] == identity[known]
    left_out = items == known
    if camera is not None:
      left_out |= same & (camera[items] == camera[known])
    if place is not None:
      left_out |= (place[items] == place[known]) & (place[items] >= 0)
    relevant = same & ~left_out
    rows = relevant.any(axis=1)
    scores[left_out] = -np.inf  # behind all others
    answered.append(start + np.flatnonzero(rows))
    ranks.append(metrics.ranks(scores[rows], relevant[rows]))
    precision.append(metrics.average_precision(scores[rows], relevant[rows]))
  return (
    np.concatenate(answered),
    np.concatenate(ranks),
    np.concatenate(precision),
  )
