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
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from mico_jax.aot.collectives import Collective, held_by, merged
from mico_jax.aot.compiler import prepare
from mico_jax.aot.kernels import (
  call_results,
  grid_steps,
  is_kernel,
  kernel_name,
  read_bundles,
)
from mico_jax.aot.text import Text, cycles_of, scope_of
from mico_jax.kernels.compiler import Options


@dataclasses.dataclass(frozen=True)
class Program:
  """What the text of a program says, for one device.

  Attributes:
    operations: (cycles, name, scope) of XLA's own, times trip counts, largest
      first; the scope says which part of the model one belongs to.
    collectives: by kind and mesh axes.
    calls: label of a Pallas call -> how often it runs.
    results: label of a Pallas call -> shapes of its results, as in
      "bf16[8,16] f32[8]".
  """

  operations: list[tuple[int, str, str]] = dataclasses.field(
    default_factory=list
  )
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  calls: dict[str, int] = dataclasses.field(default_factory=dict)
  results: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def xla_cycles(self) -> int:
    """Sum of the estimates of XLA's own operations."""
    return sum(cycles for cycles, _, _ in self.operations)


@dataclasses.dataclass(frozen=True)
class Report:
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

  def kernel_cycles(self, label: str) -> int:
    """Bundles of one call of a kernel: of a grid step, times steps.

    Cores that share the grid (`Chip.cores`) have a part of them each.

    Args:
      label: of the call, a key of `Program.calls`.

    Raises:
      KeyError: if the kernel was not dumped or is none of the program's.
    """
    name = kernel_name(label)
    # The compiler schedules equal kernels once and dumps one of their labels.
    same = [x for k, x in self.bundles.items() if kernel_name(k) == name]
    known = [self.bundles[label]] if label in self.bundles else same
    if not known:
      raise KeyError(f"{label}: no bundles of that kernel were dumped.")
    bundles = max(x.get(1, 0) or x.get(0, 0) for x in known)
    return bundles * self.steps[name, self.program.results[label]]

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
) -> Report:
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
  return Report(
    read_program(text, mesh or {}),
    bundles,
    steps,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
  )


def read_program(text: str, mesh: Mapping[str, int]) -> Program:
  """Reads the text of a compiled program.

  Args:
    text: `compiled.as_text()`.
    mesh: axis -> size of the mesh it was compiled for, in order.
  """
  parsed = Text(text)
  calls: Counter[str] = Counter()
  collectives: list[Collective] = []
  operations: list[tuple[int, str, str]] = []
  results: dict[str, str] = {}
  for found in parsed.walk():
    collectives += held_by(parsed, found, mesh)
    if is_kernel(found.body):
      calls[found.label] += found.times
      results[found.label] = call_results(found.body)
    if cycles := cycles_of(found):
      operations.append((cycles, found.label, scope_of(found.body)))
  operations.sort(reverse=True)
  return Program(operations, merged(collectives), dict(calls), results)
