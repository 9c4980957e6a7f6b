"""The contrastive loss of one block of the similarity matrix.

A block is a few rows against a few columns. Its statistics merge with those of
other blocks, in any order and on any device, so the matrix is never stored:

  softmax   gap = log(sum exp(x)) - mean of x over the row's positives,
            from a running maximum and a sum relative to it
  sigmoid   gap = sum of softplus(x) - sum of x over the positives

`positive` is that mean (softmax) or sum (sigmoid). Both directions of the loss,
rows against columns and columns against rows, come from the same block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mico_jax.kernels.batch_sharding import BatchSharding

NEGATIVE = -1e30  # in place of -inf: keeps gradients of masked entries finite
NOWHERE = 2**31 - 1  # `Side.place` of a row without valid columns


@dataclass(frozen=True)
class Form:
  """Static arguments of the loss; hashable.

  Attributes:
    kind: "softmax" or "sigmoid".
    shared: rows of equal fingerprint are positives of each other; else only
      equal rows are.
    detach: each direction has no gradient with respect to the other side.
    chunk: most columns of a block.
    ring: blocks are sent from device to device; else they are gathered.
    partition: sharding of the rows; None: one device.
  """

  kind: str
  shared: bool
  detach: bool
  chunk: int
  ring: bool
  partition: BatchSharding | None


class Side(NamedTuple):
  """Statistics of rows over the columns seen so far, or of columns over rows.

  Attributes:
    peak: largest score.
    total: sum of exp(score - peak); of the sigmoid form its gap.
    positive: sum of the scores of positives.
    count: number of positives.
    place: global index of the first column that reaches the peak.
    hit: 1 if that column is a positive.
  """

  peak: Float[Array, " B"]
  total: Float[Array, " B"]
  positive: Float[Array, " B"]
  count: Float[Array, " B"]
  place: Int[Array, " B"]
  hit: Float[Array, " B"]


class Pull(NamedTuple):
  """Statistics of each row, or of each column, that the gradient needs.

  Attributes:
    peak: largest score.
    log_total: log of the sum relative to the peak.
    gap: cotangent of the gap.
    positive: cotangent of the score of each positive.
  """

  peak: Float[Array, " B"]
  log_total: Float[Array, " B"]
  gap: Float[Array, " B"]
  positive: Float[Array, " B"]


class Labels(NamedTuple):
  """Arrays that decide which pairs are positives and which count.

  Attributes:
    index: global row.
    valid: false where the row takes no part.
    hashes: fingerprints; only used if `Form.shared`.
  """

  index: Int[Array, " B"]
  valid: Bool[Array, " B"]
  hashes: UInt32[Array, "B 2"]


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
  """Precision of products of embeddings: full unless they are 16-bit floats.

  By default a matrix unit would round float32 inputs.
  """
  low = jnp.dtype(dtype).itemsize < 4
  return None if low else jax.lax.Precision.HIGHEST


def scores(
  query: Float[Array, "B E"],
  key: Float[Array, "C E"],
  temperature: Float[Array, ""],
  bias: Float[Array, ""],
) -> Float[Array, "B C"]:
  """Scaled and shifted similarities, in the dtype of the temperature."""
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
  """Masks of the pairs that count, and of the positives among them."""
  allowed = rows.valid[:, None] & columns.valid[None, :]
  if shared:
    equal = rows.hashes[:, None, :] == columns.hashes[None, :, :]
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
  """Statistics over the columns of `a` and `b` together."""
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
  """Log of the sum relative to the peak; 0 for a row without valid columns."""
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
  """Input of `backward` from the cotangents of `finish`."""
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
  """Cotangents of the scores from the losses of rows and of columns."""
  (row_labels, row), (column_labels, column) = rows, columns
  allowed, same = masks(row_labels, column_labels, shared=form.shared)
  if form.kind == "softmax":
    to_row = jnp.exp(x - row.peak[:, None] - row.log_total[:, None])
    to_column = jnp.exp(x - column.peak[None] - column.log_total[None])
  else:
    to_row = to_column = jax.nn.sigmoid(x)
  zero = jnp.zeros((), x.dtype)
  part = lambda weight, probability, positive: (
    jnp.where(allowed, weight * probability, zero)
    + jnp.where(same, positive, zero)
  )
  return (
    part(row.gap[:, None], to_row, row.positive[:, None]),
    part(column.gap[None], to_column, column.positive[None]),
  )
