"""Captioning: predict tokens from the left and a context, as the tower writes.

BERT is no next-token predictor: the mask token at position k predicts token k
itself, attention is causal including the current position, as released. A
causal tower reads the text as it is, and every token predicts the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

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


def scored_text(
  inputs: Inputs,
  objective: str,
  group: str,
  ids: Int[Array, "B L"],
  prob: float,
) -> tuple[Int[Array, "B L"], Int[Array, "B L"]]:
  """(ids to read, labels) of a text: given, or drawn for each row."""
  given = inputs.row_arrays(objective, group)
  if given:
    return given["ids"], given["labels"]
  keys = inputs.keys(f"{objective}/{group}")
  return sampling.scored_tokens(
    keys,
    ids,
    info=inputs.tokenizer,
    prob=prob,
    next_token=inputs.model.tower.next_token,
  )


def num_scored(labels: Int[Array, "B L"]) -> Float[Array, " B"]:
  """Labelled positions of each row."""
  return (labels != IGNORE).sum(axis=1).astype(jnp.float32)


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
  count = num_scored(labels)
  safe = jnp.maximum(count, 1).astype(values.dtype)
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
  """Cross-entropy of the tokens of the text that are to be predicted.

  They are the masked ones, or, where the tower predicts the next token, all but
  the first.

  Source: MiCo, arXiv:2406.09412; VAST, arXiv:2305.18500.
  """

  config: CaptioningConfig = field(default_factory=CaptioningConfig)
  name: ClassVar[str] = "captioning"
  needs: ClassVar[frozenset[Need]] = frozenset({"text", "context"})
  curves: ClassVar[tuple[str, ...]] = ("token_accuracy",)
  masking_options: ClassVar[tuple[str, ...]] = ("mask_prob",)

  def weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """See `Objective`: how many tokens are scored."""
    _, labels = scored_text(
      inputs,
      self.name,
      group,
      inputs.batch["text"][group],
      self.config.mask_prob,
    )
    return super().weights(inputs, group) * num_scored(labels)

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    ids = inputs.text[group].ids
    site = f"captioning/{group}"
    read, labels = scored_text(
      inputs, self.name, group, ids, self.config.mask_prob
    )
    hidden = inputs.model.text(
      inputs.params,
      read,
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
