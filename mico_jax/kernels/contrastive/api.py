"""Entry point of the contrastive loss: one signature, several backends.

  xla      the whole [B, B] matrix; the compiler splits it over a mesh
  chunked  blocks of columns, gathered from a few rows of every device at a time
  ring     blocks of columns, sent around the devices

The last two hold one block at a time and compute both directions at once, see
`mico_jax.kernels.contrastive.blockwise`. All give the same values and
gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from mico_jax.kernels import target
from mico_jax.kernels.batch_sharding import BatchSharding, parts
from mico_jax.kernels.contrastive import blocks, blockwise, xla
from mico_jax.kernels.dtypes import accumulation_dtype

FORMS = ("softmax", "sigmoid")
MATRIX_BYTES = 64 * 2**20  # largest matrix for which one device uses "xla"
BLOCK_BYTES = 32 * 2**20  # largest block of scores of an automatic chunk
MAX_CHUNK = 8192  # most columns of an automatic chunk


class Pair(NamedTuple):
  """Both directions of the loss.

  Attributes:
    to_key: loss of each query against all keys, in nats.
    to_query: loss of each key against all queries, in nats.
    key_hit: whether the most similar key of each query is a positive.
    query_hit: whether the most similar query of each key is a positive.
  """

  to_key: Float[Array, " B"]
  to_query: Float[Array, " B"]
  key_hit: Bool[Array, " B"]
  query_hit: Bool[Array, " B"]


@dataclass(frozen=True)
class Options:
  """Arguments of `contrastive_pair` that every backend reads."""

  temperature: Float[Array, ""]
  bias: Float[Array, ""] | None
  form: str
  label_smoothing: float
  fingerprint: UInt32[Array, "B 2"] | None
  valid: Bool[Array, " B"] | None
  detach: bool
  negatives: Float[Array, "B K E"] | None
  negatives_valid: Bool[Array, "B K"] | None
  chunk: int
  partition: BatchSharding | None


def _xla(
  query: Float[Array, "B E"], key: Float[Array, "B E"], options: Options
) -> Pair:
  shared: dict[str, Any] = {
    "temperature": options.temperature,
    "bias": options.bias,
    "sigmoid": options.form == "sigmoid",
    "label_smoothing": options.label_smoothing,
    "fingerprint": options.fingerprint,
    "valid": options.valid,
    "detach_keys": options.detach,
  }
  to_key, key_hit = xla.loss(
    query,
    key,
    negatives=options.negatives,
    negatives_valid=options.negatives_valid,
    **shared,
  )
  to_query, query_hit = xla.loss(key, query, **shared)
  return Pair(to_key, to_query, key_hit, query_hit)


def _mean_score(
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  x: blockwise.Operands,
  detach: bool,
) -> Float[Array, " B"]:
  """Mean score of each query over the valid keys."""
  dtype = x.temperature.dtype
  query, key = query.astype(dtype), key.astype(dtype)
  if detach:
    key = jax.lax.stop_gradient(key)
  weight = x.valid.astype(dtype)
  mean = (key * weight[:, None]).sum(axis=0) / jnp.maximum(weight.sum(), 1)
  product = jnp.matmul(query, mean, precision=jax.lax.Precision.HIGHEST)
  return product / x.temperature + x.bias


def _with_negatives(
  half: blockwise.Half,
  query: Float[Array, "B E"],
  x: blockwise.Operands,
  options: Options,
) -> blockwise.Half:
  """Adds each query's explicit negatives to the direction of the queries."""
  if options.negatives is None:
    return half
  dtype = x.temperature.dtype
  product = jnp.einsum(
    "be,bke->bk",
    query.astype(dtype),
    options.negatives.astype(dtype),
    precision=jax.lax.Precision.HIGHEST,
  )
  extra = product / x.temperature + x.bias
  if options.negatives_valid is not None:
    nothing = jnp.asarray(blocks.NEGATIVE, dtype)
    extra = jnp.where(options.negatives_valid, extra, nothing)
  if options.form == "softmax":
    beyond = jax.nn.logsumexp(extra - half.positive[:, None], axis=1)
    gap = jnp.logaddexp(half.gap, beyond)
  else:
    gap = half.gap + jax.nn.softplus(extra).sum(axis=1)
  best = jax.lax.stop_gradient(extra.max(axis=1))
  beaten = best > half.peak
  hit = jnp.where(beaten, jnp.zeros_like(half.hit), half.hit)
  return half._replace(gap=gap, hit=hit)


def _blockwise(
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  options: Options,
  *,
  ring: bool,
) -> Pair:
  form = blocks.Form(
    kind=options.form,
    shared=options.fingerprint is not None,
    detach=options.detach,
    chunk=options.chunk,
    ring=ring,
    partition=options.partition if parts(options.partition) > 1 else None,
  )
  x = blockwise.operands(
    query,
    key,
    options.temperature,
    options.bias,
    options.valid,
    options.fingerprint,
  )
  row, column = blockwise.halves(form, x)
  row = _with_negatives(row, query, x, options)
  smoothing = options.label_smoothing
  values = []
  for half, side, other in ((row, query, key), (column, key, query)):
    value = half.gap
    if smoothing:
      mean = _mean_score(side, other, x, options.detach)
      value = value + smoothing * (half.positive - mean)
    values.append(jnp.where(x.valid, value, jnp.zeros_like(value)))
  hits = [(half.hit > 0) & x.valid for half in (row, column)]
  return Pair(*values, *hits)


BACKENDS: dict[str, Callable[[Array, Array, Options], Pair]] = {
  "xla": _xla,
  "chunked": functools.partial(_blockwise, ring=False),
  "ring": functools.partial(_blockwise, ring=True),
}


def _refusal(name: str, rows: int, partition: BatchSharding | None) -> str:
  """The reason why a backend does not support the batch; "": it does."""
  count = parts(partition)
  if name != "xla" and rows % count:
    return f"{rows} rows do not divide over {count} devices"
  return ""


def _choose(
  backend: str, rows: int, dtype: Any, partition: BatchSharding | None
) -> tuple[str, str]:
  """The backend and the reason for it.

  Raises:
    ValueError: for an unknown backend.
    NotImplementedError: if the named backend does not support the batch.
  """
  if backend != "auto":
    if backend not in BACKENDS:
      raise ValueError(
        f"unknown contrastive {backend=}; known: auto, {', '.join(BACKENDS)}."
      )
    reason = _refusal(backend, rows, partition)
    if reason:
      raise NotImplementedError(f"contrastive loss: not {backend}: {reason}.")
    return backend, "named"
  count = parts(partition)
  size = rows * rows * accumulation_dtype(dtype).itemsize
  if count == 1 and size <= MATRIX_BYTES:
    return "xla", f"one device, a matrix of {size / 2**20:.1f} MiB"
  reason = _refusal("chunked", rows, partition)
  if reason:
    return "xla", f"not chunked: {reason}"
  if count == 1:
    return "chunked", f"not xla: a matrix of {size / 2**20:.0f} MiB"
  return "chunked", f"{count} devices; not xla: it gathers a whole side"


def automatic_chunk(rows: int, partition: BatchSharding | None) -> int:
  """Number of columns that keeps a block of scores within `BLOCK_BYTES`."""
  local = max(rows // parts(partition), 1)
  return max(min(BLOCK_BYTES // (4 * local), MAX_CHUNK), parts(partition))


def _columns(
  name: str, rows: int, chunk: int, partition: BatchSharding | None
) -> tuple[str, str]:
  """Log text: the columns of a block, and why they are fewer than `chunk`."""
  if name == "xla":
    return "", ""
  count, ring = parts(partition), name == "ring"
  local = rows // count
  size = blockwise.slice_size(chunk, local, count, ring=ring)
  columns = size if ring else size * count
  remark = ""
  if 2 * columns < chunk:
    remark = f"; not {chunk}: {local} rows of a device divide no better"
  return f", {columns} columns at a time", remark


def _check(
  query: Float[Array, "..."],
  key: Float[Array, "..."],
  form: str,
  smoothing: float,
  chunk: int,
) -> None:
  if query.shape != key.shape:
    raise ValueError(
      f"{query.shape=} and {key.shape=} differ; both sides of a contrastive "
      "pair need the same batch and embedding width."
    )
  if not 0 <= smoothing < 1:
    raise ValueError(f"label_smoothing={smoothing} must lie in [0, 1).")
  if form not in FORMS:
    raise ValueError(f"{form=} is not one of {', '.join(FORMS)}.")
  if chunk < 0:
    raise ValueError(f"{chunk=} must be a number of columns, or 0: automatic.")


def contrastive_pair(
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  *,
  temperature: Float[Array, ""],
  bias: Float[Array, ""] | None = None,
  form: str = "softmax",
  label_smoothing: float = 0.0,
  fingerprint: UInt32[Array, "B 2"] | None = None,
  valid: Bool[Array, " B"] | None = None,
  detach: bool = False,
  negatives: Float[Array, "B K E"] | None = None,
  negatives_valid: Bool[Array, "B K"] | None = None,
  partition: BatchSharding | None = None,
  chunk: int = 0,
  dtype: str = "",
  backend: str = "auto",
) -> Pair:
  """Both directions of the contrastive loss over the global batch.

  The softmax loss of a row is its cross-entropy against all rows of the other
  side, the sigmoid loss the sum of binary cross-entropies over them. Label
  smoothing e multiplies the target of each pair by (1 - e) and adds e divided
  by the number of valid rows.

  Args:
    query: unit-norm embeddings; row i pairs with row i of `key`.
    key: unit-norm embeddings.
    temperature: divides the similarities; positive, learnable.
    bias: added to the scaled similarities; only for "sigmoid".
    form: "softmax" or "sigmoid".
    label_smoothing: target mass moved from the positives to all rows, in
      [0, 1).
    fingerprint: rows of equal fingerprint are positives of each other and share
      the target mass (sigmoid: each is a positive); None: row i of `query` and
      row i of `key` are the only positives.
    valid: rows that take part; the others are in no sum and have value 0.
      None: all.
    detach: the loss of queries has no gradient with respect to keys and vice
      versa, as in the official code, which gathers the other side without
      gradient.
    negatives: additional unit-norm keys of query i alone, never a target.
    negatives_valid: which of `negatives` exist; None: all.
    partition: sharding of the rows over a mesh; None: the compiler decides.
    chunk: columns of a block of "chunked" and "ring"; 0: automatic.
    dtype: embeddings are rounded to it before they are sent and compared; "":
      they are not rounded.
    backend: "auto" or a key of `BACKENDS`.

  Raises:
    ValueError: for shapes, numbers or names that do not fit.
    NotImplementedError: if the named backend does not support the batch.

  Source: CLIP, arXiv:2103.00020, figure 3; SigLIP, arXiv:2303.15343, section
  3; the official MiCo code smooths by 0.1 and detaches the gathered side.
  """
  _check(query, key, form, label_smoothing, chunk)
  if dtype:
    query, key = query.astype(dtype), key.astype(dtype)
  rows = query.shape[0]
  name, reason = _choose(backend, rows, query.dtype, partition)
  chunk = min(chunk or automatic_chunk(rows, partition), rows)
  columns, remark = _columns(name, rows, chunk, partition)
  target.log_once(
    __name__,
    f"contrastive loss ({form}): {name}{columns} ({reason}{remark})",
  )
  options = Options(
    temperature=temperature,
    bias=bias if form == "sigmoid" else None,
    form=form,
    label_smoothing=label_smoothing,
    fingerprint=fingerprint,
    valid=valid,
    detach=detach,
    negatives=negatives,
    negatives_valid=negatives_valid,
    chunk=chunk,
    partition=partition,
  )
  return BACKENDS[name](query, key, options)
