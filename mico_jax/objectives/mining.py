"""Hard negatives: which row is drawn for which, on any number of devices.

A negative j of row i is drawn with probability softmax(similarity) + floor
over the candidates of i, by a race of exponential variables. The variable of a
pair is a hash of row i's key and j, so a draw does not depend on devices,
blocks or micro-batches.

Texts are drawn from the whole global batch: blocks of columns pass by, as in
the contrastive loss, and carry the token ids with them, so a device never
holds more than its own rows and one block. Contexts are drawn within groups of
consecutive rows (`mining_weights`), which stay on their device if they fit.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from mico_jax.kernels.batch_sharding import BatchSharding, parts, split_rows
from mico_jax.kernels.contrastive.api import automatic_chunk
from mico_jax.objectives import sampling

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
    prints = split(fingerprint)
    same = prints[:, :, None, :] == prints[:, None, :, :]
    excluded = excluded | jnp.all(same, axis=-1)
  weights = jax.nn.softmax(logits, axis=-1) + floor
  return jnp.where(candidate & ~excluded, weights, jnp.zeros_like(weights))


def draw_negatives(
  keys: Key[Array, " B"], weights: Float[Array, "G N N"]
) -> tuple[Int[Array, " B"], Bool[Array, " B"]]:
  """Draws one row per query in proportion to `weights`.

  Returns:
    (index into the global batch, whether there was any candidate).
  """
  groups, size, _ = weights.shape
  start = jnp.arange(groups, dtype=jnp.int32)[:, None] * size
  column = start + jnp.arange(size, dtype=jnp.int32)[None, :]
  words = sampling.row_words(keys).reshape(groups, size, 2)
  race = jax.vmap(sampling.pair_log_exponential)(words, column)
  positive = weights > 0
  scores = jnp.log(jnp.where(positive, weights, jnp.ones_like(weights)))
  scores = jnp.where(positive, scores - race, -jnp.inf)
  index = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  return (index + start).reshape(-1), positive.any(axis=-1).reshape(-1)


class Rows(NamedTuple):
  """What a device knows of its rows."""

  query: Float[Array, "B E"]
  key: Float[Array, "B E"]
  words: UInt32[Array, "B 2"]
  valid: Bool[Array, " B"]
  prints: UInt32[Array, "B 2"]
  payload: Int[Array, "B L"]


class Best(NamedTuple):
  """The leader of each row's race so far."""

  score: Float[Array, " B"]
  index: Int[Array, " B"]
  payload: Int[Array, "B L"]


def _local_draw(
  x: Rows,
  temperature: Float[Array, ""],
  *,
  chunk: int,
  floor: float,
  exclude_same: bool,
  partition: BatchSharding | None,
) -> tuple[Int[Array, " B"], Bool[Array, " B"], Int[Array, "B L"]]:
  rows = x.query.shape[0]
  place = jnp.zeros((), jnp.int32)
  if partition is not None:
    place = jax.lax.axis_index(partition.axes).astype(jnp.int32)
  own = place * rows + jnp.arange(rows, dtype=jnp.int32)
  size = split_rows(rows, chunk // parts(partition))

  def gather(cut: Any) -> Any:
    if partition is None:
      return cut
    names = partition.axes
    return jax.tree.map(
      lambda a: jax.lax.all_gather(a, names, axis=0, tiled=True), cut
    )

  cut = lambda tree: jax.tree.map(
    lambda a: a.reshape(-1, size, *a.shape[1:]), tree
  )

  def scores(key: Array, valid: Array) -> Array:
    product = jnp.einsum(
      "be,ce->bc", x.query, key, preferred_element_type=jnp.float32
    )
    product = product / temperature
    return jnp.where(valid[None, :], product, jnp.float32(NEGATIVE))

  def normalise(carry: Any, item: Any) -> Any:
    key, valid = gather(item)
    score = scores(key, valid)
    peak = jnp.maximum(carry[0], score.max(axis=1))
    total = carry[1] * jnp.exp(carry[0] - peak)
    return (peak, total + jnp.exp(score - peak[:, None]).sum(axis=1)), None

  def race(best: Best, item: Any) -> tuple[Best, None]:
    key, valid, prints, payload, index = gather(item)
    weight = jnp.exp(scores(key, valid) - norm[:, None]) + floor
    excluded = own[:, None] == index[None, :]
    if exclude_same:
      same = x.prints[:, None, :] == prints[None, :, :]
      excluded = excluded | jnp.all(same, axis=-1)
    noise = sampling.pair_log_exponential(x.words, index)
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

  zero = jnp.zeros((rows,), jnp.float32)
  start = (zero + NEGATIVE, zero)
  (peak, total), _ = jax.lax.scan(normalise, start, cut((x.key, x.valid)))
  norm = peak + jnp.log(total)
  begin = Best(zero - jnp.inf, own, x.payload)
  columns = cut((x.key, x.valid, x.prints, x.payload, own))
  best, _ = jax.lax.scan(race, begin, columns)
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

  The same draws as `draw_negatives` on `mining_weights` of one group.

  Args:
    keys: one per row.
    query: unit-norm embeddings.
    key: unit-norm embeddings of the other side.
    payload: what travels with a key, such as its token ids.
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
  prints = fingerprint
  if prints is None:
    prints = jnp.zeros((rows, 2), jnp.uint32)
  run: Any = functools.partial(
    _local_draw,
    chunk=chunk or automatic_chunk(rows, partition),
    floor=floor,
    exclude_same=fingerprint is not None,
    partition=partition,
  )
  if partition is not None:
    spec = partition.spec()
    run = partition.local(run, (spec, PartitionSpec()), spec)
  wide = lambda x: jax.lax.stop_gradient(x).astype(jnp.float32)
  local = Rows(
    wide(query), wide(key), sampling.row_words(keys), valid, prints, payload
  )
  return run(local, wide(temperature))
