"""Reads a compiled program: cycles, collectives and kernel calls.

XLA:TPU writes its own estimate of the cycles of each of its operations, HBM
time included, into the text of the program; a loop's body stands there once.
Collectives and Pallas calls carry no estimate. XLA:GPU writes none at all: what
its operations read and write is counted instead (`mico_jax.plan.traffic`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from mico_jax import aot
from mico_jax.aot.collectives import (
  Asynchronous,
  Collective,
  Flights,
  held_by,
  is_start,
  merged,
  start_of,
)
from mico_jax.aot.text import Text, cycles_of, scope_of

# Part of a scope's name -> part of the step; the first that fits. Linen names
# scopes by module class, objectives by themselves.
PARTS = (
  ("ViT", "vision"),
  ("Swin", "vision"),
  ("ConvNeXt", "vision"),
  ("UniRepLKNet", "vision"),
  ("Bert", "text"),
  ("contrastive", "loss"),
  ("matching", "loss"),
  ("captioning", "loss"),
)
OTHER = "rest"  # optimizer, input scaling, projections


def part_of(scope: str) -> str:
  """The part of a step that a scope belongs to."""
  return next((part for text, part in PARTS if text in scope), OTHER)


@dataclass(frozen=True)
class Call:
  """Calls of one Pallas kernel at one place of the program.

  Attributes:
    label: of the operation; holds the kernel's name.
    shapes: of the results, "bf16[8,16] f32[8]".
    part: of the step, see `PARTS`.
    count: how many run in a step.
  """

  label: str
  shapes: str
  part: str
  count: int


@dataclass(frozen=True)
class Program:
  """What a program says of itself, per device and step.

  Attributes:
    cycles: estimated cycles by part of the step; empty on GPUs.
    costliest: (cycles, name) of the costliest operations, largest first.
    collectives: by kind and axes.
    calls: of Pallas kernels.
    asynchronous: those of `collectives` that run beside other operations.
  """

  cycles: dict[str, int]
  costliest: list[tuple[int, str]]
  collectives: list[Collective]
  calls: list[Call]
  asynchronous: list[Asynchronous] = field(default_factory=list)


def read(text: str, mesh: Mapping[str, int]) -> Program:
  """Reads the text of a compiled program.

  Args:
    text: `compiled.as_text()`.
    mesh: axis -> size of the mesh it was compiled for, in order.
  """
  parsed = Text(text)
  cycles: Counter[str] = Counter()
  operations: Counter[str] = Counter()
  calls = []
  collectives: list[Collective] = []
  flights = Flights()
  for found in parsed.walk():
    part = part_of(scope_of(found.body))
    if aot.is_kernel(found.body):
      shapes = aot.call_results(found.body)
      calls.append(Call(found.label, shapes, part, found.times))
    flights.end(start_of(found))
    if spent := cycles_of(found):
      cycles[part] += spent
      operations[found.label] += spent
      flights.run(spent)
    held = held_by(parsed, found, mesh)
    collectives += held
    if held and is_start(found):
      flights.start(found.label, held)
  return Program(
    cycles=dict(cycles.most_common()),
    costliest=[(n, name) for name, n in operations.most_common(12)],
    collectives=merged(collectives),
    calls=calls,
    asynchronous=flights.landed,
  )
