"""Classification of a group by a head: one class, or any number of them.

Targets of kind "class" are learned by softmax and cross-entropy; of kind
"classes" each class is a decision of its own (sigmoid and binary
cross-entropy, its mean over the classes). A hyperspectral sample is a patch
around a pixel, so the class of the pixel is learned like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mico_jax.config import ConfigError
from mico_jax.config.fields import Rate, Weight
from mico_jax.objectives.base import Inputs, Output, weighted_mean
from mico_jax.objectives.heads import Head, Targets


@dataclass(frozen=True)
class ClassificationConfig:
  """Classes of samples, by a head."""

  weight: Weight = 1.0
  targets: Targets = field(default_factory=dict)  # group -> its classes
  # mass moved from the true class to all; one class of a sample only
  label_smoothing: Rate = 0.0


@dataclass(frozen=True)
class Classification(Head):
  """Cross-entropy of the class of a sample, or of each of its classes."""

  config: ClassificationConfig = field(default_factory=ClassificationConfig)
  name: ClassVar[str] = "classification"
  unit: ClassVar[str] = "nats"
  kinds: ClassVar[tuple[str, ...]] = ("class", "classes")
  curves: ClassVar[tuple[str, ...]] = ("accuracy",)

  @classmethod
  def example(cls, group: str) -> dict[str, Any]:
    """See `Objective`."""
    return {"targets": {group: {"classes": ("cat", "dog", "cow")}}}

  def check_group(self, group: str) -> None:
    """See `Head`: label smoothing goes with one class of a sample."""
    super().check_group(group)
    if self.config.label_smoothing and self.target(group).kind == "classes":
      raise ConfigError(
        "objectives.options.classification.label_smoothing="
        f"{self.config.label_smoothing} is for one class of a sample, and "
        f"{group!r} has kind='classes'; set it to 0."
      )

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`; `accuracy` asks for the class with the most."""
    logits = self.of_batch(inputs, group)
    target, _ = inputs.target(self.name, group)
    weights = self.weights(inputs, group)
    best, counted = jnp.argmax(logits, axis=1), weights
    if self.target(group).kind == "class":
      values = cross_entropy(logits, target[:, 0], self.config.label_smoothing)
      hit = best == target[:, 0]
    else:
      values = binary_cross_entropy(logits, target)
      hit = jnp.take_along_axis(target, best[:, None], axis=1)[:, 0] > 0
      counted = weights * target.max(axis=1)  # a row without classes has none
    return Output(
      values=values,
      weights=weights,
      metrics={"accuracy": weighted_mean(hit.astype(jnp.float32), counted)},
      aux={},
    )


def cross_entropy(
  logits: Float[Array, "B K"], target: Int[Array, " B"], smoothing: float
) -> Float[Array, " B"]:
  """Cross-entropy of the true class, in nats.

  Args:
    logits: of each class.
    target: the class of each row, in [0, K).
    smoothing: mass moved from it to all classes alike, in [0, 1).

  Source: arXiv:1512.00567, section 7, for the smoothing.
  """
  total = jax.nn.logsumexp(logits, axis=1)
  own = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
  own = (1 - smoothing) * own
  return total - own - smoothing * logits.mean(axis=1)


def binary_cross_entropy(
  logits: Float[Array, "B K"], target: Float[Array, "B K"]
) -> Float[Array, " B"]:
  """Mean over the classes of the cross-entropy of each, in nats.

  Args:
    logits: log-odds of each class.
    target: 1 for each class that a row has, else 0.
  """
  target = target.astype(logits.dtype)
  return (jax.nn.softplus(logits) - target * logits).mean(axis=1)
