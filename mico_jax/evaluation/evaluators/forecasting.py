"""Errors of the forecasts that the objective `forecasting` trains.

Values are standardised by the training part, as in the usual benchmarks; the
error of a sample is the mean over its channels and steps. Windows of one series
that overlap are no independent samples: intervals are then too narrow.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mico_jax.aliases import Params
from mico_jax.config import Config, ConfigError
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.heads import head_of, trained_groups
from mico_jax.evaluation.results import Result
from mico_jax.kernels.compiler import forward_options
from mico_jax.modalities import by_letter, preprocessing

OBJECTIVE = "forecasting"


@dataclasses.dataclass(frozen=True)
class Forecasting(Evaluator):
  """MSE and MAE of the forecasts that `forecasting` trains, standardised.

  For each of its groups; chance is the mean of the context of each sample.
  """

  name: ClassVar = "forecasting"
  title: ClassVar = "forecasting"
  measures: ClassVar = {
    "MSE": Measure(unit="", lower_is_better=True),
    "MAE": Measure(unit="", headline=False, lower_is_better=True),
  }
  cheap: ClassVar = True

  def needs(self, config: Config) -> Needs | None:
    """The inputs of the groups."""
    groups = trained_groups(config, OBJECTIVE)
    return Needs(read=groups, batches=True) if groups else None

  def measure(self, job: Job) -> list[Result]:
    """MSE and MAE of each group."""
    head = head_of(job, OBJECTIVE)
    return [
      result
      for group in trained_groups(job.config, OBJECTIVE)
      for result in self._errors(job, head, group)
    ]

  def _errors(self, job: Job, head: Any, group: str) -> list[Result]:
    """Those of one group."""
    key, config, model = by_letter(group).key, job.config, job.embedder.model

    def errors(params: Params, array: Array) -> dict[str, tuple[Array, Array]]:
      pixels = preprocessing.to_pixels(
        config, {key: array}, (key,), train=False, xp=jnp
      )
      found = head.forecast(model, params, group, pixels[key])
      error, naive = found.predicted - found.truth, found.naive - found.truth
      known = found.there.max(axis=(1, 2)) > 0
      return {
        "MSE": tuple(found.mean(jnp.square(x)) for x in (error, naive)),
        "MAE": tuple(found.mean(jnp.abs(x)) for x in (error, naive)),
        "known": (known, known),
      }

    run = job.embedder.compiled(
      f"forecasting/{group}",
      lambda: jax.jit(errors, compiler_options=forward_options()),
    )
    parts = [
      jax.device_get(run(job.embedder.params, inputs[key]))
      for inputs in job.gallery.batches
    ]
    rows = {
      name: [np.concatenate([p[name][i] for p in parts]) for i in (0, 1)]
      for name in ("MSE", "MAE", "known")
    }
    usable = job.gallery.usable(group)
    usable = usable[rows["known"][0][usable]]
    if not len(usable):
      raise ConfigError(
        f"forecasting of {group!r}: no sample of {job.protocol.source!r} has a "
        "value behind its context."
      )
    return [
      job.protocol.result(
        f"{self.title}/{group}/{name}",
        rows[name][0][usable],
        total=job.gallery.count(),
        baseline=float(rows[name][1][usable].mean()),
      )
      for name in ("MSE", "MAE")
    ]
