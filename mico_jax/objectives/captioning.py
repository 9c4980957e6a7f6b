"""Captioning: predict tokens from the left and a context, as the tower writes.

BERT is no next-token predictor: the mask token at position k predicts token k
itself, and attention is causal and includes the current position, as in the
official MiCo code. A causal tower reads the text as it is, and every token
predicts the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mico_jax.config import CaptioningConfig
from mico_jax.kernels.cross_entropy import IGNORE
from mico_jax.modalities import letters
from mico_jax.objectives import sampling
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)


@dataclass(frozen=True)
class Captioning(Objective):
  """Cross-entropy of the tokens of the text that are to be predicted.

  They are the masked ones, or, where the tower predicts the next token, all but
  the first. The value of a row is the mean over its scored tokens, its weight
  their number, so that the mean over rows is that over all scored tokens of the
  batch, as in the official MiCo code.

  Source: MiCo, arXiv:2406.09412; VAST, arXiv:2305.18500.
  """

  config: Any = field(default_factory=CaptioningConfig)
  name: ClassVar[str] = "captioning"
  unit: ClassVar[str] = "nats"
  needs: ClassVar[frozenset[Need]] = frozenset({"text", "context"})
  curves: ClassVar[tuple[str, ...]] = ("token_accuracy",)
  masking_options: ClassVar[tuple[str, ...]] = ("mask_prob",)

  def target(self, inputs: Inputs, group: str) -> Int[Array, "B L"]:
    """The text whose tokens are predicted."""
    return inputs.batch["text"][group]

  def row_weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """Weight of each row, before the number of its tokens."""
    return super().weights(inputs, group)

  def hidden(
    self, inputs: Inputs, group: str, ids: Int[Array, "B L"]
  ) -> Float[Array, "B L W"]:
    """States of the target, of which `ids` are read."""
    return self.read(inputs, group, ids, attention="causal")

  def read(
    self, inputs: Inputs, group: str, ids: Int[Array, "B _"], **options: Any
  ) -> Float[Array, "B _ W"]:
    """States of texts with the group's context, see `MiCo.text`."""
    return inputs.model.text(
      inputs.params,
      ids,
      context=inputs.contexts[letters(group)],
      row_keys=inputs.dropout_keys(f"{self.name}/{group}"),
      train=inputs.train,
      **options,
    )

  def scored(
    self, inputs: Inputs, group: str
  ) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
    """(ids to read, labels) of the target: drawn for each row, or fixed."""
    fixed = inputs.row_arrays(self.name, group)
    if fixed:
      return fixed["ids"], fixed["labels"]
    return sampling.scored_tokens(
      inputs.keys(f"{self.name}/{group}"),
      self.target(inputs, group),
      info=inputs.tokenizer,
      prob=self.config.mask_prob,
      next_token=inputs.model.tower.next_token,
    )

  def weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """See `Objective`: the number of scored tokens."""
    _, labels = self.scored(inputs, group)
    count = (labels != IGNORE).sum(axis=1).astype(jnp.float32)
    return self.row_weights(inputs, group) * count

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    ids, labels = self.scored(inputs, group)
    values, correct = inputs.model.token_loss(
      inputs.params,
      self.hidden(inputs, group, ids),
      labels,
      label_smoothing=getattr(self.config, "label_smoothing", 0.0),
      partition=inputs.partition,
    )
    count = (labels != IGNORE).sum(axis=1).astype(jnp.float32)
    safe = jnp.maximum(count, 1).astype(values.dtype)
    row_weights = self.row_weights(inputs, group)
    weights = row_weights * count.astype(row_weights.dtype)
    hits = correct.sum(axis=1).astype(jnp.float32) / safe.astype(jnp.float32)
    return Output(
      values=values.sum(axis=1) / safe,
      weights=weights,
      metrics={"token_accuracy": weighted_mean(hits, weights)},
      aux={},
    )
