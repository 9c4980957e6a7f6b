"""Reads a compiled program: cycles, collectives and kernel calls.

XLA:TPU writes its own estimate of the cycles of each of its operations, HBM
time included, into the text of the program; a loop's body stands there once.
Collectives and Pallas calls carry no estimate. XLA:GPU writes none at all: what
its operations read and write is counted instead (`mico_jax.plan.traffic`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mico_jax.benchmarks import aot

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
KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
)
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
_UNKNOWN = 10**12  # larger estimates mean that there is none


def part_of(scope: str) -> str:
  """The part of a step that a scope belongs to."""
  return next((part for text, part in PARTS if text in scope), OTHER)


@dataclass(frozen=True)
class Collective:
  """Collectives of one kind over one set of mesh axes.

  Attributes:
    kind: of `KINDS`.
    axes: mesh axes along which the devices of a group differ, "+" between.
    group: devices of a group, by position in the mesh, of the first group.
    count: how many run in a step.
    bytes: that a device receives in a step, by the best algorithm on a ring: a
      gather or scatter moves (n - 1) / n of the whole array, a reduction of all
      to all twice that.
  """

  kind: str
  axes: str
  group: tuple[int, ...]
  count: int
  bytes: float


@dataclass(frozen=True)
class Asynchronous:
  """A collective whose end the compiler scheduled behind other operations.

  Attributes:
    collective: started at one place of the program.
    cycles: estimated for what runs between its start and its end in a step,
      shared evenly with the others that are under way; Pallas calls have no
      estimate and count nothing.
  """

  collective: Collective
  cycles: float


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


def _mesh_groups(axes: str, named: str) -> list[tuple[int, ...]]:
  """Groups along some axes of a mesh whose devices are in order.

  Args:
    axes: of the mesh, "'a'=2,'b'=8".
    named: those of a group, "'a','b':(2)4": of `b`, split into 2 x 4 x 1, the
      part of size 4.

  Raises:
    ValueError: for parts that do not divide their axis.
  """
  whole = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
  parts: list[tuple[str, int, int]] = []  # axis, devices above, devices of it
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named):
    parts.append((name, int(before or 1), int(size or whole[name])))
  shape: list[int] = []
  place: dict[tuple[str, int], int] = {}  # axis, devices above -> dimension
  for name, size in whole.items():
    cuts = {1, size}
    for _, before, count in (p for p in parts if p[0] == name):
      cuts |= {before, before * count}
    ordered = sorted(cuts)
    for above, below in itertools.pairwise(ordered):
      if below % above or below > size:
        raise ValueError(f"groups {{{named}}} do not divide the mesh [{axes}].")
      place[name, above] = len(shape)
      shape.append(below // above)
  inside = [
    place[key]
    for name, before, size in parts
    for key in sorted(place)
    if key[0] == name and before <= key[1] < before * size
  ]
  order = [i for i in range(len(shape)) if i not in inside] + inside
  ids = np.arange(math.prod(shape)).reshape(shape).transpose(order)
  width = math.prod(shape[i] for i in inside)
  return [tuple(int(i) for i in row) for row in ids.reshape(-1, width)]


def _iota(sizes: str, order: str | None) -> np.ndarray:
  """Numbers in the order of "2,4" transposed by "1,0"."""
  shape = [int(x) for x in sizes.split(",")]
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose([int(x) for x in order.split(",")]) if order else ids


def replica_groups(body: str) -> list[tuple[int, ...]]:
  """The groups of a collective, as positions in the mesh; [] if unwritten.

  Raises:
    ValueError: for groups in a form that is not known.
  """
  found = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", body)
  if found:
    axes, between, named = found.groups()
    groups = _mesh_groups(axes, named)
    if not between.strip(" ,"):
      return groups
    permuted = re.fullmatch(
      r", device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\) ?", between
    )
    if not permuted:
      raise ValueError(f"unknown form of groups: {found.group()}")
    order = _iota(*permuted.groups()).reshape(-1)
    return [tuple(int(order[i]) for i in row) for row in groups]
  found = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", body
  )
  if found:
    shape = [int(x) for x in found.group(1).split(",")]
    ids = _iota(*found.group(2, 3)).reshape(shape)
    return [tuple(int(i) for i in row) for row in ids]
  found = re.search(
    r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", body
  )
  if not found:
    unknown = re.search(r"replica_groups=(?!\{\}).{,80}", body)
    if unknown:
      raise ValueError(f"unknown form of groups: {unknown.group()}")
    return []
  rows = re.findall(r"\{([\d,]+)\}", found.group(1))
  return [tuple(int(i) for i in row.split(",")) for row in rows]


def axes_of(group: Sequence[int], mesh: Mapping[str, int]) -> str:
  """Mesh axes along which the devices of a group differ."""
  places = np.stack(np.unravel_index(np.asarray(group), tuple(mesh.values())))
  names = [
    name
    for name, row in zip(mesh, places, strict=True)
    if len(np.unique(row)) > 1
  ]
  return "+".join(names) or "none"


def _moved(kind: str, results: list[int], n: int, *, started: bool) -> float:
  """Bytes a device receives; `results` are sizes of the result."""
  if kind == "collective-permute":
    return float(max(results, default=0))
  if started and kind != "all-reduce":  # (operands, results)
    results = results[len(results) // 2 :]
  whole = float(sum(results))
  if kind == "reduce-scatter":
    whole *= n
  return whole * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def collective_of(
  found: Operation, mesh: Mapping[str, int], *, scattered: bool = False
) -> Collective | None:
  """The collective that an operation is; None: it is none.

  Args:
    found: an operation.
    mesh: axis -> size.
    scattered: a reduction to all whose result is sliced at once.
  """
  kind = next((k for k in KINDS if found.op in (k, f"{k}-start")), None)
  if kind is None:
    return None
  groups = replica_groups(found.body)
  group = groups[0] if groups else tuple(range(math.prod(mesh.values())))
  if kind == "collective-permute":
    group = tuple(sorted({i for pair in groups[:2] for i in pair}))
  types = found.body.split(f" {found.op}(")[0]
  started = found.op.endswith("-start")
  if started:  # without what the runtime keeps behind operands and results
    types = re.sub(r"(, [us]32\[\](\{[^}]*\})?)+\)$", ")", types)
  results = sizes(types)
  moved = _moved(kind, results, max(len(group), 1), started=started)
  if scattered:
    kind, moved = "reduce-scatter", moved / 2
  return Collective(
    kind, axes_of(group, mesh), group, found.times, moved * found.times
  )


def _continues(label: str, name: str) -> bool:
  """Whether a fusion goes on with a collective that another one started.

  Start, what runs beside it, and the end each hold the collective.
  """
  beside = name.startswith("async_collective_fusion")
  return beside or label.startswith("async-collective-done")


def _held(
  text: Text, found: Operation, mesh: Mapping[str, int]
) -> list[Collective]:
  """The collectives that an operation is, starts, or does among others."""
  here = collective_of(found, mesh)
  held = [here] if here else []
  name = called(found.body, "calls") if found.op == "fusion" else ""
  if name and not _continues(found.label, name):
    for inner in text.operations(name, found.times):
      inside = collective_of(
        inner, mesh, scattered="all-reduce-scatter" in name
      )
      held += [inside] if inside else []
  return held


def _merged(found: Iterable[Collective]) -> list[Collective]:
  """One for each kind and axes, those with most bytes first."""
  table: dict[tuple[str, str], Collective] = {}
  for new in found:
    old = table.get((new.kind, new.axes))
    if old:
      count, size = old.count + new.count, old.bytes + new.bytes
      new = dataclasses.replace(old, count=count, bytes=size)
    table[new.kind, new.axes] = new
  return sorted(table.values(), key=lambda c: -c.bytes)


def _start_of(found: Operation) -> str:
  """Label of the start that an operation is the end of; "": it is none."""
  if found.label.startswith("async-collective-done"):  # a fusion
    return found.label.replace("-done", "-start", 1)
  if found.op.removesuffix("-done") in KINDS and found.op.endswith("-done"):
    operand = re.search(r"-done\(.*?%([\w.\-]+)\)", found.body)
    return operand.group(1) if operand else ""
  return ""


def _is_start(found: Operation) -> bool:
  return found.op.endswith("-start") or found.label.startswith(
    "async-collective-start"
  )


class _Flights:
  """Collectives under way while a program is read in its order."""

  def __init__(self) -> None:
    self._started: dict[str, tuple[list[Collective], float]] = {}
    self.landed: list[Asynchronous] = []

  def start(self, label: str, held: list[Collective]) -> None:
    self._started[label] = (held, 0.0)

  def run(self, cycles: int) -> None:
    """Something else runs meanwhile."""
    share = cycles / max(len(self._started), 1)
    for label, (held, before) in self._started.items():
      self._started[label] = (held, before + share)

  def end(self, label: str) -> None:
    held, cycles = self._started.pop(label, ([], 0.0))
    if cycles:
      share = cycles / len(held)
      self.landed += [Asynchronous(c, share) for c in held]


def scope_of(body: str) -> str:
  """The scope that an operation was traced in."""
  found = re.search(r'op_name="([^"]*)"', body)
  return found.group(1) if found else ""


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
  flights = _Flights()
  for found in parsed.walk():
    part = part_of(scope_of(found.body))
    if 'custom_call_target="tpu_custom_call"' in found.body:
      shapes = aot.call_results(found.body)
      calls.append(Call(found.label, shapes, part, found.times))
    flights.end(_start_of(found))
    estimate = re.search(r'"estimated_cycles":"(\d+)"', found.body)
    if estimate and int(estimate.group(1)) < _UNKNOWN:
      spent = int(estimate.group(1)) * found.times
      cycles[part] += spent
      operations[found.label] += spent
      flights.run(spent)
    held = _held(parsed, found, mesh)
    collectives += held
    if held and _is_start(found):
      flights.start(found.label, held)
  return Program(
    cycles=dict(cycles.most_common()),
    costliest=[(n, name) for name, n in operations.most_common(12)],
    collectives=_merged(collectives),
    calls=calls,
    asynchronous=flights.landed,
  )
