"""TPU attention kernels with keys and values streamed through VMEM.

For lengths whose keys do not fit into VMEM: a tile of queries meets one tile of
keys after the other, with a running maximum and sum (FlashAttention,
arXiv:2205.14135 and arXiv:2307.08691). The backward pass is two kernels, one
that sums over keys (gradient of the queries) and one that sums over queries
(gradients of keys and values). Both compute transposed scores [keys, queries],
as in `tpu_resident`; the mean that the gradient of a softmax subtracts is
computed outside, from the values. Heads are separate: [B, N, L, H].

Grid: (rows of the batch, heads, tiles of one side, tiles of the other).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from mico_jax.kernels.attention.tpu_resident import (
  HIDDEN,
  LN2,
  NN,
  NT,
  TN,
  UNSEEN,
  Spec,
  dot,
  scaled,
)


@dataclasses.dataclass(frozen=True)
class Tiling:
  """A spec with tiles of keys.

  Attributes:
    spec: of one head; `rows` is the number of queries of a tile.
    columns: number of keys of a tile.
  """

  spec: Spec
  columns: int

  @property
  def key_tiles(self) -> int:
    """Number of tiles of keys."""
    return -(-self.spec.num_keys // self.columns)


def _visible(
  tiling: Tiling, rules: Any, query_tile: Any, key_tile: Any, query_axis: int
) -> Any:
  """Mask of the keys of a tile that the queries of a tile see; None: all."""
  spec, left = tiling.spec, list(rules)
  shape = [tiling.columns, tiling.columns]
  shape[query_axis] = spec.rows
  key = jax.lax.broadcasted_iota(jnp.int32, shape, 1 - query_axis)
  key = key + key_tile * tiling.columns
  seen = None
  if spec.num_keys % tiling.columns:
    seen = key < spec.num_keys
  if spec.key_ids:
    ids = left.pop(0)[0]
    query_ids = jnp.ones((1, 1), jnp.int32)
    if spec.query_ids:
      query_ids = left.pop(0)[0]
    seen = ids == query_ids if seen is None else seen & (ids == query_ids)
  if spec.causal:
    last = jax.lax.broadcasted_iota(jnp.int32, shape, query_axis)
    last = last + query_tile * spec.rows
    if spec.prefix:
      last = jnp.maximum(last, left.pop(0)[0] - 1)
    seen = key <= last if seen is None else seen & (key <= last)
  return seen


def _inside(x: Any, tile: Any, size: int) -> Any:
  """Zeroes the undefined rows of a ragged tile."""
  if size % x.shape[0] == 0:
    return x
  row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0) + tile * x.shape[0]
  return jnp.where(row < size, x, jnp.zeros((), x.dtype))


def _useful(tiling: Tiling, query_tile: Any, key_tile: Any) -> Any:
  """Whether any query of a tile may see a key of a tile."""
  spec = tiling.spec
  if not spec.causal or spec.prefix:
    return key_tile >= 0
  return key_tile * tiling.columns < (query_tile + 1) * spec.rows


def forward_kernel(*refs: Any, tiling: Tiling) -> None:
  """Forward pass of a tile of queries and a tile of keys.

  Args:
    *refs: inputs q, k, v and rules; outputs values and logarithms of sums;
      scratch for the running maximum, sum and weighted values.
    tiling: of the kernel.
  """
  spec = tiling.spec
  q_ref, k_ref, v_ref = refs[:3]
  rules = refs[3 : 3 + spec.num_rules]
  out_ref, sums_ref, top_ref, total_ref, mix_ref = refs[3 + spec.num_rules :]
  query_tile, key_tile = pl.program_id(2), pl.program_id(3)

  @pl.when(key_tile == 0)
  def _() -> None:
    top_ref[...] = jnp.full_like(top_ref, HIDDEN)
    total_ref[...] = jnp.zeros_like(total_ref)
    mix_ref[...] = jnp.zeros_like(mix_ref)

  @pl.when(_useful(tiling, query_tile, key_tile))
  def _() -> None:
    v = _inside(v_ref[0, 0], key_tile, spec.num_keys)
    scores = dot(spec, scaled(spec, q_ref[0, 0]), k_ref[0, 0], NT)
    seen = _visible(tiling, rules, query_tile, key_tile, 0)
    if seen is not None:
      scores = jnp.where(seen, scores, HIDDEN)
    before = top_ref[:, :1]
    top = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
    keep = jnp.exp2(before - top)
    weights = jnp.exp2(scores - top)
    added = jnp.sum(weights, axis=1, keepdims=True)
    total = total_ref[:, :1] * keep + added
    top_ref[...] = jnp.broadcast_to(top, top_ref.shape)
    total_ref[...] = jnp.broadcast_to(total, total_ref.shape)
    mixed = dot(spec, weights.astype(v.dtype), v, NN)
    mix_ref[...] = mix_ref[...] * keep + mixed

  @pl.when(key_tile == tiling.key_tiles - 1)
  def _() -> None:
    top, total = top_ref[...], total_ref[...]
    something = top > HIDDEN / 2
    share = jnp.where(something, 1.0 / total, 0.0)
    out_ref[0, 0] = (mix_ref[...] * share[:, :1]).astype(out_ref.dtype)
    sums = jnp.where(something, top + jnp.log2(total), UNSEEN)
    sums_ref[0, 0] = jnp.transpose(sums)[:1]


def _scores(
  tiling: Tiling, refs: Any, query_tile: Any, key_tile: Any
) -> tuple[Any, ...]:
  """Weights, gradients of scores [keys, queries], q, k, gradient of values."""
  spec = tiling.spec
  q, k, v, grad = (ref[0, 0] for ref in refs[:4])
  q = scaled(spec, _inside(q, query_tile, spec.num_queries))
  grad = _inside(grad, query_tile, spec.num_queries)
  k = _inside(k, key_tile, spec.num_keys)
  v = _inside(v, key_tile, spec.num_keys)
  sums, mean = refs[4][0, 0], refs[5][0, 0]
  scores = dot(spec, k, q, NT)
  rules = refs[6 : 6 + spec.num_rules]
  seen = _visible(tiling, rules, query_tile, key_tile, 1)
  if seen is not None:
    scores = jnp.where(seen, scores, HIDDEN)
  weights = jnp.exp2(scores - sums)
  by_score = weights * (dot(spec, v, grad, NT) - mean)
  return weights.astype(q.dtype), by_score.astype(q.dtype), q, k, grad


def query_gradient_kernel(*refs: Any, tiling: Tiling) -> None:
  """Gradient of q, summed over tiles of keys.

  Args:
    *refs: inputs q, k, v, gradient of the values, logarithms of sums, means
      and rules; output gradient of q; scratch for its sum.
    tiling: of the kernel.
  """
  out_ref, sum_ref = refs[-2:]
  query_tile, key_tile = pl.program_id(2), pl.program_id(3)

  @pl.when(key_tile == 0)
  def _() -> None:
    sum_ref[...] = jnp.zeros_like(sum_ref)

  @pl.when(_useful(tiling, query_tile, key_tile))
  def _() -> None:
    _, by_score, _, k, _ = _scores(tiling, refs, query_tile, key_tile)
    sum_ref[...] += dot(tiling.spec, by_score, k, TN)

  @pl.when(key_tile == tiling.key_tiles - 1)
  def _() -> None:
    out_ref[0, 0] = (sum_ref[...] * tiling.spec.scale).astype(out_ref.dtype)


def key_gradient_kernel(*refs: Any, tiling: Tiling) -> None:
  """Gradients of k and v, summed over tiles of queries.

  Args:
    *refs: inputs as of `query_gradient_kernel`; outputs gradients of k and v;
      scratch for both sums.
    tiling: of the kernel.
  """
  dk_ref, dv_ref, dk_sum, dv_sum = refs[-4:]
  key_tile, query_tile = pl.program_id(2), pl.program_id(3)

  @pl.when(query_tile == 0)
  def _() -> None:
    dk_sum[...] = jnp.zeros_like(dk_sum)
    dv_sum[...] = jnp.zeros_like(dv_sum)

  @pl.when(_useful(tiling, query_tile, key_tile))
  def _() -> None:
    weights, by_score, q, _, grad = _scores(tiling, refs, query_tile, key_tile)
    dk_sum[...] += dot(tiling.spec, by_score, q, NN)
    dv_sum[...] += dot(tiling.spec, weights, grad, NN)

  @pl.when(query_tile == tiling.spec.tiles - 1)
  def _() -> None:
    dk_ref[0, 0] = (dk_sum[...] * LN2).astype(dk_ref.dtype)
    dv_ref[0, 0] = dv_sum[...].astype(dv_ref.dtype)
