"""Contrastive objective (ITC) between the two sides of a group.

"tva" compares texts with the context of video and audio; "i:d" (or "id")
compares images with depth maps, without any text, and "va:d" the joint context
of video and audio with depth. Each side has its own head. Two rows of one
sample, which meet where two epochs do, count as each other's negatives then: no
text tells that they are the same.

Departures from VAST's training code, each with its option: gathered rows carry
gradient (`detach_gathered` restores the original), and identical texts of the
batch share the target mass (`share_identical_texts`). Explicit negatives,
minimally different texts, can join the texts that a context is compared with
(`explicit_negatives`, as in NegCLIP, arXiv:2210.01936). Instead of a softmax
over the batch, each pair can be classified alone (`form`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Key

from mico_jax.aliases import Params
from mico_jax.config import ConfigError, ContrastiveConfig, ModelConfig
from mico_jax.kernels.contrastive import BACKENDS, FORMS, contrastive_pair
from mico_jax.modalities import has_text, sides
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)

DTYPES = ("", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Contrastive(Objective):
  """Symmetric cross-entropy over all pairs of the global batch.

  Source: MiCo, arXiv:2406.09412, section 3; VAST, arXiv:2305.18500; the sigmoid
  form: SigLIP, arXiv:2303.15343.
  """

  config: ContrastiveConfig = field(default_factory=ContrastiveConfig)
  name: ClassVar[str] = "contrastive"
  unit: ClassVar[str] = "nats"
  needs: ClassVar[frozenset[Need]] = frozenset({"features", "text"})
  whole_batch: ClassVar[bool] = True
  curves: ClassVar[tuple[str, ...]] = ("accuracy_to_context",)

  def __post_init__(self) -> None:
    """Checks names.

    Raises:
      ConfigError: for a form, backend or dtype that does not exist.
    """
    for name, known in (
      ("form", FORMS),
      ("backend", ("auto", *BACKENDS)),
      ("gather_dtype", DTYPES),
    ):
      value = getattr(self.config, name)
      if value not in known:
        raise ConfigError(
          f"objectives.contrastive.{name}={value!r} is not one of "
          f"{', '.join(repr(k) for k in known)}."
        )

  def check_group(self, group: str) -> None:
    """See `Objective`: a group without a text names two contexts."""
    if has_text(group):
      return
    try:
      sides(group)
    except ValueError as error:
      raise ConfigError(str(error)) from None
    if group in self.config.explicit_negatives:
      raise ConfigError(
        f"explicit negatives are texts, and group {group!r} has none; leave it "
        "out of objectives.contrastive.explicit_negatives."
      )

  def negative_groups(self, groups: tuple[str, ...]) -> tuple[str, ...]:
    """See `Objective`."""
    return tuple(g for g in groups if g in self.config.explicit_negatives)

  def chance_loss(self, rows: float) -> float | None:
    """See `Objective`: that of a uniform softmax, for any label smoothing."""
    if self.config.form != "softmax" or rows < 2:
      return None
    return math.log(rows)

  def init(self, key: Key[Array, ""], model: ModelConfig) -> Params:
    """The bias of the sigmoid form; softmax has no parameters."""
    del key, model
    if self.config.form != "sigmoid":
      return {}
    return {"bias": jnp.asarray(self.config.bias_init, jnp.float32)}

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    config, (first, context) = self.config, sides(group)
    compared = [side for side in (first, context) if side != "t"]
    slot = inputs.text[group] if has_text(group) else None
    fingerprint = None
    if slot is not None and config.share_identical_texts:
      fingerprint = slot.fingerprint
    weights = self.weights(inputs, group)
    params = inputs.params.get("objective", {}).get(self.name, {})
    negatives, negatives_valid = inputs.negatives.get(group, (None, None))
    if group not in config.explicit_negatives:
      negatives = negatives_valid = None
    pair = contrastive_pair(
      inputs.features[context],
      inputs.features[first] if slot is None else slot.feature,
      temperature=inputs.model.temperature(inputs.params, compared),
      bias=params.get("bias"),
      form=config.form,
      label_smoothing=config.label_smoothing,
      fingerprint=fingerprint,
      valid=weights > 0,
      detach=config.detach_gathered,
      negatives=negatives,
      negatives_valid=negatives_valid,
      partition=inputs.partition,
      chunk=config.chunk,
      dtype=config.gather_dtype,
      backend=config.backend,
    )
    mean = lambda hit: weighted_mean(hit.astype(jnp.float32), weights)
    return Output(
      values=0.5 * (pair.to_key + pair.to_query),
      weights=weights,
      metrics={
        f"accuracy_to_{'first' if slot is None else 'text'}": mean(
          pair.key_hit
        ),
        "accuracy_to_context": mean(pair.query_hit),
      },
      aux={},
    )
