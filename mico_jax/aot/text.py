"""The text of a compiled program: computations, operations, sizes."""

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
_UNKNOWN = 10**12  # larger estimates mean that there is none


@dataclass(frozen=True)
class Operation:
  """One line of a program.

  Attributes:
    label: its name.
    op: its opcode.
    body: everything behind "name = ".
    times: how often it runs in a step.
    computation: where it stands.
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
    """The lines of one computation, as they stand."""
    for line in self.computations.get(name, ()):
      found = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)
      if found:
        label, body = found.groups()
        opcode = re.search(r"(?:^|[\s)}])([a-z][a-z0-9\-]*)\(", body)
        op = opcode.group(1) if opcode else "?"
        yield Operation(label, op, body, times, name)

  def walk(self, name: str = "", times: int = 1) -> Iterator[Operation]:
    """Everything that runs, loops with their trips; not inside fusions."""
    for found in self.operations(name or self.entry, times):
      yield found
      if found.op == "while":
        trips = times * self._trips(found.body)
        yield from self.walk(called(found.body, "body"), trips)
      elif found.op == "conditional":
        for branch in _branches(found.body)[-1:]:
          yield from self.walk(branch, times)
      elif found.op in ("call", "async-start"):
        inner = called(found.body, "to_apply") or called(found.body, "calls")
        if inner in self.computations:
          yield from self.walk(inner, times)

  def _trips(self, body: str) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', body)
    if known:
      return int(known.group(1))
    lines = self.computations.get(called(body, "condition"), ())
    found = [int(x) for x in re.findall(r"constant\((\d+)\)", "\n".join(lines))]
    return next((x for x in reversed(found) if x > 1), 1)


def called(body: str, key: str) -> str:
  """The computation that an operation names by a key; "": none."""
  found = re.search(rf"{key}=%?([\w.\-]+)", body)
  return found.group(1) if found else ""


def _branches(body: str) -> list[str]:
  found = re.search(r"branch_computations=\{([^}]*)\}", body)
  if found:
    return [x.strip().lstrip("%") for x in found.group(1).split(",")]
  return [called(body, "true_computation")]


def sizes(types: str) -> list[int]:
  """Bytes of every array in the text of a type."""
  return [
    BYTES[kind] * math.prod(int(d) for d in dims.split(",") if d)
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", types)
    if kind in BYTES
  ]


def cycles_of(found: Operation) -> int:
  """Estimated cycles of an operation in a step; 0: there is no estimate."""
  estimate = re.search(r'"estimated_cycles":"(\d+)"', found.body)
  cycles = int(estimate.group(1)) if estimate else 0
  return cycles * found.times if cycles < _UNKNOWN else 0


def scope_of(body: str) -> str:
  """The scope that an operation was traced in."""
  found = re.search(r'op_name="([^"]*)"', body)
  return found.group(1) if found else ""
