"""Hard negatives: one row is drawn for each row, on any number of devices.

Row j is drawn as the negative of row i in proportion to softmax(similarity) +
floor over the candidates of i. The draw is a race: j arrives after an
exponential time divided by its weight, and the first one wins. The random time
of a pair is a hash of row i's key and j, so a draw does not depend on devices,
blocks or micro-batches. There are two ways to compute the same draw:

- `draw_from_all`, from the whole global batch: keys are visited in blocks, as
  in the contrastive loss, and bring their token ids with them, so a device
  holds its own rows and one block;
- `mining_weights` and `draw_negatives`, within groups of consecutive rows,
  which stay on their device if they fit: the weights are one small matrix for
  each group.

Source: ALBEF, arXiv:2107.07651, section 3.2; VAST, arXiv:2305.18500.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mico_jax import rng
from mico_jax.kernels.batch_sharding import BatchSharding, parts, split_rows
from mico_jax.kernels.contrastive.api import automatic_chunk

NEGATIVE = -1e30


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

  Source: ALBEF, arXiv:2107.07651, section 3.2; the floor: VAST's training code.

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
  logits = jnp.where(candidate, logits, jnp.asarray(NEGATIVE, jnp.float32))
  excluded = jnp.eye(size, dtype=bool)[None]
  if fingerprint is not None:
    texts = split(fingerprint)
    same = texts[:, :, None, :] == texts[:, None, :, :]
    excluded = excluded | jnp.all(same, axis=-1)
  weights = jax.nn.softmax(logits, axis=-1) + floor
  return jnp.where(candidate & ~excluded, weights, jnp.zeros_like(weights))


def draw_negatives(
  keys: Key[Array, " B"], weights: Float[Array, "G N N"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
  """Draws one row per query in proportion to `weights` (ALBEF, section 3.2).

  Returns:
    (index into the global batch, whether there was any candidate).
  """
  groups, size, _ = weights.shape
  start = jnp.arange(groups, dtype=jnp.int32)[:, None] * size
  column = start + jnp.arange(size, dtype=jnp.int32)[None, :]
  words = rng.row_words(keys).reshape(groups, size, 2)
  race = jax.vmap(rng.pair_log_exponential)(words, column)
  positive = weights > 0
  scores = jnp.log(jnp.where(positive, weights, jnp.ones_like(weights)))
  scores = jnp.where(positive, scores - race, -jnp.inf)
  index = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  return (index + start).reshape(-1), positive.any(axis=-1).reshape(-1)


class Rows(NamedTuple):
  """The rows of a device: both sides, random bits, and payload of a draw."""

  query: Float[Array, "B E"]
  key: Float[Array, "B E"]
  words: UInt32[Array, "B 2"]
  valid: Bool[Array, " B"]
  fingerprint: UInt32[Array, "B 2"]
  payload: Int[Array, "B L"]


class Best(NamedTuple):
  """The leader of each row's race so far."""

  score: Float[Array, " B"]
  index: Int[Array, " B"]
  payload: Int[Array, "B L"]


def _gather(block: Any, partition: BatchSharding | None) -> Any:
  """The same block of all devices, side by side."""
  if partition is None:
    return block
  return jax.tree.map(
    lambda a: jax.lax.all_gather(a, partition.axes, axis=0, tiled=True), block
  )


def _scores(
  query: Float[Array, "B E"],
  temperature: Float[Array, ""],
  key: Float[Array, "C E"],
  valid: Bool[Array, " C"],
) -> Float[Array, "B C"]:
  product = jnp.einsum(
    "be,ce->bc", query, key, preferred_element_type=jnp.float32
  )
  return jnp.where(valid[None, :], product / temperature, jnp.float32(NEGATIVE))


def _log_total(
  x: Rows,
  temperature: Float[Array, ""],
  blocks: tuple[Float[Array, "S C E"], Bool[Array, "S C"]],
  partition: BatchSharding | None,
) -> Float[Array, " B"]:
  """Log of each row's softmax denominator, block after block of keys."""

  def add(carry: Any, block: Any) -> Any:
    score = _scores(x.query, temperature, *_gather(block, partition))
    peak = jnp.maximum(carry[0], score.max(axis=1))
    total = carry[1] * jnp.exp(carry[0] - peak)
    return (peak, total + jnp.exp(score - peak[:, None]).sum(axis=1)), None

  zero = jnp.zeros((x.query.shape[0],), jnp.float32)
  (peak, total), _ = jax.lax.scan(add, (zero + NEGATIVE, zero), blocks)
  return peak + jnp.log(total)


def _local_draw(
  x: Rows,
  temperature: Float[Array, ""],
  *,
  chunk: int,
  floor: float,
  exclude_same: bool,
  partition: BatchSharding | None,
) -> tuple[Int[Array, " B"], Bool[Array, " B"], Int[Array, "B L"]]:
  """`draw_from_all` for the rows of one device."""
  rows = x.query.shape[0]
  device = jnp.zeros((), jnp.int32)
  if partition is not None:
    device = jax.lax.axis_index(partition.axes).astype(jnp.int32)
  row = device * rows + jnp.arange(rows, dtype=jnp.int32)
  size = split_rows(rows, chunk // parts(partition))
  cut = lambda *arrays: tuple(a.reshape(-1, size, *a.shape[1:]) for a in arrays)
  total = _log_total(x, temperature, cut(x.key, x.valid), partition)

  def race(best: Best, block: Any) -> tuple[Best, None]:
    key, valid, fingerprint, payload, index = _gather(block, partition)
    score = _scores(x.query, temperature, key, valid)
    weight = jnp.exp(score - total[:, None]) + floor
    excluded = row[:, None] == index[None, :]
    if exclude_same:
      same = x.fingerprint[:, None, :] == fingerprint[None, :, :]
      excluded = excluded | jnp.all(same, axis=-1)
    noise = rng.pair_log_exponential(x.words, index)
    candidate = valid[None, :] & ~excluded
    score = jnp.where(candidate, jnp.log(weight) - noise, -jnp.inf)
    first = jnp.argmax(score, axis=1)
    top = jnp.take_along_axis(score, first[:, None], axis=1)[:, 0]
    ahead = top > best.score
    choose = lambda a, b: jnp.where(
      ahead.reshape((-1,) + (1,) * (a.ndim - 1)), a, b
    )
    new = Best(top, index[first], payload[first])
    return jax.tree.map(choose, new, best), None

  begin = Best(jnp.full((rows,), -jnp.inf, jnp.float32), row, x.payload)
  blocks = cut(x.key, x.valid, x.fingerprint, x.payload, row)
  best, _ = jax.lax.scan(race, begin, blocks)
  return best.index, best.score > -jnp.inf, best.payload


def draw_from_all(
  keys: Key[Array, " B"],
  query: Float[Array, "B E"],
  key: Float[Array, "B E"],
  payload: Int[Array, "B L"],
  *,
  temperature: Float[Array, ""],
  valid: Bool[Array, " B"],
  fingerprint: UInt32[Array, "B 2"] | None = None,
  floor: float = 1e-4,
  partition: BatchSharding | None = None,
  chunk: int = 0,
) -> tuple[Int[Array, " B"], Bool[Array, " B"], Int[Array, "B L"]]:
  """Draws one row of the whole global batch per query, in blocks of columns.

  The same draws as `draw_negatives` on `mining_weights` of one group (ALBEF,
  arXiv:2107.07651, section 3.2).

  Args:
    keys: one per row.
    query: unit-norm embeddings.
    key: unit-norm embeddings of the other side.
    payload: returned for the drawn row, such as its token ids.
    temperature: divides the similarities.
    valid: rows that take part.
    fingerprint: as in `mining_weights`.
    floor: as in `mining_weights`.
    partition: how the rows lie on a mesh; None: on one device.
    chunk: columns of a block; 0: automatic.

  Returns:
    (index into the global batch; whether there was any candidate; payload of
    the drawn row, of the row itself where there was none).
  """
  rows = query.shape[0]
  if rows % parts(partition) or parts(partition) == 1:
    partition = None
  exclude_same = fingerprint is not None
  if fingerprint is None:
    fingerprint = jnp.zeros((rows, 2), jnp.uint32)
  run: Any = functools.partial(
    _local_draw,
    chunk=chunk or automatic_chunk(rows, partition),
    floor=floor,
    exclude_same=exclude_same,
    partition=partition,
  )
  if partition is not None:
    spec = partition.spec()
    run = partition.local(run, (spec, PartitionSpec()), spec)
  wide = lambda x: jax.lax.stop_gradient(x).astype(jnp.float32)
  words = rng.row_words(keys)
  local = Rows(wide(query), wide(key), words, valid, fingerprint, payload)
  return run(local, wide(temperature))
