"""A number of a sample from frozen features, by ridge regression.

Features are standardised with the training samples' statistics; the L2 penalty
is that of `penalties` with the smallest error on a part of the training samples
cut off for it, and the fit is then of all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Items, Label, Range
from mico_jax.evaluation import labelled
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.queries import evaluated_groups
from mico_jax.evaluation.results import Result


@dataclasses.dataclass(frozen=True)
class Regression(Evaluator):
  """Error of a number predicted by ridge regression on frozen features.

  Trained on `evaluation.probe_source`, for each of `evaluation.groups`; the
  number is the record field of the option `field`. Chance is the mean of the
  training samples; R2 is 1 minus the squared error over that of the mean.
  """

  name: ClassVar = "regression"
  title: ClassVar = "regression"
  measures: ClassVar = {
    "MAE": Measure(unit="", headline=False, lower_is_better=True),
    "R2": Measure(unit=""),
  }

  # record field with the number; "": nothing is measured
  field: Label = ""
  # L2 penalties to choose from, per sample; one: that one
  penalties: Annotated[
    tuple[Annotated[float, Range(1e-9, 1e9)], ...], Items(1, 64)
  ] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
  # part of the training samples that they are chosen on
  validation: Annotated[float, Range(0.01, 0.9)] = 0.2

  def check(self, config: Config) -> None:
    """The source exists."""
    labelled.check_source(config)

  def needs(self, config: Config) -> Needs | None:
    """Pooled features of the groups."""
    return labelled.probe_needs(config) if self.field else None

  def measure(self, job: Job) -> list[Result]:
    """Mean absolute error and R2 of each group."""
    results = []
    for context in evaluated_groups(job.config):
      results += self._errors(job, context)
    return results

  def _errors(self, job: Job, context: str) -> list[Result]:
    """Those of one group."""
    train = labelled.training_gallery(job)
    features, known, _ = labelled.labelled_rows(train, context, self.field)
    asked, wanted, _ = labelled.labelled_rows(job.gallery, context, self.field)
    name = job.config.evaluation.probe_source
    y = self._numbers(known, name)
    targets = self._numbers(wanted, job.protocol.source)
    penalty = self._chosen(features, y, job.protocol.seed)
    error = fit_ridge(features, y, penalty)(asked) - targets
    apart = y.mean() - targets
    mae = job.protocol.result(
      f"{self.title}/{context}/MAE",
      np.abs(error),
      total=job.gallery.count(),
      baseline=float(np.abs(apart).mean()),
    )
    spread = float(np.square(targets - targets.mean()).sum())
    if not spread:
      return [mae]  # R2 is not defined where all numbers are equal
    r2 = dataclasses.replace(
      mae,
      name=f"{self.title}/{context}/R2",
      value=1.0 - float(np.square(error).sum()) / spread,
      interval=None,  # no mean over items
      baseline=1.0 - float(np.square(apart).sum()) / spread,
      values=None,
    )
    return [mae, r2]

  def _numbers(self, values: list[Any], name: str) -> Float[np.ndarray, " N"]:
    """Labels as numbers.

    Raises:
      ConfigError: for none, or one that is no finite number.
    """
    if len(values) < 2:
      raise ConfigError(
        f"regression: {len(values)} samples of {name!r} have a field "
        f"{self.field!r}; set evaluation.options.regression.field."
      )
    for value in values:
      if isinstance(value, str) or not np.isfinite(value):
        raise ConfigError(
          f"regression: field {self.field!r} of a sample of {name!r} is "
          f"{value!r}; expected a finite number."
        )
    return np.asarray(values, np.float64)

  def _chosen(
    self,
    features: Float[np.ndarray, "N D"],
    y: Float[np.ndarray, " N"],
    seed: int,
  ) -> float:
    """The penalty of the smallest error on the validation part."""
    if len(self.penalties) == 1:
      return self.penalties[0]
    count = min(len(y) - 1, max(1, round(self.validation * len(y))))
    order = np.random.default_rng(seed).permutation(len(y))
    held, rest = order[:count], order[count:]
    errors = {
      penalty: float(
        np.square(
          fit_ridge(features[rest], y[rest], penalty)(features[held]) - y[held]
        ).mean()
      )
      for penalty in self.penalties
    }
    return min(errors, key=lambda penalty: (errors[penalty], -penalty))


def fit_ridge(
  features: Float[np.ndarray, "N D"], y: Float[np.ndarray, " N"], penalty: float
) -> Callable[[Float[np.ndarray, "M D"]], Float[np.ndarray, " M"]]:
  """Ridge regression in float64.

  Args:
    features: of the training samples.
    y: their numbers.
    penalty: L2 factor on the weights, per sample; not on the bias.

  Returns:
    Function of features that gives the predicted numbers.
  """
  mean, scale = features.mean(axis=0), features.std(axis=0)
  scale = np.maximum(scale, 1e-6)
  x = (features.astype(np.float64) - mean) / scale
  gram = x.T @ x + penalty * len(y) * np.eye(x.shape[1])
  weights = np.linalg.solve(gram, x.T @ (y - y.mean()))

  def predict(rows: Float[np.ndarray, "M D"]) -> Float[np.ndarray, " M"]:
    return (rows.astype(np.float64) - mean) / scale @ weights + y.mean()

  return predict
