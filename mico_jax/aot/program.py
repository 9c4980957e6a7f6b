"""What the text of a compiled program says of it.

XLA:TPU writes its own estimate of the cycles of each of its operations, HBM
time included, into the text of the program; a loop's body stands there once.
Collectives and Pallas calls carry no estimate. XLA:GPU writes none at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mico_jax.aot.collectives import (
  Asynchronous,
  Collective,
  Flights,
  held_by,
  is_start,
  merged,
  start_of,
)
from mico_jax.aot.kernels import call_results, is_kernel
from mico_jax.aot.text import Text, cycles_of, scope_of


@dataclass(frozen=True)
class Call:
  """Calls of one Pallas kernel at one place of the program.

  Attributes:
    label: of the operation; holds the kernel's name.
    shapes: of the results, "bf16[8,16] f32[8]".
    scope: that it was traced in: which part of the model it belongs to.
    count: how many run in a step.
  """

  label: str
  shapes: str
  scope: str
  count: int


@dataclass(frozen=True)
class Program:
  """A program of one device, loops with their trips.

  Attributes:
    operations: (cycles, name, scope) of XLA's own, largest first.
    collectives: by kind and mesh axes.
    calls: of Pallas kernels.
    asynchronous: those of `collectives` that run beside other operations.
  """

  operations: list[tuple[int, str, str]] = field(default_factory=list)
  collectives: list[Collective] = field(default_factory=list)
  calls: list[Call] = field(default_factory=list)
  asynchronous: list[Asynchronous] = field(default_factory=list)

  @property
  def xla_cycles(self) -> int:
    """Sum of the estimates of XLA's own operations."""
    return sum(cycles for cycles, _, _ in self.operations)


def read_program(text: str, mesh: Mapping[str, int]) -> Program:
  """Reads the text of a compiled program.

  Args:
    text: `compiled.as_text()`.
    mesh: axis -> size of the mesh it was compiled for, in order; empty: one
      device.
  """
  parsed = Text(text)
  operations: list[tuple[int, str, str]] = []
  collectives: list[Collective] = []
  calls: list[Call] = []
  flights = Flights()
  for found in parsed.walk():
    scope = scope_of(found.body)
    if is_kernel(found.body):
      shapes = call_results(found.body)
      calls.append(Call(found.label, shapes, scope, found.times))
    flights.end(start_of(found))
    if cycles := cycles_of(found):
      operations.append((cycles, found.label, scope))
      flights.run(cycles)
    held = held_by(parsed, found, mesh)
    collectives += held
    if held and is_start(found):
      flights.start(found.label, held)
  operations.sort(reverse=True)
  return Program(operations, merged(collectives), calls, flights.landed)
