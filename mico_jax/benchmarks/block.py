"""Static cycles of an attention block, without a device.

A block is projection to queries, keys and values, attention, output projection
and residual, in bfloat16: `x + attention(x W) V`. `mico-jax bench block --aot
v5e:2x2` compiles it for one device and prints cycles per row: XLA's estimate of
its operations, the bundles of the kernel (see `mico_jax/aot/report.py`), and
the least cycles of the projections.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mico_jax import aot
from mico_jax.benchmarks.attention import Cycles, plan_of, records
from mico_jax.benchmarks.shapes import SHAPES, Shape
from mico_jax.kernels import target
from mico_jax.kernels.attention import packed_attention

IMPLEMENTATIONS = ("pallas_tpu", "xla")


def _block(shape: Shape, machine: target.Target, backend: str) -> Any:
  heads = shape.num_heads

  def forward(x: jax.Array, w: jax.Array, out: jax.Array) -> jax.Array:
    scale = shape.head_dim**-0.5
    if backend == "pallas_tpu":
      scale = math.log(2.0)  # `w` contains the remaining factor
    with target.use(machine):
      y = packed_attention(x @ w, num_heads=heads, scale=scale, backend=backend)
    return x + y @ out

  return forward


def measure(
  shape: Shape, topology: str, *, backend: str, backward: bool
) -> Cycles:
  """Cycles per row of one block: of the kernel and of all other operations.

  The note gives the least cycles of the four projections, at the peak rate of
  the matrix units; 0 where the clock is unpublished.

  Args:
    shape: of self-attention, packed.
    topology: such as "v5e:2x2".
    backend: of attention, one of `IMPLEMENTATIONS`.
    backward: whether to include all gradients.
  """
  machine = target.Target("tpu", topology.split(":")[0])
  width = shape.num_heads * shape.head_dim
  forward = _block(shape, machine, backend)

  def both(x: jax.Array, w: jax.Array, out: jax.Array, grad: jax.Array) -> Any:
    return jax.vjp(forward, x, w, out)[1](grad)

  def array(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.bfloat16)

  x = array(shape.batch, shape.num_queries, width)
  arrays = [x, array(width, 3 * width), array(width, width)]
  report = aot.compile_report(
    both if backward else forward,
    *arrays,
    *([x] if backward else []),
    sharding=aot.one_device(topology),
  )
  chip = aot.chip(topology)
  kernel = 0.0
  if backend == "pallas_tpu":
    plan = plan_of(shape, machine)
    parts = {"attention_forward": plan.forward}
    if backward:
      parts["attention_backward"] = plan.backward
    steps = sum(
      report.step_bundles(part) * spec.tiles * plan.groups(spec)
      for part, spec in parts.items()
    )
    kernel = steps / chip.cores
  flops = 2 * shape.num_queries * 4 * width**2 * (3 if backward else 1)
  floor = 0.0
  if chip.clock:
    floor = flops * chip.clock / (chip.flops / chip.devices)
  note = f"floor {round(floor)}"
  return Cycles(kernel, report.program.xla_cycles / shape.batch, note)


def run(
  topology: str, shapes: Sequence[str] = ("vit_g",), *, batch: int = 0
) -> Iterator[dict[str, Any]]:
  """Measures the block of each packed shape.

  Args:
    topology: such as "v5e:2x2".
    shapes: names of `SHAPES`.
    batch: rows to compile for; 0: those of the shape.

  Yields:
    One record per shape, implementation and direction.
  """
  for name in shapes:
    shape = SHAPES[name].with_batch(batch)
    for backend in IMPLEMENTATIONS:
      yield from records(
        {"topology": topology, "shape": name, "implementation": backend},
        functools.partial(measure, shape, topology, backend=backend),
      )
