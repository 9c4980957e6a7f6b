"""Re-identification: embeddings that tell individuals apart.

Of the embeddings of a group (those of its contrastive head, of unit norm) two
losses are taken. The batch-hard triplet loss: the farthest row of the same
identity is to be nearer than the nearest of any other, by a margin, over the
whole global batch. And cross-entropy of the identity, by a cosine classifier
whose weights are dropped after training: the identities of a test are others.
"i:x" compares both modalities with each other and within themselves, as in
visible-infrared re-identification; a sample needs one of the two.

The embedding is what `mico-jax embed` and exports give, so nothing else is
needed to use it.

Open: batches are drawn at random. A row whose identity no other row of the
batch has takes no part in the triplet loss (metric `paired`), so batches should
be large compared with the number of identities; no source draws several
samples of each identity.

Source: batch-hard triplets, arXiv:1703.07737; both losses, arXiv:1903.07071;
the cosine classifier, arXiv:1704.06369.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax.aliases import Params
from mico_jax.config import ConfigError, ModelConfig
from mico_jax.config.fields import Range, Weight
from mico_jax.modalities import has_text, letters
from mico_jax.objectives.base import Inputs, Need, Output, weighted_mean
from mico_jax.objectives.classification import cross_entropy
from mico_jax.objectives.heads import Head, Targets


@dataclass(frozen=True)
class ReidentificationConfig:
  """Identities of samples, by their embeddings."""

  weight: Weight = 1.0
  targets: Targets = field(default_factory=dict)  # group -> its identities
  triplet: Weight = 1.0  # weight of the triplet loss
  cross_entropy: Weight = 1.0
  # by which the nearest other identity is to be farther away, of distances
  margin: Annotated[float, Range(0.0, 2.0)] = 0.3
  # divides the cosines of the classifier
  temperature: Annotated[float, Range(1e-3, 10.0)] = 0.0625


@dataclass(frozen=True)
class Reidentification(Head):
  """Batch-hard triplet loss and cross-entropy of identities."""

  config: ReidentificationConfig = field(default_factory=ReidentificationConfig)
  name: ClassVar[str] = "reidentification"
  needs: ClassVar[frozenset[Need]] = frozenset({"features", "target"})
  kinds: ClassVar[tuple[str, ...]] = ("class",)
  whole_batch: ClassVar[bool] = True
  curves: ClassVar[tuple[str, ...]] = ("nearest", "accuracy")

  @classmethod
  def example(cls, group: str) -> dict[str, Any]:
    """See `Objective`."""
    return {"targets": {group: {"classes": ("cat", "dog", "cow")}}}

  def sides(self, group: str) -> tuple[str, ...]:
    """See `Objective`: "va" is one joint context, "v:a" are two."""
    first, colon, second = group.partition(":")
    return (first, second) if colon else (letters(group),)

  def check_group(self, group: str) -> None:
    """See `Head`; two contexts may be compared."""
    if has_text(group):
      raise ConfigError(
        f"{self.name} reads no text; write {letters(group)!r} instead of "
        f"{group!r}."
      )
    self.check_stated(group)

  def init(self, key: Key[Array, ""], model: ModelConfig) -> Params:
    """A direction for each identity of a group."""
    return {
      group: {
        "kernel": jax.random.normal(
          jax.random.fold_in(key, index), (model.embed_dim, self.size(group))
        )
        * model.embed_dim**-0.5
      }
      for index, group in enumerate(sorted(self.config.targets))
    }

  def weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """See `Objective`: how many sides of each row take part."""
    return sum(
      self._sides(inputs, group), jnp.zeros_like(inputs.batch["weight"])
    )

  def _sides(self, inputs: Inputs, group: str) -> list[Float[Array, " B"]]:
    """Weights of the rows of each side."""
    labelled = inputs.target(self.name, group)[1][:, 0]
    return [labelled * inputs.row_weight(x) for x in self.sides(group)]

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`; `nearest`: the nearest row has the same identity."""
    config, sides = self.config, self.sides(group)
    features = jnp.concatenate([inputs.features[side] for side in sides])
    row_weights = self._sides(inputs, group)
    weights = jnp.concatenate(row_weights)
    target = inputs.target(self.name, group)[0][:, 0]
    identity = jnp.tile(target, len(sides))
    triplet, paired, near = batch_hard(
      features, identity, weights > 0, margin=config.margin
    )
    there = weights * paired.astype(weights.dtype)
    # The mean of the loss over all rows is that over those that have a pair.
    share = weights.sum() / jnp.maximum(there.sum(), 1e-9)
    kernel = inputs.params["objective"][self.name][group]["kernel"]
    norm = jnp.sum(jnp.square(kernel), axis=0, keepdims=True)
    kernel = kernel * jax.lax.rsqrt(jnp.maximum(norm, 1e-24))
    logits = features @ kernel.astype(features.dtype) / config.temperature
    values = config.cross_entropy * cross_entropy(logits, identity, 0.0)
    values = values + config.triplet * share * jnp.where(paired, triplet, 0.0)
    right = jnp.argmax(logits, axis=1) == identity
    mean = lambda hit, w: weighted_mean(hit.astype(jnp.float32), w)
    by_side = lambda x: x.reshape(len(sides), -1)
    total = sum(row_weights, jnp.zeros_like(row_weights[0]))
    of_row = by_side(values * weights).sum(axis=0)
    return Output(
      values=of_row / jnp.where(total > 0, total, jnp.ones_like(total)),
      weights=total,
      metrics={
        "accuracy": mean(right, weights),
        "nearest": mean(near, there),
        "paired": mean(paired, weights),
      },
      aux={},
    )


def batch_hard(
  features: Float[Array, "N E"],
  identity: Int[Array, " N"],
  valid: Bool[Array, " N"],
  *,
  margin: float,
) -> tuple[Float[Array, " N"], Bool[Array, " N"], Bool[Array, " N"]]:
  """Triplet loss of each row with its hardest pair.

  Args:
    features: unit-norm rows.
    identity: of each row.
    valid: rows that may be compared.
    margin: of Euclidean distances, which lie in [0, 2].

  Returns:
    The loss of each row; whether it is valid and has both another row of its
    identity and one of another; and whether the nearest row is of its identity.

  Source: arXiv:1703.07737, equation 5.
  """
  both = valid[:, None] & valid[None, :]
  same = identity[:, None] == identity[None, :]
  own = jnp.eye(len(identity), dtype=bool)
  positive, negative = both & same & ~own, both & ~same
  squared = 2 - 2 * features @ features.T
  distance = jnp.sqrt(jnp.maximum(squared, 1e-12))  # a finite gradient at 0
  far = jnp.where(positive, distance, 0.0).max(axis=1)
  close = jnp.where(positive, distance, 3.0).min(axis=1)
  near = jnp.where(negative, distance, 3.0).min(axis=1)
  paired = positive.any(axis=1) & negative.any(axis=1)
  return jnp.maximum(margin + far - near, 0.0), paired, close < near
