"""Matching objective (ITM) with mined hard negatives.

Negatives of row i are drawn with probability softmax(similarity) + floor; the
row itself, rows that take no part and rows with an identical text are excluded.
Texts come from the whole global batch; contexts from the mining group of
consecutive global rows (`group_rows`), so they are sent only between the
devices that hold the group. Each draw is keyed by (seed, step, global row), so
mined indices depend on neither devices nor micro-batches. Keys and values of
the contexts are projected once a step, and gathered for the negatives.

Departures from VAST's training code: identical texts are never each other's
negatives (`exclude_identical_texts=False` restores the original), explicit
negatives of the batch are further pairs (`explicit_negatives`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mico_jax import rng
from mico_jax.config import ConfigError, MatchingConfig
from mico_jax.kernels.batch_sharding import parts
from mico_jax.kernels.cross_entropy import token_cross_entropy
from mico_jax.modalities import letters
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)
from mico_jax.objectives.mining import (
  draw_from_all,
  draw_negatives,
  mining_weights,
)


@dataclass(frozen=True)
class Matching(Objective):
  """Binary classification of pairs: does a text describe a context?

  Per row: (text, context) against (mined text, context), (explicit negative,
  context) for each explicit negative, and (text, mined context); the value is
  the mean over the row's pairs. Only mined contexts are copies.

  Source: MiCo, arXiv:2406.09412; ALBEF, arXiv:2107.07651, section 3.2.
  """

  config: MatchingConfig = field(default_factory=MatchingConfig)
  name: ClassVar[str] = "matching"
  unit: ClassVar[str] = "nats"
  needs: ClassVar[frozenset[Need]] = frozenset({"features", "text", "context"})
  curves: ClassVar[tuple[str, ...]] = ("accuracy",)
  row_indices: ClassVar[frozenset[str]] = frozenset({"context_index"})

  def check_rows(self, rows: int, micro: int | None = None) -> None:
    """See `Objective`: mining groups lie within a batch and a micro-batch."""
    group = self.config.group_rows
    if group and rows % group:
      raise ConfigError(
        f"objectives.matching.group_rows={group} must divide the task's "
        f"batch_size={rows}."
      )
    if micro is not None and (not group or micro % group):
      raise ConfigError(
        f"objectives.matching.group_rows={group} must be a divisor of {micro}, "
        f"the rows of a micro-batch on a device (batch_size={rows}, see "
        "train.micro_batches): contexts of negatives come from the same "
        "micro-batch."
      )

  def mine(
    self, inputs: Inputs, group: str, valid: Bool[Array, " B"]
  ) -> dict[str, Array]:
    """Indices of the negatives, whether each row has any, the drawn texts."""
    slot, options = inputs.text[group], self.config
    fixed = inputs.row_arrays(self.name, group)
    if fixed:
      everyone = jnp.ones_like(valid)
      mined = {"has_context": everyone, "has_text": everyone, **fixed}
      if "text_ids" not in mined:
        mined["text_ids"] = slot.ids[mined["text_index"]]
      return mined
    text, context = jax.lax.stop_gradient(
      (slot.feature, inputs.features[letters(group)])
    )
    compared = (letters(group),)
    temperature = inputs.model.temperature(inputs.params, compared)
    shared = options.exclude_identical_texts
    rules: dict[str, Any] = {
      "temperature": jax.lax.stop_gradient(temperature),
      "valid": valid,
      "fingerprint": slot.fingerprint if shared else None,
      "floor": options.floor,
    }
    draw = functools.partial(
      draw_from_all, payload=slot.ids, partition=inputs.partition, **rules
    )
    keys = inputs.keys(f"matching/{group}/context")
    if options.group_rows:
      weights = mining_weights(
        text, context, group_rows=options.group_rows, **rules
      )
      context_index, has_context = draw_negatives(keys, weights)
    else:
      context_index, has_context, _ = draw(keys, text, context)
    keys = inputs.keys(f"matching/{group}/text")
    text_index, has_text, text_ids = draw(keys, context, text)
    return {
      "context_index": context_index,
      "text_index": text_index,
      "has_context": has_context,
      "has_text": has_text,
      "text_ids": text_ids,
    }

  def global_arrays(self, inputs: Inputs, group: str) -> Mapping[str, Array]:
    """The mined negatives of every row."""
    return self.mine(inputs, group, self.weights(inputs, group) > 0)

  def _parts_of_group(self, rows: int, count: int) -> int:
    """Parts of a batch (`rows` in `count` parts) that share a mining group.

    1 where whole groups lie on a device, several where a group takes all rows
    of a few neighbours (1,024 rows on 256 devices, in groups of 8), else 0.
    """
    size = self.config.group_rows
    local, rest = divmod(rows, count)
    if not size or rest:
      return 0
    if local % size == 0:
      return 1
    run = size // local
    return run if size % local == 0 and count % run == 0 else 0

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    row_weights = self.weights(inputs, group)
    valid = row_weights > 0
    mined = self.mine(inputs, group, valid)
    context_index = mined["context_index"].astype(jnp.int32)
    texts, exists = self._pairs(inputs, group, mined, valid)
    logits = self._logits(inputs, group, texts, context_index)
    true = (jnp.arange(logits.shape[1]) == 0).astype(jnp.int32)
    labels = jnp.broadcast_to(true[None], logits.shape[:2])
    values, correct = token_cross_entropy(logits, labels)
    counted = exists.astype(values.dtype)
    weight = pair_weights(counted, balanced=self.config.balanced)
    per_row = (values * weight).sum(axis=1)
    correct, counted = (x.astype(jnp.float32) for x in (correct, counted))
    return Output(
      values=per_row,
      weights=row_weights,
      metrics={
        "accuracy": weighted_mean(correct, counted),
        "accuracy_positive": weighted_mean(correct[:, 0], counted[:, 0]),
        "accuracy_negative": weighted_mean(correct[:, 1:], counted[:, 1:]),
      },
      aux={
        "context_index": context_index,
        "text_index": mined["text_index"].astype(jnp.int32),
      },
    )

  def _pairs(
    self,
    inputs: Inputs,
    group: str,
    mined: Mapping[str, Array],
    valid: Bool[Array, " B"],
  ) -> tuple[Int[Array, "B pairs L"], Bool[Array, "B pairs"]]:
    """Texts of the pairs of each row, and which pairs exist.

    The row's own text, the mined one and the explicit negatives are matched
    with the row's context; the row's own text again, last, with the mined one.
    """
    ids = inputs.text[group].ids
    texts = [ids, mined["text_ids"]]
    exists = [valid, valid & mined["has_text"]]
    explicit = inputs.batch.get("negative_text", {}).get(group)
    if explicit is not None and self.config.explicit_negatives:
      for k in range(explicit.shape[1]):
        texts.append(explicit[:, k])
        exists.append(valid & (inputs.text_weight(explicit[:, k]) > 0))
    texts.append(ids)
    exists.append(valid & mined["has_context"])
    return jnp.stack(texts, axis=1), jnp.stack(exists, axis=1)

  def _logits(
    self,
    inputs: Inputs,
    group: str,
    texts: Int[Array, "B pairs L"],
    context_index: Int[Array, " B"],
  ) -> Float[Array, "B pairs 2"]:
    """Logits of all pairs; the last one is with the mined context."""
    rows, pairs, length = texts.shape
    context = inputs.contexts[letters(group)]
    mined = context.take(
      context_index,
      partition=inputs.partition,
      run=self._parts_of_group(rows, parts(inputs.partition)),
    )
    keys = inputs.dropout_keys(f"matching/{group}")
    flat = texts.reshape(rows * pairs, length)
    hidden = inputs.model.text(
      inputs.params,
      flat,
      context=(context, mined),
      uses=(pairs - 1, 1),
      row_keys=None if keys is None else rng.expand(keys, pairs),
      train=inputs.train,
    )
    logits = inputs.model.matching_logits(inputs.params, hidden, flat)
    return logits.reshape(rows, pairs, 2)


def pair_weights(
  exists: Float[Array, "B pairs"], *, balanced: bool
) -> Float[Array, "B pairs"]:
  """Weights of the pairs of each row, with the sum 1 (0 where none exists).

  Args:
    exists: 1 for pairs that there are, else 0; the true pair first.
    balanced: the true pair weighs as much as all false ones together; else all
      pairs weigh the same (VAST, arXiv:2305.18500).
  """
  weight = exists
  if balanced:
    false = exists[:, 1:].sum(axis=1, keepdims=True)
    true = exists[:, :1] * jnp.maximum(false, 1)
    weight = jnp.concatenate([true, exists[:, 1:]], axis=1)
  return weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1)
