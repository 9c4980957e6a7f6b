"""A compiled program by parts of the step: vision, text, loss and the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mico_jax import aot
from mico_jax.aot.collectives import Asynchronous, Collective
from mico_jax.models.encoders import ENCODERS, TEXT_ENCODERS
from mico_jax.objectives import OBJECTIVES

OTHER = "rest"  # optimizer, input scaling, projections


def table() -> Iterator[tuple[str, str]]:
  """(substring of a scope, part of the step) pairs.

  Linen names scopes by module class; objectives open scopes with their name.
  """
  yield from ((encoder.__name__, "vision") for encoder in ENCODERS.values())
  yield from ((tower.__name__, "text") for tower in TEXT_ENCODERS.values())
  yield from ((name, "loss") for name in OBJECTIVES)


def part_of(scope: str) -> str:
  """The part of a step that a scope belongs to: the first match in `table`."""
  return next((part for text, part in table() if text in scope), OTHER)


@dataclass(frozen=True)
class Summary:
  """Figures of a program, per device and step.

  Attributes:
    cycles: estimated cycles by part of the step; empty on GPUs.
    costliest: (cycles, name) of the costliest operations, largest first.
    collectives: by kind and axes.
    calls: of Pallas kernels.
    asynchronous: those of `collectives` that run while other operations do.
  """

  cycles: dict[str, int]
  costliest: list[tuple[int, str]]
  collectives: list[Collective]
  calls: list[aot.Call]
  asynchronous: list[Asynchronous] = field(default_factory=list)


def summarize(text: str, mesh: Mapping[str, int]) -> Summary:
  """Summarises the text of a compiled program.

  Args:
    text: `compiled.as_text()`.
    mesh: axis -> size of the mesh it was compiled for, in order.
  """
  program = aot.read_program(text, mesh)
  cycles: Counter[str] = Counter()
  operations: Counter[str] = Counter()
  for spent, label, scope in program.operations:
    cycles[part_of(scope)] += spent
    operations[label] += spent
  return Summary(
    cycles=dict(cycles.most_common()),
    costliest=[(n, name) for name, n in operations.most_common(12)],
    collectives=program.collectives,
    calls=program.calls,
    asynchronous=program.asynchronous,
  )
