"""Contrastive objective (ITC) between a group's context and its text.

Departures from the release, each with its option: the gathered side carries
gradient (`detach_gathered` restores the original), and identical texts of the
batch share the target mass (`share_identical_texts`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp

from mico_jax.config import ContrastiveConfig
from mico_jax.kernels.contrastive import contrastive_loss
from mico_jax.modalities import letters
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)


@dataclass(frozen=True)
class Contrastive(Objective):
  """Symmetric cross-entropy over all pairs of the global batch.

  Source: mico.md section 3.
  """

  config: ContrastiveConfig = field(default_factory=ContrastiveConfig)
  name: ClassVar[str] = "contrastive"
  needs: ClassVar[frozenset[Need]] = frozenset({"features", "text"})

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    slot = inputs.text[group]
    context, text = inputs.features[letters(group)], slot.feature
    weights = inputs.row_weight(group) * inputs.text_weight(slot.ids)
    shared = self.config.share_identical_texts
    options = dict(
      temperature=inputs.model.temperature(inputs.params),
      label_smoothing=self.config.label_smoothing,
      fingerprint=slot.fingerprint if shared else None,
      valid=weights > 0,
      detach_keys=self.config.detach_gathered,
    )
    to_text, text_hit = contrastive_loss(context, text, **options)
    to_context, context_hit = contrastive_loss(text, context, **options)
    return Output(
      values=0.5 * (to_text + to_context),
      weights=weights,
      metrics={
        "accuracy_to_text": weighted_mean(
          text_hit.astype(jnp.float32), weights
        ),
        "accuracy_to_context": weighted_mean(
          context_hit.astype(jnp.float32), weights
        ),
      },
      aux={},
    )
