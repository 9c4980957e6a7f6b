"""Regression of numbers of a sample by a head.

Targets are standardised with the mean and the deviation of the training
samples, so that an error of 1 is that of always guessing their mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp

from mico_jax.config.fields import Choice, Weight
from mico_jax.objectives.base import Inputs, Output, weighted_mean
from mico_jax.objectives.heads import Head, Targets


@dataclass(frozen=True)
class RegressionConfig:
  """Numbers of samples, by a head."""

  weight: Weight = 1.0
  targets: Targets = field(default_factory=dict)  # group -> its numbers
  # of the standardised numbers
  error: Annotated[str, Choice("squared", "absolute")] = "squared"


@dataclass(frozen=True)
class Regression(Head):
  """Squared or absolute error of numbers of a sample.

  The value of a row is the mean over those of its numbers that are there.
  """

  config: RegressionConfig = field(default_factory=RegressionConfig)
  name: ClassVar[str] = "regression"
  kinds: ClassVar[tuple[str, ...]] = ("number",)
  curves: ClassVar[tuple[str, ...]] = ("absolute_error",)
  lower_is_better: ClassVar[frozenset[str]] = frozenset({"absolute_error"})

  @classmethod
  def example(cls, group: str) -> dict[str, Any]:
    """See `Objective`."""
    target = {
      "fields": ("height", "width"),
      "kind": "number",
      "mean": (0.0, 1.0),
      "scale": (1.0, 2.0),
    }
    return {"targets": {group: target}}

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`; `absolute_error` is in deviations."""
    outputs = self.of_batch(inputs, group)
    target, there = inputs.target(self.name, group)
    weights = self.weights(inputs, group)
    difference = outputs - target.astype(outputs.dtype)
    absolute = jnp.abs(difference)
    squared = self.config.error == "squared"
    count = jnp.maximum(there.sum(axis=1), 1)
    mean = lambda error: (error * there).sum(axis=1) / count
    return Output(
      values=mean(jnp.square(difference) if squared else absolute),
      weights=weights,
      metrics={"absolute_error": weighted_mean(mean(absolute), weights)},
      aux={},
    )
