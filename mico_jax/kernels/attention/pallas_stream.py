"""Calls of the kernels of `tpu_stream`: tiles, blocks, gradients, devices."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mico_jax.kernels import target
from mico_jax.kernels.attention import tpu_stream as stream
from mico_jax.kernels.attention.tpu_devices import on_devices
from mico_jax.kernels.attention.tpu_layout import LANES
from mico_jax.kernels.attention.tpu_resident import UNSEEN, Spec

TILE = 512
_LIMIT = 15 * target.MIB  # every generation has 16


@dataclasses.dataclass(frozen=True)
class StreamPlan:
  """How one call runs.

  Attributes:
    tiling: of forward and backward kernels.
    num_heads: N of one device.
    machine: target with the mesh over which rows and heads are split.
    sums_name: checkpoint name of values and logarithms of sums, for remat
      policies.
  """

  tiling: stream.Tiling
  num_heads: int
  machine: target.Target
  sums_name: str

  @property
  def lanes(self) -> bool:
    """Whether heads lie side by side: never."""
    return False

  @property
  def groups(self) -> int:
    """Groups of heads."""
    return self.num_heads


def make_stream_plan(
  machine: target.Target, spec: Spec, *, num_heads: int, sums_name: str
) -> StreamPlan:
  """Plans tiles of at most `TILE` queries and keys.

  Args:
    machine: target.
    spec: with a layout of one head; its rows are set here.
    num_heads: N of one device.
    sums_name: see `StreamPlan`.
  """
  rows = min(TILE, spec.num_queries)
  tiling = stream.Tiling(
    dataclasses.replace(spec, rows=rows, tail=False),
    min(TILE, spec.num_keys),
  )
  return StreamPlan(tiling, num_heads, machine, sums_name)


def _blocks(plan: StreamPlan, query: int, key: int) -> tuple[Any, Any, Any]:
  """Blocks of queries, of keys, and of numbers per query.

  Args:
    plan: of the call.
    query: grid axis over tiles of queries.
    key: grid axis over tiles of keys.
  """
  spec = plan.tiling.spec
  dim = spec.layout.head_dim
  queries = pl.BlockSpec(
    (1, 1, spec.rows, dim), lambda *i: (i[0], i[1], i[query], 0)
  )
  keys = pl.BlockSpec(
    (1, 1, plan.tiling.columns, dim), lambda *i: (i[0], i[1], i[key], 0)
  )
  numbers = pl.BlockSpec(
    (1, 1, 1, spec.rows), lambda *i: (i[0], i[1], 0, i[query])
  )
  return queries, keys, numbers


def rule_inputs(
  spec: Spec,
  rules: tuple[Array, ...],
  columns: int,
  *,
  query: int,
  key: int | None,
  transposed: bool,
) -> tuple[list[Array], list[pl.BlockSpec]]:
  """Arrays of the rules and their blocks, the first inputs after q, k, v.

  Args:
    spec: of the kernel.
    rules: arrays of the rules that the spec names.
    columns: keys of a tile.
    query: grid axis over tiles of queries.
    key: grid axis over tiles of keys; None: a single tile.
    transposed: scores are [S, L], so ids of keys are a column, else a row.
  """
  left, arrays, blocks = list(rules), [], []

  def add(size: int, axis: int | None, column: bool) -> None:
    ids = left.pop(0)
    at = lambda grid: 0 if axis is None else grid[axis]
    if column:
      arrays.append(ids[:, :, None])
      blocks.append(pl.BlockSpec((1, size, 1), lambda *i: (i[0], at(i), 0)))
    else:
      arrays.append(ids[:, None, :])
      blocks.append(pl.BlockSpec((1, 1, size), lambda *i: (i[0], 0, at(i))))

  if spec.key_ids:
    add(columns, key, transposed)
  if spec.query_ids:
    add(spec.rows, query, not transposed)
  if spec.prefix:
    arrays.append(left.pop(0)[:, None, None])
    blocks.append(pl.BlockSpec((1, 1, 1), lambda *i: (i[0], 0, 0)))
  if spec.dropout:
    arrays.append(left.pop(0)[:, None, :])
    blocks.append(pl.BlockSpec((1, 1, 2), lambda *i: (i[0], 0, 0)))
  return arrays, blocks


def _call(plan: StreamPlan, kernel: Any, name: str, **options: Any) -> Any:
  spec = plan.tiling.spec
  sizes = (spec.num_queries, spec.num_keys, plan.num_heads)
  return pl.pallas_call(
    functools.partial(kernel, tiling=plan.tiling),
    name="_".join([name, *map(str, sizes), str(spec.layout.head_dim)]),
    interpret=plan.machine.interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=_LIMIT,
    ),
    **options,
  )


def _cost(
  plan: StreamPlan,
  q: Float[Array, "B N L H"],
  products: int,
  passes: tuple[int, int],
) -> Any:
  """Operations and bytes of a kernel.

  Args:
    plan: of the call.
    q: queries.
    products: number of products of size L x S x H.
    passes: how often arrays of all queries, and of all keys, are moved.
  """
  spec = plan.tiling.spec
  batch, heads, _, dim = q.shape
  pairs = batch * heads * spec.num_queries * spec.num_keys
  rows = passes[0] * spec.num_queries + passes[1] * spec.num_keys
  return pl.CostEstimate(
    flops=2 * products * pairs * dim,
    transcendentals=pairs,
    bytes_accessed=batch * heads * rows * dim * q.dtype.itemsize,
  )


def _forward(
  plan: StreamPlan, arrays: tuple[Array, ...], rules: tuple[Array, ...]
) -> tuple[Array, Array]:
  """Values, and logarithms of sums [B, N, 1, rows of all tiles]."""
  q, k, v = arrays
  spec = plan.tiling.spec
  batch, heads = q.shape[:2]
  queries, keys, numbers = _blocks(plan, 2, 3)
  extra, extra_blocks = rule_inputs(
    spec, rules, plan.tiling.columns, query=2, key=3, transposed=False
  )
  sums = (batch, heads, 1, spec.tiles * spec.rows)
  per_query = pltpu.VMEM((spec.rows, LANES), jnp.float32)
  return _call(
    plan,
    stream.forward_kernel,
    "mico_attention_stream_forward",
    grid=(batch, heads, spec.tiles, plan.tiling.key_tiles),
    in_specs=[queries, keys, keys, *extra_blocks],
    out_specs=[queries, numbers],
    out_shape=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct(sums, jnp.float32),
    ],
    scratch_shapes=[
      per_query,
      per_query,
      pltpu.VMEM((spec.rows, q.shape[-1]), jnp.float32),
    ],
    # Moves queries and results once, keys and values for each tile of queries.
    cost_estimate=_cost(plan, q, 2, (2, 2 * spec.tiles)),
  )(q, k, v, *extra)


def _backward(
  plan: StreamPlan,
  arrays: tuple[Array, ...],
  rules: tuple[Array, ...],
  sums: Array,
  grads: tuple[Array, Array],
) -> tuple[Array, ...]:
  """Gradients of q, k and v.

  Args:
    plan: of the call.
    arrays: q, k, v.
    rules: arrays of the rules.
    sums: logarithms of sums, from `_forward`.
    grads: gradient of the values, and the values.
  """
  q, k, v = arrays
  spec = plan.tiling.spec
  grad, out = grads
  batch, heads = q.shape[:2]
  missing = spec.tiles * spec.rows - spec.num_queries
  means = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  means = jnp.pad(means, ((0, 0), (0, 0), (0, missing)))[:, :, None]
  if missing:  # rows of a ragged tile after the last query are undefined
    row = jnp.arange(sums.shape[-1], dtype=jnp.int32)
    sums = jnp.where((row < spec.num_queries)[None, None, None], sums, UNSEEN)

  # Each kernel moves the arrays of its gradient's side once (queries and two
  # gradients, or keys, values and their gradients), and those of the other side
  # for every tile.
  def run(kernel: Any, name: str, cost: Any, *, of_queries: bool) -> Any:
    query, key = (2, 3) if of_queries else (3, 2)
    queries, keys, numbers = _blocks(plan, query, key)
    extra, extra_blocks = rule_inputs(
      spec, rules, plan.tiling.columns, query=query, key=key, transposed=True
    )
    tiles = {query: spec.tiles, key: plan.tiling.key_tiles}
    results = (q,) if of_queries else (k, v)
    rows = spec.rows if of_queries else plan.tiling.columns
    scratch = pltpu.VMEM((rows, q.shape[-1]), jnp.float32)
    return _call(
      plan,
      kernel,
      f"mico_attention_stream_{name}",
      grid=(batch, heads, tiles[2], tiles[3]),
      in_specs=[queries, keys, keys, queries, numbers, numbers, *extra_blocks],
      out_specs=[queries] if of_queries else [keys, keys],
      out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
      scratch_shapes=[scratch] * len(results),
      cost_estimate=cost,
    )(q, k, v, grad, sums, means, *extra)

  cost = _cost(plan, q, 3, (3, 2 * spec.tiles))
  dq = run(stream.query_gradient_kernel, "queries", cost, of_queries=True)
  cost = _cost(plan, q, 4, (2 * plan.tiling.key_tiles, 4))
  dkv = run(stream.key_gradient_kernel, "keys", cost, of_queries=False)
  return *dq, *dkv


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
  plan: StreamPlan, arrays: Any, rules: Any
) -> Float[Array, "B N L H"]:
  """Softmax attention.

  Args:
    plan: from `make_stream_plan`.
    arrays: q [B, N, L, H], k and v [B, N, S, H].
    rules: arrays of the rules that the spec names, each [B, ...].

  Returns:
    Values [B, N, L, H].

  Source: FlashAttention-2, arXiv:2307.08691, section 3.1.
  """
  return _both(plan, arrays, rules)[0]


def _both(plan: StreamPlan, arrays: Any, rules: Any) -> tuple[Array, Array]:
  def local(arrays: Any, rules: Any, sums: None, grads: None) -> Any:
    del sums, grads
    return _forward(plan, arrays, rules)

  return on_devices(plan, local, arrays, rules, None, None)


def _attend_forward(plan: StreamPlan, arrays: Any, rules: Any) -> Any:
  # The backward pass reads both; a remat policy may recompute them.
  out, sums = (
    checkpoint_name(x, plan.sums_name) for x in _both(plan, arrays, rules)
  )
  return out, (arrays, rules, sums, out)


def _attend_backward(plan: StreamPlan, saved: Any, grad: Array) -> Any:
  arrays, rules, sums, out = saved
  backward = functools.partial(_backward, plan)
  return on_devices(plan, backward, arrays, rules, sums, (grad, out)), None


attend.defvjp(_attend_forward, _attend_backward)
