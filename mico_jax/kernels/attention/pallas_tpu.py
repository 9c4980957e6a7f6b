"""Attention by this package's Pallas kernels for TPU.

Blocks take odd lengths and head sizes as they are (257 tokens, heads of 88);
nothing is padded in HBM. `tpu_plan` chooses how a call runs with its keys
resident in VMEM; where they do not fit, they are streamed (`pallas_stream`).
As in FlashAttention (arXiv:2205.14135), scores are never stored in HBM and the
backward pass recomputes them from one number per query.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Key

from mico_jax.kernels import target
from mico_jax.kernels.attention import drops
from mico_jax.kernels.attention import pallas_stream as stream
from mico_jax.kernels.attention import tpu_resident as resident
from mico_jax.kernels.attention.rules import Rules
from mico_jax.kernels.attention.tpu_devices import on_devices, splits
from mico_jax.kernels.attention.tpu_layout import Heads
from mico_jax.kernels.attention.tpu_plan import (
  TilePlan,
  VmemError,
  make_plan,
  spec_fields,
)

ATTENTION_SUMS = "attention_sums"  # checkpoint name, for remat policies
_DTYPES = (jnp.bfloat16, jnp.float32)


def _specs(plan: TilePlan, spec: resident.Spec, part: int) -> pl.BlockSpec:
  """Block of q (0), k (1) or v (2); the result has the block of q."""
  layout = spec.layout
  rows = spec.rows if part == 0 else spec.num_keys

  if isinstance(layout, Heads):
    shape = (1, layout.num_heads, rows, layout.head_dim)
    if part == 0:
      return pl.BlockSpec(shape, lambda b, g, t: (b, g, t, 0))
    return pl.BlockSpec(shape, lambda b, g, t: (b, g, 0, 0))
  shape = (1, rows, layout.num_heads * layout.head_dim)
  first = part if plan.packed else 0  # packed: all heads are one group
  if part == 0:
    return pl.BlockSpec(shape, lambda b, g, t: (b, t, g))
  return pl.BlockSpec(shape, lambda b, g, t: (b, 0, first + g))


def _three(plan: TilePlan, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
  return arrays * 3 if plan.packed else arrays


def _apart(plan: TilePlan, x: Float[Array, "B L D"]) -> Float[Array, "B N L H"]:
  """Splits heads that lie side by side."""
  x = x.reshape(*x.shape[:2], plan.num_heads, -1)
  return jnp.swapaxes(x, 1, 2)


def _side_by_side(x: Float[Array, "B N L H"]) -> Float[Array, "B L D"]:
  """Joins heads side by side: D = N H."""
  x = jnp.swapaxes(x, 1, 2)
  return x.reshape(*x.shape[:2], -1)


def _values_shape(
  plan: TilePlan, q: Float[Array, "..."]
) -> jax.ShapeDtypeStruct:
  shape = q.shape
  if plan.packed:
    shape = (*shape[:-1], shape[-1] // 3)
  return jax.ShapeDtypeStruct(shape, q.dtype)


def _cost(plan: TilePlan, batch: int, itemsize: int, *, backward: bool) -> Any:
  """Cost of a kernel: its products, and every array moved once."""
  spec = plan.forward
  pairs = batch * plan.num_heads * spec.num_queries * spec.num_keys
  head_dim = spec.layout.head_dim
  # Arrays of L and of S rows: q and values, k and v; in the backward pass q,
  # both gradients, and k, v and their gradients.
  query_arrays, key_arrays = (3, 4) if backward else (2, 2)
  rows = query_arrays * spec.num_queries + key_arrays * spec.num_keys
  return pl.CostEstimate(
    flops=2 * (5 if backward else 2) * pairs * head_dim,
    transcendentals=pairs,
    bytes_accessed=batch * plan.num_heads * rows * head_dim * itemsize,
  )


def _call(plan: TilePlan, kernel: Any, name: str, **options: Any) -> Any:
  spec = plan.forward
  sizes = (spec.num_queries, spec.num_keys, plan.num_heads)
  return pl.pallas_call(
    kernel,
    # The sizes tell the calls of a step apart in a profile.
    name="_".join([name, *map(str, sizes), str(spec.layout.head_dim)]),
    interpret=plan.machine.interpret,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=plan.vmem_limit,
    ),
    **options,
  )


def _local(
  machine: target.Target, *, batch: int, num_heads: int, packed: bool
) -> int:
  """Number of heads of one device.

  Raises:
    NotImplementedError: if rows or heads do not divide over the mesh.
  """
  if not splits(machine):
    return num_heads
  rows = machine.parts(machine.batch_axes)
  parts = machine.parts(machine.head_axes)
  if batch % rows or num_heads % parts:
    raise NotImplementedError(
      f"{batch} rows and {num_heads} heads do not divide over {rows} x {parts} "
      "devices"
    )
  if packed and parts > 1:
    raise NotImplementedError(
      "packed heads over several devices: a share of the columns is not a "
      "share of the heads"
    )
  return num_heads // parts


def _forward(
  plan: TilePlan,
  arrays: tuple[Array, ...],
  rules: tuple[Array, ...],
  *,
  save: bool,
) -> tuple[Array, Array | None]:
  """Values and, with `save`, logarithms of sums [B, groups, heads, L]."""
  spec = plan.forward
  q, k, v = _three(plan, arrays)
  batch = q.shape[0]
  extra, extra_blocks = stream.rule_inputs(
    spec, rules, spec.num_keys, query=2, key=None, transposed=False
  )
  outs, out_blocks, scratch = (
    [_values_shape(plan, q)],
    [_specs(plan, spec, 0)],
    [],
  )
  lanes = spec.rows if spec.tiles == 1 else resident.lane_tiles(spec.rows)
  heads = spec.layout.num_heads
  if save:
    shape = (batch, plan.groups(spec), heads, spec.tiles * lanes)
    outs.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    out_blocks.append(
      pl.BlockSpec((1, 1, heads, lanes), lambda b, g, t: (b, g, 0, t))
    )
    scratch_rows = resident.lane_tiles(spec.rows)
    scratch.append(
      pltpu.VMEM((scratch_rows, resident.lane_tiles(heads)), jnp.float32)
    )
  result = _call(
    plan,
    functools.partial(resident.forward_kernel, spec=spec),
    "mico_attention_forward",
    grid=(batch, plan.groups(spec), spec.tiles),
    in_specs=[*(_specs(plan, spec, i) for i in range(3)), *extra_blocks],
    out_specs=out_blocks,
    out_shape=outs,
    scratch_shapes=scratch,
    cost_estimate=_cost(plan, batch, q.dtype.itemsize, backward=False),
  )(q, k, v, *extra)
  if not save:
    return result[0], None
  out, sums = result
  if spec.tiles > 1:
    sums = sums.reshape(*sums.shape[:3], spec.tiles, lanes)[..., : spec.rows]
    sums = sums.reshape(*sums.shape[:3], -1)[..., : spec.num_queries]
  return out, sums


def _backward(
  plan: TilePlan,
  arrays: tuple[Array, ...],
  rules: tuple[Array, ...],
  sums: Array,
  grad: Array,
) -> tuple[Array, ...]:
  """Gradients of q, k and v, or of the packed array."""
  spec = plan.backward
  if plan.mixed:
    arrays = tuple(_apart(plan, x) for x in arrays)
    grad = _apart(plan, grad)
  q, k, v = _three(plan, arrays)
  batch, heads = q.shape[0], spec.layout.num_heads
  sums = sums.reshape(batch, plan.groups(spec), heads, -1)
  extra, extra_blocks = stream.rule_inputs(
    spec,
    rules,
    spec.num_keys,
    query=2,
    key=None,
    transposed=not spec.upright,
  )
  if missing := spec.tiles * spec.rows - spec.num_queries:
    sums = jnp.pad(
      sums,
      ((0, 0), (0, 0), (0, 0), (0, missing)),
      constant_values=resident.UNSEEN,
    )
  blocks = [_specs(plan, spec, i) for i in range(3)]
  if plan.packed:
    shape = (1, spec.num_queries, arrays[0].shape[-1])
    out_blocks = [pl.BlockSpec(shape, lambda b, g, t: (b, 0, 0))]
  else:
    out_blocks = blocks
  scratch = []
  if spec.tiles > 1:
    shape = (heads, spec.num_keys, spec.layout.width)
    scratch = [pltpu.VMEM(shape, jnp.float32)] * 2
  result = _call(
    plan,
    functools.partial(resident.backward_kernel, spec=spec),
    "mico_attention_backward",
    grid=(batch, plan.groups(spec), spec.tiles),
    in_specs=[
      *blocks,
      blocks[0],
      pl.BlockSpec((1, 1, heads, spec.rows), lambda b, g, t: (b, g, 0, t)),
      *extra_blocks,
    ],
    out_specs=out_blocks,
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays],
    scratch_shapes=scratch,
    cost_estimate=_cost(plan, batch, q.dtype.itemsize, backward=True),
  )(q, k, v, grad, sums, *extra)
  if plan.mixed:
    return tuple(_side_by_side(x) for x in result)
  return tuple(result)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: TilePlan, arrays: Any, rules: Any) -> Array:
  return _both(plan, arrays, rules, save=False)[0]


def _both(
  plan: TilePlan, arrays: Any, rules: Any, *, save: bool
) -> tuple[Array, Array]:
  def local(arrays: Any, rules: Any, _: None, grad: None) -> Any:
    del grad
    out, sums = _forward(plan, arrays, rules, save=save)
    if sums is None:
      groups = plan.groups(plan.forward)
      sums = jnp.zeros((*out.shape[:1], groups, 1, 1), jnp.float32)
    return out, sums

  return on_devices(plan, local, arrays, rules, None, None)


def _attend_forward(
  plan: TilePlan, arrays: Any, rules: Any
) -> tuple[Array, Any]:
  out, sums = _both(plan, arrays, rules, save=True)
  return out, (arrays, rules, checkpoint_name(sums, ATTENTION_SUMS))


def _attend_backward(
  plan: TilePlan, saved: Any, grad: Array
) -> tuple[Any, None]:
  arrays, rules, sums = saved
  backward = functools.partial(_backward, plan)
  return on_devices(plan, backward, arrays, rules, sums, grad), None


_attend.defvjp(_attend_forward, _attend_backward)


def _check(
  q: Float[Array, "..."],
  *,
  bias: Float[Array, "#B #N L S"] | None,
  masked_rows: str,
  dropout_rate: float,
  row_keys: Key[Array, " B"] | None,
) -> target.Target:
  """Refuses what no kernel supports; returns the machine.

  Raises:
    NotImplementedError: with the reason.
  """
  machine = target.current()
  if machine.platform != "tpu":
    raise NotImplementedError(f"platform is {machine.platform}, not tpu")
  if not all(isinstance(size, int) for size in q.shape):
    raise NotImplementedError(f"symbolic dimensions: {q.shape}")
  manual = jax.sharding.get_abstract_mesh().manual_axes
  if machine.devices > 1 and machine.mesh is None and not manual:
    raise NotImplementedError(
      f"{machine.devices} devices without a mesh; see "
      "mico_jax.kernels.target.split"
    )
  if q.dtype not in _DTYPES:
    raise NotImplementedError(f"dtype is {q.dtype}, not bfloat16 or float32")
  if bias is not None:
    raise NotImplementedError("additive bias")
  parts = machine.parts(machine.head_axes)
  if dropout_rate > 0.0 and row_keys is not None and parts > 1:
    # A device does not know the indices of its heads.
    raise NotImplementedError(
      f"attention dropout with heads on {parts} devices"
    )
  if masked_rows != "zero":
    raise NotImplementedError(f"masked_rows={masked_rows!r}")
  return machine


def _rule_arrays(
  rules: Rules,
  batch: int,
  num_keys: int,
  row_keys: Key[Array, " B"] | None,
) -> tuple[Array, ...]:
  """Arrays of the rules, and the seeds of the rows if weights are dropped."""
  if rules.causal and rules.first_query is not None:
    raise NotImplementedError("causal order of queries split over devices")
  arrays = []
  ids = rules.key_ids(batch, num_keys)
  if ids is not None:
    arrays.append(ids)
  if rules.query_segments is not None:
    arrays.append(rules.query_segments.astype(jnp.int32))
  if rules.causal and rules.prefix_lengths is not None:
    lengths = rules.prefix_lengths.astype(jnp.int32)
    arrays.append(jnp.broadcast_to(lengths, (batch,)))
  if row_keys is not None:
    arrays.append(drops.seeds(row_keys))
  return tuple(arrays)


def attention(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  rules: Rules,
  bias: Float[Array, "#B #N L S"] | None = None,
  scale: float,
  masked_rows: str,
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
) -> Float[Array, "B L N H"]:
  """Softmax attention; see `mico_jax.kernels.attention.attention`.

  Raises:
    NotImplementedError: for what the kernels do not support, with the reason.

  Source: FlashAttention, arXiv:2205.14135, for storing no scores.
  """
  machine = _check(
    q,
    bias=bias,
    masked_rows=masked_rows,
    dropout_rate=dropout_rate,
    row_keys=row_keys,
  )
  batch, num_queries, num_heads, head_dim = q.shape
  num_keys = k.shape[1]
  row_keys = row_keys if dropout_rate else None
  arrays = _rule_arrays(rules, batch, num_keys, row_keys)
  heads = _local(machine, batch=batch, num_heads=num_heads, packed=False)
  sizes: dict[str, Any] = {
    "num_queries": num_queries,
    "num_keys": num_keys,
    "dtype": q.dtype,
    "scale": scale,
    "rules": rules,
    "dropout": 0.0 if row_keys is None else dropout_rate,
  }
  try:
    plan = make_plan(machine, num_heads=heads, head_dim=head_dim, **sizes)
  except VmemError as error:
    if row_keys is not None:
      raise NotImplementedError(f"attention dropout; {error}") from error
    spec = resident.Spec(
      layout=Heads(1, head_dim),
      rows=num_queries,
      **spec_fields(machine, **sizes),
    )
    streamed = stream.make_stream_plan(
      machine, spec, num_heads=heads, sums_name=ATTENTION_SUMS
    )
    attend = functools.partial(stream.attend, streamed)
  else:
    attend = functools.partial(_attend, plan)
    if plan.lanes:
      three = tuple(x.reshape(*x.shape[:2], -1) for x in (q, k, v))
      return attend(three, arrays).reshape(q.shape)
  three = tuple(jnp.swapaxes(x, 1, 2) for x in (q, k, v))
  return jnp.swapaxes(attend(three, arrays), 1, 2)


def packed_attention(
  qkv: Float[Array, "B L P"],
  *,
  num_heads: int,
  rules: Rules,
  scale: float,
  masked_rows: str,
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
) -> Float[Array, "B L D"]:
  """Self-attention; see `mico_jax.kernels.attention.packed_attention`.

  Raises:
    NotImplementedError: for what the packed kernel does not support, with the
      reason.
  """
  machine = _check(
    qkv,
    bias=None,
    masked_rows=masked_rows,
    dropout_rate=dropout_rate,
    row_keys=row_keys,
  )
  row_keys = row_keys if dropout_rate else None
  batch, length, width = qkv.shape
  plan = make_plan(
    machine,
    num_queries=length,
    num_keys=length,
    num_heads=_local(machine, batch=batch, num_heads=num_heads, packed=True),
    head_dim=width // (3 * num_heads),
    dtype=qkv.dtype,
    scale=scale,
    rules=rules,
    dropout=0.0 if row_keys is None else dropout_rate,
    packed=True,
  )
  arrays = _rule_arrays(rules, batch, length, row_keys)
  return _attend(plan, (qkv,), arrays)
