"""What the compiler of TPUs says of one program.

Compiler figures, deterministic for one version of libtpu, and no run times:

- bundles: VLIW instruction bundles of a Pallas kernel, by loop depth, about one
  cycle each; those at depth 1 run once per grid step. They hold no HBM time, no
  DMA latency and no cost of a grid step (about 0.35 us).
- cycles: XLA's own estimate of each of its operations, memory time included,
  times the trip counts of loops. Collectives and Pallas calls have none.
- memory: what the executable needs; running out of it raises at compile time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from mico_jax.aot.compiler import prepare
from mico_jax.aot.kernels import grid_steps, kernel_name, read_bundles
from mico_jax.aot.program import Call, Program, read_program
from mico_jax.kernels.compiler import Options


@dataclasses.dataclass(frozen=True)
class KernelReport:
  """What the compiler says of one program, for one device.

  Attributes:
    program: read from its text.
    bundles: label of a Pallas call, or name of the kernel -> {loop depth:
      bundles}; empty without a dump.
    steps: name of a Pallas kernel and shapes of its results -> grid steps of
      one call.
    argument_bytes: of the inputs.
    temporary_bytes: of everything in between.
  """

  program: Program
  bundles: dict[str, dict[int, int]] = dataclasses.field(default_factory=dict)
  steps: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
  argument_bytes: int = 0
  temporary_bytes: int = 0

  def kernel_cycles(self, call: Call) -> int:
    """Bundles of one run of a call: of a grid step, times steps.

    Cores that share the grid (`Chip.cores`) have a part of them each.

    Args:
      call: one of the program's.

    Raises:
      KeyError: if the kernel was not dumped or is none of the program's.
    """
    name = kernel_name(call.label)
    # The compiler schedules equal kernels once and dumps one of their labels.
    same = [x for k, x in self.bundles.items() if kernel_name(k) == name]
    known = [self.bundles[call.label]] if call.label in self.bundles else same
    if not known:
      raise KeyError(f"{call.label}: no bundles of that kernel were dumped.")
    bundles = max(x.get(1, 0) or x.get(0, 0) for x in known)
    return bundles * self.steps[name, call.shapes]

  def step_bundles(self, part: str) -> int:
    """Bundles of a grid step, summed over kernels whose name has `part`."""
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
  donate: Sequence[int] = (),
  options: Options | None = None,
) -> KernelReport:
  """Compiles a function and reads what the compiler knows of it.

  Args:
    function: of arrays; jitted already or not.
    *args: trees of `jax.ShapeDtypeStruct`.
    mesh: axis -> size, in order; None: one device.
    sharding: put on every argument that has none; see `one_device`.
    donate: numbers of the arguments whose memory may be reused.
    options: of the compiler, see `mico_jax.kernels.compiler`.
  """
  folder = prepare()

  def place(x: Any) -> Any:
    if x.sharding is not None or sharding is None:
      return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  placed = jax.tree.map(place, args)
  before = set(folder.rglob("*-final_bundles.txt"))
  jitted: Any = function
  if not isinstance(function, jax.stages.Wrapped):
    jitted = jax.jit(function, donate_argnums=tuple(donate))
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
