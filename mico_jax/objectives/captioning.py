"""Masked-causal captioning: predict hidden tokens from the left and a context.

Not next-token prediction: the mask token at position k predicts token k
itself, attention is causal including the current position, as released.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mico_jax.config import CaptioningConfig
from mico_jax.kernels.cross_entropy import IGNORE
from mico_jax.modalities import letters
from mico_jax.objectives import draws
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)


def token_output(
  inputs: Inputs,
  hidden: Float[Array, "B L W"],
  labels: Int[Array, "B L"],
  row_weights: Float[Array, " B"],
  *,
  label_smoothing: float = 0.0,
) -> Output:
  """Mean over the scored tokens of a row, weighted by how many they are.

  Averaging rows with these weights gives the mean over all scored tokens of
  the batch, as released.
  """
  values, correct = inputs.model.token_loss(
    inputs.params,
    hidden,
    labels,
    label_smoothing=label_smoothing,
    partition=inputs.partition,
  )
  count = (labels != IGNORE).sum(axis=1).astype(values.dtype)
  safe = jnp.maximum(count, 1)
  weights = row_weights * count.astype(row_weights.dtype)
  hits = correct.sum(axis=1).astype(jnp.float32) / safe.astype(jnp.float32)
  return Output(
    values=values.sum(axis=1) / safe,
    weights=weights,
    metrics={"token_accuracy": weighted_mean(hits, weights)},
    aux={},
  )


@dataclass(frozen=True)
class Captioning(Objective):
  """Cross-entropy of the original ids at the masked positions of the text.

  Source: mico.md section 3 (generation).
  """

  config: CaptioningConfig = field(default_factory=CaptioningConfig)
  name: ClassVar[str] = "captioning"
  needs: ClassVar[frozenset[Need]] = frozenset({"text", "context"})

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    ids = inputs.text[group].ids
    site = f"captioning/{group}"
    given = inputs.given(self.name, group)
    if given:
      masked, labels = given["ids"], given["labels"]
    else:
      masked, labels = draws.mask_tokens(
        inputs.keys(site),
        ids,
        info=inputs.tokenizer,
        prob=self.config.mask_prob,
      )
    hidden = inputs.model.text(
      inputs.params,
      masked,
      attention="causal",
      context=inputs.contexts[letters(group)],
      row_keys=inputs.dropout_keys(site),
      train=inputs.train,
    )
    return token_output(
      inputs,
      hidden,
      labels,
      inputs.row_weight(group) * inputs.text_weight(ids),
      label_smoothing=self.config.label_smoothing,
    )
