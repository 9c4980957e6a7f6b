"""How the embeddings of texts and items lie on the sphere.

alignment: mean squared distance of an item to its text, in [0, 4]; 0 is best.
uniformity: log of the mean of exp(-2 d^2) over all pairs of different rows, in
nats, in [-8, 0]; lower is more even. modality gap: distance of the mean of the
items to the mean of the texts, in [0, 2]. effective rank: exp of the entropy of
the singular values (not centred) as shares, from 1 to the width.

Sources: Wang and Isola, arXiv:2005.10242; Liang et al., arXiv:2203.02053; Roy
and Vetterli, EUSIPCO 2007.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config import Config
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.queries import evaluated_groups, queries_of
from mico_jax.evaluation.results import Result

_BLOCK = 1024  # rows whose distances to all others are held at once


@dataclasses.dataclass(frozen=True)
class Health(Evaluator):
  """Alignment, uniformity, modality gap and effective rank of embeddings.

  For each of `evaluation.groups`, of items and of their first captions.
  """

  name: ClassVar = "health"
  title: ClassVar = "health"
  measures: ClassVar = {
    "alignment": Measure(unit="", lower_is_better=True),
    "uniformity": Measure(unit="nats", lower_is_better=True),
    "modality gap": Measure(unit="", lower_is_better=True),
    "effective rank": Measure(unit="", headline=False),
  }
  cheap: ClassVar = True

  def needs(self, config: Config) -> Needs | None:
    """The groups."""
    groups = evaluated_groups(config)
    return Needs(embed=groups) if groups else None

  def measure(self, job: Job) -> list[Result]:
    """Of each group those of the pairs, of the items and of the texts."""
    results = []
    for context in evaluated_groups(job.config):
      results += _results(job, context)
    return results


def _results(job: Job, letters: str) -> list[Result]:
  """Those of one group."""
  queries = queries_of(job.config, job.gallery, letters, 1)
  texts = job.embedder.embed_texts(queries.texts, queries.kind)
  texts = texts.astype(np.float64)
  items = job.gallery.embeddings[letters][queries.items].astype(np.float64)
  own = texts[queries.first(of_texts=False)]
  alignment = job.protocol.result(
    f"health/{letters}/alignment",
    np.square(items - own).sum(axis=1),
    total=job.gallery.count(),
    prompts=queries.texts,
  )

  def number(name: str, value: float, n: int) -> Result:
    """A property of the whole set: no mean over items."""
    return dataclasses.replace(
      alignment, name=name, value=value, interval=None, n=n, values=None
    )

  gap = float(np.linalg.norm(items.mean(axis=0) - texts.mean(axis=0)))
  results = [
    alignment,
    number(f"health/{letters}/modality gap", gap, len(items)),
  ]
  for side, rows in ((letters, items), (f"t of {letters}", texts)):
    if len(rows) > 1:
      value = uniformity(rows)
      results.append(number(f"health/{side}/uniformity", value, len(rows)))
    rank = effective_rank(rows)
    results.append(number(f"health/{side}/effective rank", rank, len(rows)))
  return results


def uniformity(rows: Float[np.ndarray, "N E"]) -> float:
  """Log of the mean of exp(-2 d^2) over all pairs of different rows, in nats.

  Args:
    rows: unit-norm, two or more.
  """
  total = 0.0
  for start in range(0, len(rows), _BLOCK):
    part = rows[start : start + _BLOCK]
    squared = np.maximum(2.0 - 2.0 * part @ rows.T, 0.0)
    potential = np.exp(-2.0 * squared)
    own = np.arange(len(part))
    potential[own, start + own] = 0.0
    total += float(potential.sum())
  return float(np.log(total / (len(rows) * (len(rows) - 1))))


def effective_rank(rows: Float[np.ndarray, "N E"]) -> float:
  """Exp of the entropy of the singular values as shares of their sum."""
  values = np.linalg.svd(rows, compute_uv=False)
  share = values / values.sum()
  share = share[share > 0]
  return float(np.exp(-(share * np.log(share)).sum()))
