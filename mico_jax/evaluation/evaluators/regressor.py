"""Numbers of samples by the trained heads of the objective `regression`."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config import Config
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.heads import (
  head_needs,
  head_of,
  predicted,
  trained_groups,
)
from mico_jax.evaluation.results import Result

OBJECTIVE = "regression"


@dataclasses.dataclass(frozen=True)
class Regressor(Evaluator):
  """Errors of the heads that `regression` trains, in the unit of the field.

  For each field of each of its groups. Chance is the mean of the training
  samples; R2 is 1 minus the squared error over that of the mean of the samples
  that are measured on. Samples without the number are left out.
  """

  name: ClassVar = "regressor"
  title: ClassVar = "regressor"
  measures: ClassVar = {
    "MAE": Measure(unit="", headline=False, lower_is_better=True),
    "RMSE": Measure(unit="", lower_is_better=True),
    "R2": Measure(unit=""),
  }
  cheap: ClassVar = True

  def needs(self, config: Config) -> Needs | None:
    """Pooled features of the groups."""
    return head_needs(config, OBJECTIVE)

  def measure(self, job: Job) -> list[Result]:
    """MAE, RMSE and R2 of each field of each group."""
    head = head_of(job, OBJECTIVE)
    results = []
    for group in trained_groups(job.config, OBJECTIVE):
      target = head.target(group)
      found = predicted(job, head, group)
      for i, name in enumerate(target.fields):
        rows = found.weights[:, i] > 0
        outputs, labels = (
          x[rows, i].astype(np.float64) * target.scale[i] + target.mean[i]
          for x in (found.outputs, found.labels)
        )
        results += self._errors(
          job, f"{self.title}/{group}/{name}", outputs, labels, target.mean[i]
        )
    return results

  def _errors(
    self,
    job: Job,
    name: str,
    guesses: Float[np.ndarray, " N"],
    numbers: Float[np.ndarray, " N"],
    mean: float,
  ) -> list[Result]:
    """Those of one field; `mean` is that of the training samples."""
    error, apart = guesses - numbers, mean - numbers
    make = lambda measure, values, baseline: job.protocol.result(
      f"{name}/{measure}",
      values,
      total=job.gallery.count(),
      baseline=float(baseline),
    )
    mae = make("MAE", np.abs(error), np.abs(apart).mean())
    squared = make("RMSE", np.square(error), np.square(apart).mean())
    ends = squared.interval
    rmse = dataclasses.replace(
      squared,
      value=math.sqrt(squared.value),
      interval=ends and (math.sqrt(ends[0]), math.sqrt(ends[1])),
      baseline=float(np.sqrt(np.square(apart).mean())),
      values=None,
    )
    spread = float(np.square(numbers - numbers.mean()).sum())
    if not spread:
      return [mae, rmse]  # R2 is not defined where all numbers are equal
    r2 = dataclasses.replace(
      mae,
      name=f"{name}/R2",
      value=1.0 - float(np.square(error).sum()) / spread,
      interval=None,  # no mean over items
      baseline=1.0 - float(np.square(apart).sum()) / spread,
      values=None,
    )
    return [mae, rmse, r2]
