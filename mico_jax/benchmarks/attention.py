"""Static cycles of attention kernels and their peers, without a device.

`mico-jax bench attention --aot v5e:2x2` compiles each shape for one device (see
`mico_jax/aot/report.py` about the figures) and prints cycles per row and head:
those of the kernel (bundles of a grid step times steps, divided by the cores
that share the grid), and XLA's estimate of the operations around it (padding,
transposition).

Peers: XLA's `jax.nn.dot_product_attention`, and JAX's flash and splash kernels
with the best block size of `PEER_BLOCKS`. These take lengths in multiples of a
block and heads of 128, so their inputs are padded; padded keys are not masked,
in their favour.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

from mico_jax import aot
from mico_jax.benchmarks.shapes import SHAPES, Shape
from mico_jax.kernels import target
from mico_jax.kernels.attention import pallas_tpu, tpu_plan
from mico_jax.kernels.attention.rules import Rules
from mico_jax.kernels.attention.tpu_layout import Lanes

PEER_BLOCKS = (384, 512, 1024)
PEERS = ("xla", "flash", "splash")


@dataclasses.dataclass(frozen=True)
class Cycles:
  """Cycles per row and head.

  Attributes:
    kernel: of Pallas kernels; 0 for XLA.
    around: of XLA's operations.
    note: block size or layout.
  """

  kernel: float
  around: float
  note: str = ""

  @property
  def total(self) -> float:
    """Cycles of the kernel and of the operations around it."""
    return self.kernel + self.around


Attend = Callable[..., jax.Array]


def _inputs(shape: Shape) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Arrays [B L N*H] or [B L 3*N*H], the layouts of projections."""
  width = shape.num_heads * shape.head_dim

  def array(length: int, width: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((shape.batch, length, width), jnp.bfloat16)

  if shape.packed:
    return (array(shape.num_queries, 3 * width),)
  lengths = (shape.num_queries, shape.num_keys, shape.num_keys)
  return tuple(array(length, width) for length in lengths)


def _program(attend: Attend, *, backward: bool) -> Callable[..., Any]:
  """The function to compile: the values, or all gradients."""
  if not backward:
    return attend

  def both(*arrays: jax.Array) -> Any:
    out, pullback = jax.vjp(attend, *arrays)
    # The cotangent depends on the values, so that both passes are compiled.
    return pullback(out)

  return both


def _split(shape: Shape, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
  """q, k, v [B L N H] of `_inputs`."""
  if shape.packed:
    arrays = jnp.split(arrays[0], 3, axis=-1)
  heads = (shape.num_heads, shape.head_dim)
  return tuple(x.reshape(*x.shape[:2], *heads) for x in arrays)


def _joined(out: jax.Array) -> jax.Array:
  """Values [B L N H] as [B L N*H]."""
  return out.reshape(*out.shape[:2], -1)


def measure(
  attend: Attend,
  inputs: Sequence[jax.ShapeDtypeStruct],
  shape: Shape,
  topology: str,
  *,
  backward: bool,
  steps: Mapping[str, int],
  note: str = "",
) -> Cycles:
  """Cycles per row and head of one program.

  Args:
    attend: function of the inputs.
    inputs: abstract arrays.
    shape: attention problem.
    topology: such as "v5e:2x2".
    backward: whether to include all gradients.
    steps: part of the name of a kernel -> grid steps of a call.
    note: of the result.
  """
  # Row major, the layout of matrix products; by default the compiler packs the
  # arguments of a program more densely and changes the layout for each kernel.
  rows = Format(Layout((0, 1, 2)), aot.one_device(topology))
  report = aot.compile_report(
    jax.jit(_program(attend, backward=backward), out_shardings=rows),
    *(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for x in inputs),
  )
  kernel = 0.0
  for part, count in steps.items():
    kernel += report.step_bundles(part) * count
  units = shape.batch * shape.num_heads
  kernel /= aot.chip(topology).cores
  return Cycles(kernel / units, report.program.xla_cycles / units, note)


def plan_of(shape: Shape, machine: target.Target) -> tpu_plan.TilePlan:
  """The plan of this package's kernel for a shape.

  Raises:
    NotImplementedError: if the kernel does not support the shape.
  """
  return tpu_plan.make_plan(
    machine,
    num_queries=shape.num_queries,
    num_keys=shape.num_keys,
    num_heads=shape.num_heads,
    head_dim=shape.head_dim,
    dtype=jnp.bfloat16,
    scale=shape.head_dim**-0.5,
    rules=Rules(),
    packed=shape.packed,
  )


def ours(shape: Shape, topology: str, *, backward: bool) -> Cycles:
  """Cycles of this package's kernel.

  Raises:
    NotImplementedError: if the kernel does not support the shape.
  """
  machine = target.Target("tpu", topology.split(":")[0])
  plan = plan_of(shape, machine)

  def attend(*arrays: jax.Array) -> jax.Array:
    options: dict[str, Any] = {
      "rules": Rules(),
      "scale": shape.head_dim**-0.5,
      "masked_rows": "zero",
    }
    with target.use(machine):
      if shape.packed:
        return pallas_tpu.packed_attention(
          arrays[0], num_heads=shape.num_heads, **options
        )
      return _joined(pallas_tpu.attention(*_split(shape, arrays), **options))

  specs = {"mico_attention_forward": plan.forward}
  if backward:
    specs["mico_attention_backward"] = plan.backward
  steps = {
    name: shape.batch * plan.groups(spec) * spec.tiles
    for name, spec in specs.items()
  }
  spec = plan.backward if backward else plan.forward
  lanes = isinstance(spec.layout, Lanes)
  layout = "packed" if shape.packed else "lanes" if lanes else "heads"
  note = f"{layout} {spec.layout.num_heads}x{spec.rows}"
  return measure(
    attend,
    _inputs(shape),
    shape,
    topology,
    backward=backward,
    steps=steps,
    note=note,
  )


def xla(shape: Shape, topology: str, *, backward: bool) -> Cycles:
  """Cycles of `jax.nn.dot_product_attention`."""

  def attend(*arrays: jax.Array) -> jax.Array:
    return _joined(jax.nn.dot_product_attention(*_split(shape, arrays)))

  return measure(
    attend, _inputs(shape), shape, topology, backward=backward, steps={}
  )


def _padded(shape: Shape, arrays: Sequence[jax.Array], block: int) -> Any:
  """q, k, v as [B, N, L, 128], with lengths padded to whole blocks."""
  padded = []
  for x in _split(shape, arrays):
    x = jnp.swapaxes(x, 1, 2)
    rows, lanes = -x.shape[2] % block, -x.shape[3] % 128
    padded.append(jnp.pad(x, ((0, 0), (0, 0), (0, rows), (0, lanes))))
  return padded


def _unpadded(shape: Shape, x: jax.Array) -> jax.Array:
  x = x[:, :, : shape.num_queries, : shape.head_dim]
  return _joined(jnp.swapaxes(x, 1, 2))


def _flash(shape: Shape, block: int) -> tuple[Attend, dict[str, int]]:
  from jax.experimental.pallas.ops.tpu import flash_attention as module

  queries = -(-shape.num_queries // block)
  keys = -(-shape.num_keys // block)
  sizes = module.BlockSizes(
    block_q=block,
    block_k_major=block,
    block_k=block,
    block_b=1,
    block_q_major_dkv=block,
    block_k_major_dkv=block,
    block_k_dkv=block,
    block_q_dkv=block,
    block_k_major_dq=block,
    block_k_dq=block,
    block_q_dq=block,
  )

  def attend(*arrays: jax.Array) -> jax.Array:
    out = module.flash_attention(
      *_padded(shape, arrays, block),
      sm_scale=shape.head_dim**-0.5,
      block_sizes=sizes,
    )
    return _unpadded(shape, out)

  steps = shape.batch * shape.num_heads * queries * keys
  return attend, {"flash": steps}


def _splash(shape: Shape, block: int) -> tuple[Attend, dict[str, int]]:
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as module,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  queries = -(-shape.num_queries // block)
  keys = -(-shape.num_keys // block)
  full = masks.FullMask((queries * block, keys * block))
  sizes = module.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    use_fused_bwd_kernel=True,
  )
  kernel = module.make_splash_mha(
    masks.MultiHeadMask([full] * shape.num_heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
  )

  def attend(*arrays: jax.Array) -> jax.Array:
    q, k, v = _padded(shape, arrays, block)
    q = q * jnp.asarray(shape.head_dim**-0.5, q.dtype)
    out: Any = jax.vmap(kernel)(q, k, v)
    return _unpadded(shape, out)

  steps = shape.batch * shape.num_heads * queries * keys
  return attend, {"splash": steps}


_PEERS = {"flash": _flash, "splash": _splash}


def peer_attention(name: str, shape: Shape, block: int) -> Attend:
  """A peer with one block size, including padding."""
  return _PEERS[name](shape, block)[0]


def peer(name: str, shape: Shape, topology: str, *, backward: bool) -> Cycles:
  """Cycles of JAX's kernel with the best of `PEER_BLOCKS`.

  Raises:
    NotImplementedError: if it compiles with none of the blocks.
  """
  results, errors = [], []
  longest = max(shape.num_queries, shape.num_keys)
  for block in PEER_BLOCKS:
    if block > 384 and block > longest:
      continue
    try:
      attend, steps = _PEERS[name](shape, block)
      cycles = measure(
        attend,
        _inputs(shape),
        shape,
        topology,
        backward=backward,
        steps=steps,
        note=f"block {block}",
      )
    except Exception as error:  # whatever the peer raises
      errors.append(f"{block}: {str(error).splitlines()[0][:80]}")
      continue
    results.append(cycles)
  if not results:
    raise NotImplementedError("; ".join(errors))
  return min(results, key=lambda cycles: cycles.total)


def run(
  topology: str,
  shapes: Sequence[str],
  *,
  peers: Sequence[str] = PEERS,
  batch: int = 0,
) -> Iterator[dict[str, Any]]:
  """Measures each shape, forward and forward with backward.

  Args:
    topology: such as "v5e:2x2".
    shapes: names of `SHAPES`.
    peers: of `PEERS`.
    batch: rows to compile for; 0: those of the shape.

  Yields:
    One record per shape, implementation and direction.
  """
  for name in shapes:
    shape = SHAPES[name].with_batch(batch)
    implementations: dict[str, Callable[..., Cycles]] = {"mico_jax": ours}
    for p in peers:
      implementations[p] = xla if p == "xla" else functools.partial(peer, p)
    for implementation, function in implementations.items():
      yield from records(
        {"topology": topology, "shape": name, "implementation": implementation},
        functools.partial(function, shape, topology),
      )


def records(
  about: Mapping[str, Any], function: Callable[..., Cycles]
) -> Iterator[dict[str, Any]]:
  """Records of the forward pass, and of forward with backward pass.

  Args:
    about: first fields of each record.
    function: takes `backward`; raises NotImplementedError where it refuses.
  """
  for backward in (False, True):
    record = {**about, "backward": backward}
    try:
      cycles = function(backward=backward)
    except NotImplementedError as error:
      yield {**record, "refused": str(error)}
      continue
    yield {
      **record,
      "kernel": round(cycles.kernel),
      "around": round(cycles.around),
      "total": round(cycles.total),
      "note": cycles.note,
    }
