"""TPU attention kernels with all keys and values of a head in VMEM.

There is no online softmax: a tile of queries sees every key at once.
Exponentials are base two (log2(e) is part of the factor on the queries), the
softmax is float32, and the forward pass stores one number per query, the
base-two logarithm of its sum, from which the backward pass recomputes the
probabilities (arXiv:2205.14135).

A matrix unit processes 128 (or 256) keys at a time, so the last of 257 keys
would cost as much as 128. It is taken out ("tail") and multiplied by the vector
units, which are idle meanwhile. The backward pass computes transposed scores
[S, L]: sums over keys are then additions of whole registers, and two of its
three products with scores need no transposition. For few queries, which would
leave most lanes of that empty, it computes scores [L, S] ("upright").

Grid: (rows of the batch, groups of heads, tiles of queries).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mico_jax.kernels.attention import drops
from mico_jax.kernels.attention.tpu_layout import LANES, Layout

HIDDEN = -1e30  # score of a key that a query does not see
UNSEEN = 1e30  # logarithm of the sum of a query that sees no key
LN2 = 0.6931471805599453
# Contracted axes: x y^T, x y, x^T y.
NT = (((1,), (1,)), ((), ()))
NN = (((1,), (0,)), ((), ()))
TN = (((0,), (0,)), ((), ()))


@dataclasses.dataclass(frozen=True)
class Spec:
  """Static arguments of a kernel.

  Attributes:
    layout: of the heads of a grid step.
    num_queries: L.
    num_keys: S.
    rows: queries of a tile.
    scale: factor on the products.
    factor: factor on the queries, scale * log2(e); 1.0 if already applied.
    causal: query i sees keys 0..i.
    key_ids: whether keys have ids.
    query_ids: whether queries have ids; without them their id is 1.
    prefix: whether there are prefix lengths.
    tail: whether the last key is taken out of the matrix products.
    exact: whether products are in full float32 precision.
    packed: whether the gradients of q, k and v go into one array.
    upright: whether backward scores are [L, S], for few queries; else [S, L].
    dropout: probability to drop a weight, in [0, 1).
  """

  layout: Layout
  num_queries: int
  num_keys: int
  rows: int
  scale: float
  factor: float
  causal: bool = False
  key_ids: bool = False
  query_ids: bool = False
  prefix: bool = False
  tail: bool = False
  exact: bool = False
  packed: bool = False
  upright: bool = False
  dropout: float = 0.0

  @property
  def masked(self) -> bool:
    """Whether keys may be hidden from queries."""
    return self.causal or self.key_ids

  @property
  def tiles(self) -> int:
    """Number of tiles of queries."""
    return -(-self.num_queries // self.rows)

  @property
  def ragged(self) -> bool:
    """Whether the last tile is only partly filled."""
    return self.num_queries % self.rows != 0

  @property
  def num_rules(self) -> int:
    """Number of inputs that are arrays of rules."""
    drops = self.dropout > 0.0
    return self.key_ids + self.query_ids + self.prefix + drops

  @property
  def boost(self) -> float:
    """Factor on the weights that are kept."""
    return 1.0 / (1.0 - self.dropout)


def dot(spec: Spec, x: Any, y: Any, dims: Any) -> Any:
  """Matrix product with float32 accumulation."""
  precision = jax.lax.Precision.HIGHEST if spec.exact else None
  return jax.lax.dot_general(
    x, y, dims, precision=precision, preferred_element_type=jnp.float32
  )


def _f32(x: Any) -> Any:
  return x.astype(jnp.float32)


def scaled(spec: Spec, q: Any) -> Any:
  """Queries times the factor, in the dtype of the queries."""
  if spec.factor == 1.0:
    return q
  return (_f32(q) * spec.factor).astype(q.dtype)


def visible(
  spec: Spec, rules: Any, *, tile: Any, query_axis: int, keys: slice
) -> Any:
  """Mask of the keys that a tile of queries sees; None: all.

  Args:
    spec: of the kernel.
    rules: refs of key ids, query ids and prefix lengths, as far as present.
    tile: index of the tile.
    query_axis: axis of the queries in the scores.
    keys: range of keys.
  """
  if not spec.masked:
    return None
  left = list(rules)
  count = keys.stop - keys.start
  shape = (spec.rows, count) if query_axis == 0 else (count, spec.rows)
  seen = None
  if spec.key_ids:
    ids = left.pop(0)
    ids = ids[0, :, keys] if query_axis == 0 else ids[0, keys, :]
    query_ids = jnp.ones((1, 1), jnp.int32)
    if spec.query_ids:
      query_ids = left.pop(0)[0]
    seen = ids == query_ids
  if spec.causal:
    last = jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
    last = last + tile * spec.rows
    if spec.prefix:
      last = jnp.maximum(last, left.pop(0)[0] - 1)
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)
    before = key + keys.start <= last
    seen = before if seen is None else before & seen
  return seen


class Drops:
  """Dropout masks of a tile of queries, head by head."""

  def __init__(self, spec: Spec, rules: Any, *, tile: Any, query_axis: int):
    """Numbers the weights of the tile.

    Args:
      spec: of the kernel.
      rules: refs of the rules; the last holds the seeds of the row.
      tile: index of the tile.
      query_axis: axis of the queries in the scores.
    """
    self.spec = spec
    if not spec.dropout:
      return
    self._query_axis = query_axis
    shape = (spec.rows, spec.num_keys)
    shape = shape if query_axis == 0 else shape[::-1]
    iota = lambda axis: jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    query = iota(query_axis) + tile * spec.rows
    self._places = drops.places(query, iota(1 - query_axis))
    seeds = rules[-1][0]
    self._first, self._second = seeds[:, 0:1], seeds[:, 1:2]

  def kept(self, head: int) -> Any:
    """Mask of the kept weights of a head of this grid step; None: all."""
    spec = self.spec
    if not spec.dropout:
      return None
    return drops.kept(
      self._places,
      self._first,
      self._second,
      head=pl.program_id(1) * spec.layout.num_heads + head,
      rate=spec.dropout,
    )


def _drop(weights: Any, kept: Any) -> Any:
  return weights if kept is None else jnp.where(kept, weights, 0.0)


def _boosted(spec: Spec, by_weight: Any, kept: Any) -> Any:
  """Gradient of weights before dropout."""
  return by_weight if kept is None else _drop(by_weight, kept) * spec.boost


def _hide(scores: Any, seen: Any) -> Any:
  return scores if seen is None else jnp.where(seen, scores, HIDDEN)


def _forward_head(
  spec: Spec, q: Any, k: Any, v: Any, seen: Any, tail_seen: Any, kept: Any
) -> tuple[Any, Any]:
  """Values [rows, width] and logarithms of sums [rows, 1] of one head."""
  split = spec.num_keys - spec.tail
  scores = _hide(dot(spec, q, k[:split], NT), seen)
  top = jnp.max(scores, axis=1, keepdims=True)
  last: Any = None
  if spec.tail:
    last = jnp.sum(_f32(q) * _f32(k[split:]), axis=1, keepdims=True)
    last = _hide(last, tail_seen)
    top = jnp.maximum(top, last)
  weights = jnp.exp2(scores - top)
  total = jnp.sum(weights, axis=1, keepdims=True)
  early = late = None
  if kept is not None:
    early, late = kept[:, :split], kept[:, split:]
  weights = _drop(weights, early)
  out = dot(spec, weights.astype(v.dtype), v[:split], NN)
  if spec.tail:
    last = jnp.exp2(last - top)
    total = total + last
    out = out + _drop(last, late) * _f32(v[split:])
  share = pl.reciprocal(total, approx=not spec.exact)
  log_sum = top + jnp.log2(total)
  if spec.masked:
    something = top > HIDDEN / 2
    share = jnp.where(something, share, 0.0)
    log_sum = jnp.where(something, log_sum, UNSEEN)
  if spec.dropout:
    share = share * spec.boost
  return out * share, log_sum


def forward_kernel(*refs: Any, spec: Spec) -> None:
  """Forward pass of one tile.

  Args:
    *refs: inputs q, k, v and rules; outputs values and, optionally, logarithms
      of sums with a scratch array.
    spec: of the kernel.
  """
  q_ref, k_ref, v_ref = refs[:3]
  rules, (out_ref, *rest) = (
    refs[3 : 3 + spec.num_rules],
    refs[3 + spec.num_rules :],
  )
  tile = pl.program_id(2)
  split = spec.num_keys - spec.tail
  seen = visible(spec, rules, tile=tile, query_axis=0, keys=slice(0, split))
  tail_seen = None
  if spec.tail:
    tail = slice(split, spec.num_keys)
    tail_seen = visible(spec, rules, tile=tile, query_axis=0, keys=tail)
  layout = spec.layout
  dropped = Drops(spec, rules, tile=tile, query_axis=0)
  writer = layout.writer(out_ref)
  for head in range(layout.num_heads):
    q = scaled(spec, layout.read(q_ref, head, clean=True))
    k = layout.read(k_ref, head, clean=False)
    v = layout.read(v_ref, head, clean=False)
    kept = dropped.kept(head)
    out, log_sum = _forward_head(spec, q, k, v, seen, tail_seen, kept)
    writer.put(head, out)
    if rest:
      rest[1][: spec.rows, head : head + 1] = log_sum
  if rest:
    sums_ref, scratch = rest
    sums = jnp.transpose(scratch[...])
    sums_ref[0, 0] = sums[: layout.num_heads, : sums_ref.shape[-1]]


def _backward_head(
  spec: Spec,
  q: Any,
  k: Any,
  v: Any,
  grad: Any,
  log_sum: Any,
  seen: Any,
  kept: Any,
) -> tuple[Any, Any, Any]:
  """Unscaled gradients of q, k and v of one head and one tile."""
  if spec.upright:
    return _backward_upright(spec, q, k, v, grad, log_sum, seen, kept)
  scores = _hide(dot(spec, k, q, NT), seen)  # [S, rows]
  weights = jnp.exp2(scores - log_sum)
  by_weight = _boosted(spec, dot(spec, v, grad, NT), kept)
  mean = jnp.sum(weights * by_weight, axis=0, keepdims=True)
  by_score = weights * (by_weight - mean)
  low = by_score.astype(q.dtype)
  dv = dot(spec, _drop(weights, kept).astype(q.dtype), grad, NN)
  dk = dot(spec, low, q, NN)
  split = spec.num_keys - spec.tail
  dq = dot(spec, low[:split], k[:split], TN)
  if spec.tail:
    dq = dq + jnp.transpose(by_score[split:]) * _f32(k[split:])
  return dq, dk, dv


def _backward_upright(
  spec: Spec,
  q: Any,
  k: Any,
  v: Any,
  grad: Any,
  log_sum: Any,
  seen: Any,
  kept: Any,
) -> tuple[Any, Any, Any]:
  scores = _hide(dot(spec, q, k, NT), seen)  # [rows, S]
  weights = jnp.exp2(scores - log_sum)
  by_weight = _boosted(spec, dot(spec, grad, v, NT), kept)
  mean = jnp.sum(weights * by_weight, axis=1, keepdims=True)
  low = (weights * (by_weight - mean)).astype(q.dtype)
  dv = dot(spec, _drop(weights, kept).astype(q.dtype), grad, TN)
  return dot(spec, low, k, NN), dot(spec, low, q, TN), dv


def backward_kernel(*refs: Any, spec: Spec) -> None:
  """Backward pass of one tile.

  Args:
    *refs: inputs q, k, v, gradient of the values, logarithms of sums and
      rules; outputs gradients; with several tiles of queries two scratch
      arrays, which accumulate the gradients of k and v of each head.
    spec: of the kernel.
  """
  q_ref, k_ref, v_ref, grad_ref, sums_ref = refs[:5]
  rules, outs = refs[5 : 5 + spec.num_rules], refs[5 + spec.num_rules :]
  tile, layout = pl.program_id(2), spec.layout
  if spec.packed:
    lanes = layout.num_heads * layout.head_dim
    dq_out, dk_out, dv_out = (
      layout.writer(outs[0], first_lane=i * lanes) for i in range(3)
    )
  else:
    dq_out, dk_out, dv_out = (layout.writer(ref) for ref in outs[:3])
  keys = slice(0, spec.num_keys)
  if spec.tiles > 1:

    @pl.when(tile == 0)  # one branch, not one per head: heads overlap
    def _() -> None:
      outs[3][...] = jnp.zeros_like(outs[3])
      outs[4][...] = jnp.zeros_like(outs[4])

  axis = 0 if spec.upright else 1
  seen = visible(spec, rules, tile=tile, query_axis=axis, keys=keys)
  dropped = Drops(spec, rules, tile=tile, query_axis=axis)
  sums = sums_ref[0, 0]
  if spec.upright:
    sums = jnp.transpose(sums)
  for head in range(layout.num_heads):
    q = layout.read(q_ref, head, clean=True)
    grad = layout.read(grad_ref, head, clean=True)
    if spec.ragged:  # rows after the last query are undefined
      row = jax.lax.broadcasted_iota(jnp.int32, q.shape, 0)
      inside = row + tile * spec.rows < spec.num_queries
      q = jnp.where(inside, q, jnp.zeros((), q.dtype))
      grad = jnp.where(inside, grad, jnp.zeros((), q.dtype))
    q = scaled(spec, q)
    k = layout.read(k_ref, head, clean=False)
    v = layout.read(v_ref, head, clean=False)
    one = slice(head, head + 1)
    log_sum = sums[:, one] if spec.upright else sums[one]
    kept = dropped.kept(head)
    dq, dk, dv = _backward_head(spec, q, k, v, grad, log_sum, seen, kept)
    if spec.dropout:
      dv = dv * spec.boost
    dq_out.put(head, dq * spec.scale)
    dk = dk * LN2  # the queries hold scale * log2(e) already
    if spec.tiles == 1:
      dk_out.put(head, dk)
      dv_out.put(head, dv)
    else:
      outs[3][head] += dk
      outs[4][head] += dv
  if spec.tiles > 1:

    @pl.when(tile == spec.tiles - 1)
    def _() -> None:
      for head in range(layout.num_heads):
        dk_out.put(head, outs[3][head])
        dv_out.put(head, outs[4][head])


def lane_tiles(size: int) -> int:
  """A size rounded up to whole lane tiles."""
  return -(-size // LANES) * LANES
