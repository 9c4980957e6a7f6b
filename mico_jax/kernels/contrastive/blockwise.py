"""Both directions of the contrastive loss without the similarity matrix.

There are two ways to compare the rows of one side with those of the other, each
with a custom gradient, so that nothing of size [rows, global batch] is stored:

  chunked  a few rows of every device are gathered, used and dropped; the
           statistics of their columns, and their gradients, return to the
           devices of the rows by psum_scatter
  ring     the block of one device is sent around all devices, together with
           its statistics or its gradient

On one device both are a loop over columns. A device holds its rows, one block
of columns and one block of scores: O(rows x chunk) for any global batch. With a
chunk of the whole batch "chunked" is the usual single gather. SigLIP
(arXiv:2303.15343, section 3.3) sends blocks around devices likewise.

Softmax uses a running maximum: similarities are divided by the temperature, and
with a fixed maximum float32 would underflow below a temperature of about 0.023.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, UInt32

from mico_jax.kernels.batch_sharding import parts, split_rows
from mico_jax.kernels.contrastive import blocks
from mico_jax.kernels.contrastive.blocks import Form, Labels, Pull, Side
from mico_jax.kernels.dtypes import accumulation_dtype

Body = Callable[[Any, Any], tuple[Any, Any]]


class Half(NamedTuple):
  """One direction of the loss.

  Attributes:
    gap: see `blocks`.
    positive: mean (softmax) or sum (sigmoid) of the scores of positives.
    peak: largest score.
    hit: 1 if the column of the largest score is a positive.
  """

  gap: Float[Array, " B"]
  positive: Float[Array, " B"]
  peak: Float[Array, " B"]
  hit: Float[Array, " B"]


class Operands(NamedTuple):
  """Rows of both sides, and the scalars that scale their products."""

  query: Float[Array, "B E"]
  key: Float[Array, "B E"]
  temperature: Float[Array, ""]
  bias: Float[Array, ""]
  valid: Bool[Array, " B"]
  hashes: UInt32[Array, "B 2"]


def _place(form: Form) -> Int[Array, ""]:
  """Index of this device among those that share the rows."""
  if form.partition is None:
    return jnp.zeros((), jnp.int32)
  return jax.lax.axis_index(form.partition.axes).astype(jnp.int32)


def _labels(form: Form, x: Operands) -> Labels:
  rows = x.query.shape[0]
  index = _place(form) * rows + jnp.arange(rows, dtype=jnp.int32)
  return Labels(index, x.valid, x.hashes)


def _cut(tree: Any, size: int) -> Any:
  """Splits rows [B, ...] into [B / size, size, ...]."""
  return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)


def _join(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _sum(form: Form, x: Float[Array, ""]) -> Float[Array, ""]:
  if form.partition is None:
    return x
  return jax.lax.psum(x, form.partition.axes)


# -------------------------------------------------------------------- gathering
def _gather(form: Form, tree: Any) -> Any:
  """Concatenates the slices of all devices."""
  if form.partition is None:
    return tree
  names = form.partition.axes
  return jax.tree.map(
    lambda x: jax.lax.all_gather(x, names, axis=0, tiled=True), tree
  )


def _scatter(form: Form, x: Float[Array, "C D"]) -> Float[Array, "B D"]:
  """Sums over devices; each device gets the sum of its slice."""
  if form.partition is None:
    return x
  names = form.partition.axes
  return jax.lax.psum_scatter(x, names, scatter_dimension=0, tiled=True)


def _merge_devices(form: Form, side: Side) -> Side:
  """Merges statistics of gathered columns over devices, then splits them."""
  if form.partition is None:
    return side
  names = form.partition.axes
  peak = jax.lax.pmax(side.peak, names)
  total = side.total
  if form.kind == "softmax":
    total = total * jnp.exp(side.peak - peak)
  nowhere = jnp.asarray(blocks.NOWHERE, jnp.int32)
  place = jax.lax.pmin(jnp.where(side.peak == peak, side.place, nowhere), names)
  first = (side.place == place) & (place < nowhere)
  hit = jnp.where(first, side.hit, jnp.zeros_like(side.hit))
  packed = jnp.stack([total, side.positive, side.count, hit], axis=1)
  total, positive, count, hit = _scatter(form, packed).T
  start = _place(form) * total.shape[0]
  local = lambda x: jax.lax.dynamic_slice_in_dim(x, start, total.shape[0])
  return Side(local(peak), total, positive, count, local(place), hit)


def slice_size(chunk: int, rows: int, count: int, *, ring: bool) -> int:
  """Number of rows that a device contributes to a block, a divisor of `rows`.

  Args:
    chunk: most columns of a block.
    rows: of a device.
    count: number of devices.
    ring: a block has rows of one device; else of all devices.
  """
  return split_rows(rows, chunk if ring else chunk // count)


def _slice_size(form: Form, rows: int) -> int:
  count = parts(form.partition)
  return slice_size(form.chunk, rows, count, ring=form.ring)


def _chunked_forward(form: Form, x: Operands) -> tuple[Side, Side]:
  labels = _labels(form, x)
  size = _slice_size(form, x.query.shape[0])

  def body(row: Side, cut: Any) -> tuple[Side, Side]:
    key, columns = _gather(form, cut)
    score = blocks.scores(x.query, key, x.temperature, x.bias)
    row_part, column = blocks.forward(form, score, labels, columns)
    return blocks.merge(form, row, row_part), _merge_devices(form, column)

  start = blocks.empty(x.query.shape[0], x.temperature.dtype)
  row, column = jax.lax.scan(body, start, _cut((x.key, labels), size))
  return row, _join(column)


class Sums(NamedTuple):
  """Gradients that the backward pass accumulates over blocks."""

  query: Float[Array, "B E"]
  temperature: Float[Array, ""]
  bias: Float[Array, ""]


def _zero_sums(x: Operands) -> Sums:
  zero = jnp.zeros((), x.temperature.dtype)
  return Sums(jnp.zeros(x.query.shape, zero.dtype), zero, zero)


def _block_gradient(
  form: Form,
  x: Operands,
  sums: Sums,
  key: Float[Array, "C E"],
  rows: tuple[Labels, Pull],
  columns: tuple[Labels, Pull],
) -> tuple[Sums, Float[Array, "C E"]]:
  """Adds the gradients of a block to the sums.

  Args:
    form: static arguments.
    x: local rows.
    sums: so far.
    key: embeddings of the columns.
    rows: labels and statistics of the local rows.
    columns: labels and statistics of the columns.

  Returns:
    The new sums, and the gradient of `key` from the local rows.
  """
  wide = x.temperature.dtype
  score = blocks.scores(x.query, key, x.temperature, x.bias)
  row_grad, column_grad = blocks.backward(form, score, rows, columns)
  both = row_grad + column_grad
  if not form.detach:
    row_grad = column_grad = both
  product = functools.partial(
    jnp.einsum,
    precision=blocks.precision_of(key.dtype),
    preferred_element_type=wide,
  )
  query = product("bc,ce->be", row_grad.astype(key.dtype), key)
  back = product("bc,be->ce", column_grad.astype(key.dtype), x.query)
  scaled = (both * (score - x.bias)).sum() / x.temperature
  return Sums(
    sums.query + query / x.temperature,
    sums.temperature - scaled,
    sums.bias + both.sum(),
  ), back / x.temperature


def _chunked_backward(
  form: Form, x: Operands, row: Pull, column: Pull
) -> tuple[Sums, Float[Array, "B E"]]:
  labels = _labels(form, x)
  size = _slice_size(form, x.query.shape[0])

  def body(sums: Sums, cut: Any) -> tuple[Sums, Array]:
    key, columns = _gather(form, cut)
    sums, back = _block_gradient(form, x, sums, key, (labels, row), columns)
    return sums, _scatter(form, back)

  cuts = _cut((x.key, (labels, column)), size)
  sums, back = jax.lax.scan(body, _zero_sums(x), cuts)
  return sums, _join(back)


# ------------------------------------------------------------------------- ring
def _pass_on(form: Form, tree: Any) -> Any:
  """Sends arrays to the next device of the ring."""
  if form.partition is None:
    return tree
  names, size = form.partition.axes, form.partition.size
  ring = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, names, ring), tree)


def _ring_forward(form: Form, x: Operands) -> tuple[Side, Side]:
  labels = _labels(form, x)
  rows = x.query.shape[0]
  size = _slice_size(form, rows)

  def block(row: Side, cut: Any) -> tuple[Side, Side]:
    key, columns, seen = cut
    score = blocks.scores(x.query, key, x.temperature, x.bias)
    row_part, column = blocks.forward(form, score, labels, columns)
    return blocks.merge(form, row, row_part), blocks.merge(form, seen, column)

  def hop(carry: Any, _: None) -> tuple[Any, None]:
    row, (key, columns, seen) = carry
    row, seen = jax.lax.scan(block, row, _cut((key, columns, seen), size))
    return (row, _pass_on(form, (key, columns, _join(seen)))), None

  start = blocks.empty(rows, x.temperature.dtype)
  carry = (start, (x.key, labels, start))
  (row, visitor), _ = jax.lax.scan(hop, carry, length=parts(form.partition))
  return row, visitor[2]


def _ring_backward(
  form: Form, x: Operands, row: Pull, column: Pull
) -> tuple[Sums, Float[Array, "B E"]]:
  labels = _labels(form, x)
  size = _slice_size(form, x.query.shape[0])

  def block(sums: Sums, cut: Any) -> tuple[Sums, Array]:
    key, columns, seen = cut
    sums, back = _block_gradient(form, x, sums, key, (labels, row), columns)
    return sums, seen + back

  def hop(carry: Any, _: None) -> tuple[Any, None]:
    sums, (key, columns, seen) = carry
    sums, seen = jax.lax.scan(block, sums, _cut((key, columns, seen), size))
    return (sums, _pass_on(form, (key, columns, _join(seen)))), None

  sums = _zero_sums(x)
  carry = (sums, (x.key, (labels, column), jnp.zeros_like(sums.query)))
  (sums, visitor), _ = jax.lax.scan(hop, carry, length=parts(form.partition))
  return sums, visitor[2]


# --------------------------------------------------------------------- gradient
def _on_rows(form: Form, function: Any, *arguments: Any, out: Any) -> Any:
  """Runs `function(form, ...)` on the local rows of every device.

  Args:
    form: static arguments.
    function: of the local arguments.
    *arguments: trees; scalars are copied to all devices, other arrays split by
      rows.
    out: tree of the results: true where they are split by rows.
  """
  run = functools.partial(function, form)
  if form.partition is None:
    return run(*arguments)
  rows, whole = form.partition.spec(), PartitionSpec()
  specs = jax.tree.map(lambda x: rows if x.ndim else whole, arguments)
  results = jax.tree.map(lambda is_rows: rows if is_rows else whole, out)
  return form.partition.local(run, specs, results)(*arguments)


def _local_forward(form: Form, x: Operands) -> tuple[Side, Side]:
  return (_ring_forward if form.ring else _chunked_forward)(form, x)


def _local_backward(
  form: Form, x: Operands, row: Pull, column: Pull
) -> tuple[Array, Array, Array, Array]:
  run = _ring_backward if form.ring else _chunked_backward
  sums, key = run(form, x, row, column)
  return (
    sums.query,
    key,
    _sum(form, sums.temperature),
    _sum(form, sums.bias),
  )


def _halves(form: Form, row: Side, column: Side) -> tuple[Half, Half]:
  half = lambda side: Half(*blocks.finish(form, side), side.peak, side.hit)
  return half(row), half(column)


def _forward(form: Form, x: Operands) -> tuple[Side, Side]:
  fields: list[Any] = [True] * len(Side._fields)
  trues = Side(*fields)
  return _on_rows(form, _local_forward, x, out=(trues, trues))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def halves(form: Form, x: Operands) -> tuple[Half, Half]:
  """Both directions of the loss, before smoothing and explicit negatives.

  Args:
    form: static arguments.
    x: global arrays; temperature and bias in the accumulation dtype.

  Returns:
    (queries against keys, keys against queries). Only `gap` and `positive` are
    differentiable.
  """
  return _halves(form, *_forward(form, x))


def _halves_forward(form: Form, x: Operands) -> Any:
  row, column = _forward(form, x)
  return _halves(form, row, column), (x, row, column)


def _halves_backward(form: Form, saved: Any, cotangents: Any) -> Any:
  x, *sides = saved
  pulls = [
    blocks.pull(form, side, half.gap, half.positive)
    for side, half in zip(sides, cotangents, strict=True)
  ]
  query, key, temperature, bias = _on_rows(
    form, _local_backward, x, *pulls, out=(True, True, False, False)
  )
  return (
    Operands(
      query.astype(x.query.dtype),
      key.astype(x.key.dtype),
      temperature,
      bias,
      None,  # pyrefly: ignore[bad-argument-type]
      None,  # pyrefly: ignore[bad-argument-type]
    ),
  )


halves.defvjp(_halves_forward, _halves_backward)


def operands(
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  temperature: Float[Array, ""],
  bias: Float[Array, ""] | None,
  valid: Bool[Array, " B"] | None,
  fingerprint: UInt32[Array, "B 2"] | None,
) -> Operands:
  """Operands with defaults filled in; scalars in the accumulation dtype."""
  rows = query.shape[0]
  dtype = accumulation_dtype(query.dtype)
  return Operands(
    query,
    key.astype(query.dtype),
    temperature.astype(dtype),
    jnp.zeros((), dtype) if bias is None else bias.astype(dtype),
    jnp.ones((rows,), bool) if valid is None else valid,
    jnp.zeros((rows, 2), jnp.uint32) if fingerprint is None else fingerprint,
  )
