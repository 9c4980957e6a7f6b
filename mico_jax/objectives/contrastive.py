"""Contrastive objective (ITC) between a group's context and its text.

Departures from the release, each with its option: the gathered side carries
gradient (`detach_gathered` restores the original), and identical texts of the
batch share the target mass (`share_identical_texts`). Explicit negatives of the
batch, minimally different texts, can join the texts that a context is set
against (`explicit_negatives`, as in NegCLIP, arXiv:2210.01936).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp

from mico_jax.config import ContrastiveConfig
from mico_jax.kernels.contrastive import contrastive_loss
from mico_jax.modalities import letters
from mico_jax.objectives import draws
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

  def _negatives(self, inputs: Inputs, group: str) -> dict[str, Any]:
    """Embeddings of the batch's explicit negatives; empty without any."""
    ids = inputs.batch.get("negative_text", {}).get(group)
    if ids is None or group not in self.config.explicit_negatives:
      return {}
    rows, count, length = ids.shape
    flat = ids.reshape(rows * count, length)
    keys = inputs.dropout_keys(f"{self.name}/{group}/negatives")
    hidden = inputs.model.text(
      inputs.params,
      flat,
      row_keys=None if keys is None else draws.expand(keys, count),
      train=inputs.train,
    )
    pooled = {"t": inputs.model.pool_text(hidden)}
    feature = inputs.model.embed(inputs.params, "t", pooled)
    return {
      "negatives": feature.reshape(rows, count, -1),
      "negatives_valid": inputs.text_weight(flat).reshape(rows, count) > 0,
    }

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
    negatives = self._negatives(inputs, group)
    to_text, text_hit = contrastive_loss(context, text, **options, **negatives)
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
