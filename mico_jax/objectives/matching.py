"""Matching objective (ITM) with mined hard negatives.

Negatives of row i are drawn from the same mining group of consecutive global
rows, with probability softmax(similarity) + floor; the row itself, rows that
take no part and rows with an identical text are excluded. Each draw is keyed
by (seed, step, global row), so mined indices depend on neither devices nor
micro-batches. The context's keys and values come from the step, projected
once, and are gathered for the negatives.

Departures from the release: identical texts are never each other's negatives
(`exclude_identical_texts=False` restores the original), explicit negatives of
the batch are further pairs (`explicit_negatives`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mico_jax.config import MatchingConfig
from mico_jax.kernels.cross_entropy import token_cross_entropy
from mico_jax.modalities import letters
from mico_jax.objectives import draws
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)


def mining_weights(
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  *,
  temperature: Float[Array, ""],
  valid: Bool[Array, " B"],
  fingerprint: UInt32[Array, "B 2"] | None = None,
  group_rows: int = 0,
  floor: float = 1e-4,
) -> Float[Array, "G N N"]:
  """Unnormalised probabilities of drawing key j as a negative of query i.

  Args:
    query: unit-norm embeddings.
    key: unit-norm embeddings of the other side.
    temperature: divides the similarities.
    valid: rows that take part.
    fingerprint: texts with equal fingerprints exclude each other; None: only
      the row itself is excluded.
    group_rows: N consecutive global rows form a mining group; 0: all rows.
    floor: added to the softmax, so that every candidate has a chance.

  Raises:
    ValueError: if `group_rows` does not divide the batch.
  """
  rows = query.shape[0]
  size = group_rows or rows
  if rows % size:
    raise ValueError(
      f"{group_rows=} must divide the global batch of {rows} rows; set "
      "config.objectives.matching.group_rows."
    )
  split = lambda x: x.reshape(rows // size, size, *x.shape[1:])
  query = split(query.astype(jnp.float32))
  key = split(key.astype(jnp.float32))
  logits = jnp.einsum("gne,gme->gnm", query, key)
  logits = logits / temperature.astype(jnp.float32)
  candidate = split(valid)[:, None, :]
  logits = jnp.where(candidate, logits, jnp.asarray(-1e30, jnp.float32))
  excluded = jnp.eye(size, dtype=bool)[None]
  if fingerprint is not None:
    prints = split(fingerprint)
    same = prints[:, :, None, :] == prints[:, None, :, :]
    excluded = excluded | jnp.all(same, axis=-1)
  weights = jax.nn.softmax(logits, axis=-1) + floor
  return jnp.where(candidate & ~excluded, weights, jnp.zeros_like(weights))


def draw_negatives(
  keys: Key[Array, " B"], weights: Float[Array, "G N N"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
  """Draws one row per query in proportion to `weights` (Gumbel trick).

  Returns:
    (index into the global batch, whether there was any candidate).
  """
  groups, size, _ = weights.shape
  noise = jax.vmap(lambda k: jax.random.gumbel(k, (size,)))(keys)
  positive = weights > 0
  scores = jnp.log(jnp.where(positive, weights, jnp.ones_like(weights)))
  scores = scores + noise.reshape(groups, size, size)
  scores = jnp.where(positive, scores, jnp.asarray(-jnp.inf, scores.dtype))
  index = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  start = jnp.arange(groups, dtype=jnp.int32)[:, None] * size
  return (index + start).reshape(-1), positive.any(axis=-1).reshape(-1)


@dataclass(frozen=True)
class Matching(Objective):
  """Does this text belong to this context? Two logits from token 0.

  Per row: (text, context) against (text, mined context), (mined text, context)
  and (explicit negative, context) for each explicit negative; the value is the
  mean over the row's pairs.

  Source: mico.md section 3; ALBEF, arXiv:2107.07651, section 3.2.
  """

  config: MatchingConfig = field(default_factory=MatchingConfig)
  name: ClassVar[str] = "matching"
  needs: ClassVar[frozenset[Need]] = frozenset({"features", "text", "context"})

  def mine(
    self, inputs: Inputs, group: str, valid: Bool[Array, " B"]
  ) -> dict[str, Array]:
    """Indices of the negatives and whether each row has any."""
    slot, options = inputs.text[group], self.config
    given = inputs.given(self.name, group)
    if given:
      everyone = jnp.ones_like(valid)
      return {"has_context": everyone, "has_text": everyone, **given}
    text = jax.lax.stop_gradient(slot.feature)
    context = jax.lax.stop_gradient(inputs.features[letters(group)])
    shared = options.exclude_identical_texts
    rules = dict(
      temperature=jax.lax.stop_gradient(
        inputs.model.temperature(inputs.params)
      ),
      valid=valid,
      fingerprint=slot.fingerprint if shared else None,
      group_rows=options.group_rows,
      floor=options.floor,
    )
    site = f"matching/{group}"
    for_context = mining_weights(text, context, **rules)
    for_text = mining_weights(context, text, **rules)
    context_index, has_context = draw_negatives(
      inputs.keys(f"{site}/context"), for_context
    )
    text_index, has_text = draw_negatives(inputs.keys(f"{site}/text"), for_text)
    return {
      "context_index": context_index,
      "text_index": text_index,
      "has_context": has_context,
      "has_text": has_text,
    }

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    ids = inputs.text[group].ids
    rows, length = ids.shape
    row_weights = inputs.row_weight(group) * inputs.text_weight(ids)
    valid = row_weights > 0
    mined = self.mine(inputs, group, valid)

    # [B, pairs]: positive, mined context, mined text, explicit negatives.
    own = jnp.arange(rows, dtype=jnp.int32)
    context_index = mined["context_index"].astype(jnp.int32)
    contexts = [own, context_index, own]
    texts = [ids, ids, ids[mined["text_index"]]]
    exists = [valid, valid & mined["has_context"], valid & mined["has_text"]]
    explicit = inputs.batch.get("negative_text", {}).get(group)
    if explicit is not None and self.config.explicit_negatives:
      for k in range(explicit.shape[1]):
        contexts.append(own)
        texts.append(explicit[:, k])
        exists.append(valid & (inputs.text_weight(explicit[:, k]) > 0))
    pairs = len(texts)
    keys = inputs.dropout_keys(f"matching/{group}")
    hidden = inputs.model.text(
      inputs.params,
      jnp.stack(texts, axis=1).reshape(rows * pairs, length),
      context=inputs.contexts[letters(group)].take(
        jnp.stack(contexts, axis=1).reshape(-1)
      ),
      row_keys=None if keys is None else draws.expand(keys, pairs),
      train=inputs.train,
    )
    logits = inputs.model.matching_logits(inputs.params, hidden)
    logits = logits.reshape(rows, pairs, 2)
    labels = jnp.broadcast_to(
      (jnp.arange(pairs, dtype=jnp.int32) == 0).astype(jnp.int32)[None, :],
      (rows, pairs),
    )
    values, correct = token_cross_entropy(logits, labels)
    counted = jnp.stack(exists, axis=1).astype(values.dtype)
    count = counted.sum(axis=1)
    per_row = (values * counted).sum(axis=1) / jnp.maximum(count, 1)
    correct = correct.astype(jnp.float32)
    counted = counted.astype(jnp.float32)
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
