"""The arithmetic of one block of the similarity matrix, for both directions.

A block is a few rows against a few columns. Its statistics merge with those of
other blocks, in any order and on any device, so the matrix is never held:

  softmax   gap = log(sum exp(x)) - mean of x over the row's true columns,
            from a running maximum and a sum relative to it
  sigmoid   gap = sum of softplus(x) - sum of x over the true columns

`positive` is that mean (softmax) or sum (sigmoid). Both directions of the loss
come from the same block: rows against columns, and columns against rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mico_jax.kernels.batch_sharding import BatchSharding

NEGATIVE = -1e30  # in place of -inf: keeps gradients of masked entries finite
NOWHERE = 2**31 - 1  # column of a row without any


@dataclass(frozen=True)
class Form:
  """What does not change while a loss is computed; hashable.

  Attributes:
    kind: "softmax" or "sigmoid".
    shared: equal fingerprints are true pairs, not only equal rows.
    detach: each direction passes gradient to its own side only.
    chunk: columns of a block at most.
    ring: blocks travel from device to device; else they are gathered.
    partition: of the rows; None: one device.
  """

  kind: str
  shared: bool
  detach: bool
  chunk: int
  ring: bool
  partition: BatchSharding | None


class Side(NamedTuple):
  """Statistics of rows over the columns seen so far, or the reverse.

  Attributes:
    peak: largest score.
    total: sum of exp(score - peak), or the sigmoid form's gap.
    positive: sum of the scores of true columns.
    count: how many they are.
    place: global index of the first column that reaches the peak.
    hit: 1 if that column is a true one.
  """

  peak: Float[Array, " B"]
  total: Float[Array, " B"]
  positive: Float[Array, " B"]
  count: Float[Array, " B"]
  place: Int[Array, " B"]
  hit: Float[Array, " B"]


class Pull(NamedTuple):
  """What the gradient needs of each row, or of each column.

  Attributes:
    peak: largest score.
    log_total: log of the sum relative to it.
    gap: cotangent of the gap.
    positive: cotangent of each true score.
  """

  peak: Float[Array, " B"]
  log_total: Float[Array, " B"]
  gap: Float[Array, " B"]
  positive: Float[Array, " B"]


class Labels(NamedTuple):
  """What decides which pairs are true and which count.

  Attributes:
    index: global row.
    valid: false where the row takes no part.
    prints: fingerprints; unread unless the form shares.
  """

  index: Int[Array, " B"]
  valid: Bool[Array, " B"]
  prints: UInt32[Array, "B 2"]


def empty(rows: int, dtype: jnp.dtype) -> Side:
  """The statistics before the first block."""
  zero = jnp.zeros((rows,), dtype)
  return Side(
    peak=jnp.full((rows,), NEGATIVE, dtype),
    total=zero,
    positive=zero,
    count=zero,
    place=jnp.full((rows,), NOWHERE, jnp.int32),
    hit=zero,
  )


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision | None:
  """Of products of embeddings: a matrix unit would round float32 on its way."""
  low = jnp.dtype(dtype).itemsize < 4
  return None if low else jax.lax.Precision.HIGHEST


def scores(
  query: Float[Array, "B E"],
  key: Float[Array, "C E"],
  temperature: Float[Array, ""],
  bias: Float[Array, ""],
) -> Float[Array, "B C"]:
  """Scaled similarities in the dtype of the temperature."""
  product = jnp.einsum(
    "be,ce->bc",
    query,
    key,
    precision=precision_of(key.dtype),
    preferred_element_type=temperature.dtype,
  )
  return product / temperature + bias


def masks(
  rows: Labels, columns: Labels, *, shared: bool
) -> tuple[Bool[Array, "B C"], Bool[Array, "B C"]]:
  """(pairs that count, true pairs among them)."""
  allowed = rows.valid[:, None] & columns.valid[None, :]
  if shared:
    equal = rows.prints[:, None, :] == columns.prints[None, :, :]
    same = jnp.all(equal, axis=-1)
  else:
    same = rows.index[:, None] == columns.index[None, :]
  return allowed, same & allowed


def _side(
  form: Form,
  x: Float[Array, "B C"],
  allowed: Bool[Array, "B C"],
  same: Bool[Array, "B C"],
  places: Int[Array, " C"],
) -> Side:
  """Statistics along the last axis."""
  zero = jnp.zeros((), x.dtype)
  masked = jnp.where(allowed, x, jnp.asarray(NEGATIVE, x.dtype))
  best = jnp.argmax(masked, axis=1)
  peak = masked.max(axis=1)
  if form.kind == "softmax":
    terms = jnp.exp(masked - peak[:, None])
  else:
    terms = jax.nn.softplus(jnp.where(same, -x, x))
  hit = jnp.take_along_axis(same, best[:, None], axis=1)[:, 0]
  return Side(
    peak=peak,
    total=jnp.where(allowed, terms, zero).sum(axis=1),
    positive=jnp.where(same, x, zero).sum(axis=1),
    count=same.sum(axis=1).astype(x.dtype),
    place=jnp.where(allowed.any(axis=1), places[best], NOWHERE),
    hit=hit.astype(x.dtype),
  )


def forward(
  form: Form,
  x: Float[Array, "B C"],
  rows: Labels,
  columns: Labels,
) -> tuple[Side, Side]:
  """Statistics of the rows and of the columns of one block of scores."""
  allowed, same = masks(rows, columns, shared=form.shared)
  return (
    _side(form, x, allowed, same, columns.index),
    _side(form, x.T, allowed.T, same.T, rows.index),
  )


def merge(form: Form, a: Side, b: Side) -> Side:
  """Statistics over the columns of both."""
  peak = jnp.maximum(a.peak, b.peak)
  total = a.total + b.total
  if form.kind == "softmax":
    total = a.total * jnp.exp(a.peak - peak)
    total = total + b.total * jnp.exp(b.peak - peak)
  first = (a.peak > b.peak) | ((a.peak == b.peak) & (a.place < b.place))
  return Side(
    peak=peak,
    total=total,
    positive=a.positive + b.positive,
    count=a.count + b.count,
    place=jnp.where(first, a.place, b.place),
    hit=jnp.where(first, a.hit, b.hit),
  )


def log_total(side: Side) -> Float[Array, " B"]:
  """Log of the sum relative to the peak; 0 for a row without columns."""
  some = side.total > 0
  return jnp.log(jnp.where(some, side.total, jnp.ones_like(side.total)))


def finish(
  form: Form, side: Side
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
  """(gap, positive) of each row; 0 for rows that take no part."""
  zero = jnp.zeros_like(side.total)
  there = side.count > 0
  if form.kind == "sigmoid":
    return jnp.where(there, side.total, zero), side.positive
  positive = side.positive / jnp.maximum(side.count, 1)
  gap = (side.peak - positive) + log_total(side)
  return jnp.where(there, gap, zero), positive


def pull(
  form: Form,
  side: Side,
  gap: Float[Array, " B"],
  positive: Float[Array, " B"],
) -> Pull:
  """From cotangents of `finish` to what `backward` reads."""
  zero = jnp.zeros_like(gap)
  gap = jnp.where(side.count > 0, gap, zero)
  each = positive - gap
  if form.kind == "softmax":
    each = each / jnp.maximum(side.count, 1)
  return Pull(side.peak, log_total(side), gap, each)


def backward(
  form: Form,
  x: Float[Array, "B C"],
  rows: tuple[Labels, Pull],
  columns: tuple[Labels, Pull],
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
  """Cotangents of the scores from the rows' loss and from the columns'."""
  (row_labels, row), (column_labels, column) = rows, columns
  allowed, same = masks(row_labels, column_labels, shared=form.shared)
  if form.kind == "softmax":
    to_row = jnp.exp(x - row.peak[:, None] - row.log_total[:, None])
    to_column = jnp.exp(x - column.peak[None] - column.log_total[None])
  else:
    to_row = to_column = jax.nn.sigmoid(x)
  zero = jnp.zeros((), x.dtype)
  part = lambda weight, probability, own: (
    jnp.where(allowed, weight * probability, zero) + jnp.where(same, own, zero)
  )
  return (
    part(row.gap[:, None], to_row, row.positive[:, None]),
    part(column.gap[None], to_column, column.positive[None]),
  )
