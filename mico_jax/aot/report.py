"""Figures of the TPU compiler about one program.

They are deterministic for one version of libtpu, and not run times:

- bundles: VLIW instruction bundles of a Pallas kernel by loop depth, about one
  cycle each; those at depth 1 run once per grid step. They include no HBM time,
  no DMA latency and no overhead of a grid step (about 0.35 us).
- cycles: XLA's estimate of each of its operations, including memory time, times
  the trip counts of loops. Collectives and Pallas calls have no estimate.
- memory of the executable; compilation fails where it does not fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from mico_jax.aot.compiler import prepare
from mico_jax.aot.kernels import grid_steps, kernel_name, read_bundles
from mico_jax.aot.program import Call, Program, read_program
from mico_jax.kernels.compiler import Options


@dataclasses.dataclass(frozen=True)
class KernelReport:
  """Figures of the compiler about one program, for one device.

  Attributes:
    program: parsed from its text.
    bundles: label of a Pallas call, or name of the kernel -> {loop depth:
      bundles}; empty without a dump.
    steps: (name of a Pallas kernel, result shapes) -> grid steps per call.
    argument_bytes: bytes of the inputs.
    temporary_bytes: bytes of temporaries.
  """

  program: Program
  bundles: dict[str, dict[int, int]] = dataclasses.field(default_factory=dict)
  steps: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
  argument_bytes: int = 0
  temporary_bytes: int = 0

  def kernel_cycles(self, call: Call) -> int:
    """Bundles of one call: those of a grid step times grid steps.

    Cores that share the grid (`Chip.cores`) execute a part of them each.

    Args:
      call: of this program.

    Raises:
      KeyError: if the kernel was not dumped or belongs to another program.
    """
    name = kernel_name(call.label)
    # The compiler schedules equal kernels once and dumps one label of them.
    same = [x for k, x in self.bundles.items() if kernel_name(k) == name]
    known = [self.bundles[call.label]] if call.label in self.bundles else same
    if not known:
      raise KeyError(f"{call.label}: no bundles of that kernel were dumped.")
    bundles = max(x.get(1, 0) or x.get(0, 0) for x in known)
    return bundles * self.steps[name, call.shapes]

  def step_bundles(self, part: str) -> int:
    """Bundles of a grid step, summed over kernels with `part` in their name."""
    return sum(
      depths.get(1, 0) or depths.get(0, 0)
      for name, depths in self.bundles.items()
      if part in name
    )


def compile_report(
  function: Callable[..., Any],
  *args: Any,
  mesh: Mapping[str, int] | None = None,
  sharding: NamedSharding | None = None,
  options: Options | None = None,
) -> KernelReport:
  """Compiles a function and collects the compiler's figures.

  Args:
    function: of arrays, jitted or not.
    *args: trees of `jax.ShapeDtypeStruct`.
    mesh: axis -> size, in order; None: one device.
    sharding: of arguments without a sharding; see `one_device`.
    options: of the compiler, see `mico_jax.kernels.compiler`.
  """
  folder = prepare()

  def place(x: Any) -> Any:
    if x.sharding is not None or sharding is None:
      return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  placed = jax.tree.map(place, args)
  before = set(folder.rglob("*-final_bundles.txt"))
  wrapped = isinstance(function, jax.stages.Wrapped)
  jitted: Any = function if wrapped else jax.jit(function)
  traced = jitted.trace(*placed)
  steps = grid_steps(traced.jaxpr.jaxpr)
  lowered = traced.lower(lowering_platforms=("tpu",))
  compiled = lowered.compile(compiler_options=options)
  memory: Any = compiled.memory_analysis()
  text = compiled.as_text() or ""
  new = sorted(set(folder.rglob("*-final_bundles.txt")) - before)
  bundles = read_bundles(new)
  for path in new:
    path.unlink()
  return KernelReport(
    read_program(text, mesh or {}),
    bundles,
    steps,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
  )
