"""Parser of the text of a compiled program: computations, operations, sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "f8e4m3fn": 1,
  "f8e5m2": 1,
  "bf16": 2,
  "f16": 2,
  "s16": 2,
  "u16": 2,
  "f32": 4,
  "s32": 4,
  "u32": 4,
  "f64": 8,
  "s64": 8,
  "u64": 8,
}
_UNKNOWN = 10**12  # larger estimates mean that there is no estimate


@dataclass(frozen=True)
class Operation:
  """One line of a program.

  Attributes:
    label: name of the operation.
    op: opcode.
    body: text after "name = ".
    times: number of executions in a step.
    computation: name of the computation that contains it.
  """

  label: str
  op: str
  body: str
  times: int
  computation: str


class Text:
  """The computations of a program's text."""

  def __init__(self, text: str):
    """Splits the text.

    Args:
      text: `compiled.as_text()`.
    """
    self.computations: dict[str, list[str]] = {}
    self.entry = ""
    lines: list[str] = []
    for line in text.splitlines():
      head = re.match(r"(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$", line)
      if head:
        lines = self.computations.setdefault(head.group(2), [])
        self.entry = head.group(2) if head.group(1) else self.entry
      elif line.startswith("  "):
        lines.append(line)

  def operations(self, name: str, times: int = 1) -> Iterator[Operation]:
    """Operations of one computation, in order."""
    for line in self.computations.get(name, ()):
      match = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)
      if match:
        label, body = match.groups()
        opcode = re.search(r"(?:^|[\s)}])([a-z][a-z0-9\-]*)\(", body)
        op = opcode.group(1) if opcode else "?"
        yield Operation(label, op, body, times, name)

  def walk(self, name: str = "", times: int = 1) -> Iterator[Operation]:
    """All executed operations, with trip counts; not those inside fusions."""
    for operation in self.operations(name or self.entry, times):
      yield operation
      body = operation.body
      if operation.op == "while":
        trips = times * self._trips(body)
        yield from self.walk(called(body, "body"), trips)
      elif operation.op == "conditional":
        for branch in _branches(body)[-1:]:
          yield from self.walk(branch, times)
      elif operation.op in ("call", "async-start"):
        inner = called(body, "to_apply") or called(body, "calls")
        if inner in self.computations:
          yield from self.walk(inner, times)

  def _trips(self, body: str) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', body)
    if known:
      return int(known.group(1))
    lines = self.computations.get(called(body, "condition"), ())
    limits = re.findall(r"constant\((\d+)\)", "\n".join(lines))
    return next((int(x) for x in reversed(limits) if int(x) > 1), 1)


def called(body: str, attribute: str) -> str:
  """The computation in an attribute of an operation; "" if it has none."""
  match = re.search(rf"{attribute}=%?([\w.\-]+)", body)
  return match.group(1) if match else ""


def _branches(body: str) -> list[str]:
  match = re.search(r"branch_computations=\{([^}]*)\}", body)
  if match:
    return [x.strip().lstrip("%") for x in match.group(1).split(",")]
  return [called(body, "true_computation")]


def sizes(types: str) -> list[int]:
  """Bytes of every array in the text of a type."""
  return [
    BYTES[kind] * math.prod(int(d) for d in dims.split(",") if d)
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", types)
    if kind in BYTES
  ]


def cycles_of(operation: Operation) -> int:
  """Estimated cycles of an operation in a step; 0 without an estimate."""
  estimate = re.search(r'"estimated_cycles":"(\d+)"', operation.body)
  cycles = int(estimate.group(1)) if estimate else 0
  return cycles * operation.times if cycles < _UNKNOWN else 0


def scope_of(body: str) -> str:
  """The name stack in which an operation was traced."""
  match = re.search(r'op_name="([^"]*)"', body)
  return match.group(1) if match else ""
