"""Cycles, collectives and kernel calls in the text of a compiled program.

XLA:TPU writes an estimate of the cycles of each of its operations, including
HBM time, into the text of the program, which contains the body of a loop once.
Collectives and Pallas calls have no estimate. XLA:GPU writes no estimates.
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
  """Calls of one Pallas kernel by one operation of the program.

  Attributes:
    label: of the operation; contains the kernel's name.
    shapes: of the results, such as "bf16[8,16] f32[8]".
    scope: name stack in which it was traced, with the module of the model.
    count: number of calls in a step.
  """

  label: str
  shapes: str
  scope: str
  count: int


@dataclass(frozen=True)
class Program:
  """A program of one device; operations in loops count once per iteration.

  Attributes:
    operations: (cycles, name, scope) of XLA's operations, largest first.
    collectives: summed by kind and mesh axes.
    calls: of Pallas kernels.
    asynchronous: those of `collectives` that run while other operations do.
  """

  operations: list[tuple[int, str, str]] = field(default_factory=list)
  collectives: list[Collective] = field(default_factory=list)
  calls: list[Call] = field(default_factory=list)
  asynchronous: list[Asynchronous] = field(default_factory=list)

  @property
  def xla_cycles(self) -> int:
    """Estimated cycles of all of XLA's operations."""
    return sum(cycles for cycles, _, _ in self.operations)


def read_program(text: str, mesh: Mapping[str, int]) -> Program:
  """Reads the text of a compiled program.

  Args:
    text: `compiled.as_text()`.
    mesh: axis -> size of the mesh it was compiled for, in order; empty for one
      device.
  """
  parsed = Text(text)
  operations: list[tuple[int, str, str]] = []
  collectives: list[Collective] = []
  calls: list[Call] = []
  flights = Flights()
  for operation in parsed.walk():
    scope = scope_of(operation.body)
    if is_kernel(operation.body):
      shapes = call_results(operation.body)
      calls.append(Call(operation.label, shapes, scope, operation.times))
    flights.end(start_of(operation))
    if cycles := cycles_of(operation):
      operations.append((cycles, operation.label, scope))
      flights.run(cycles)
    held = held_by(parsed, operation, mesh)
    collectives += held
    if held and is_start(operation):
      flights.start(operation.label, held)
  operations.sort(reverse=True)
  return Program(operations, merged(collectives), calls, flights.landed)
