"""Collectives of a compiled program: who sends to whom, and how much."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mico_jax.aot.text import Operation, Text, called, sizes

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
)


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


def held_by(
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


def merged(found: Iterable[Collective]) -> list[Collective]:
  """One for each kind and axes, those with most bytes first."""
  table: dict[tuple[str, str], Collective] = {}
  for new in found:
    old = table.get((new.kind, new.axes))
    if old:
      count, size = old.count + new.count, old.bytes + new.bytes
      new = dataclasses.replace(old, count=count, bytes=size)
    table[new.kind, new.axes] = new
  return sorted(table.values(), key=lambda c: -c.bytes)


def start_of(found: Operation) -> str:
  """Label of the start that an operation is the end of; "": it is none."""
  if found.label.startswith("async-collective-done"):  # a fusion
    return found.label.replace("-done", "-start", 1)
  if found.op.removesuffix("-done") in KINDS and found.op.endswith("-done"):
    operand = re.search(r"-done\(.*?%([\w.\-]+)\)", found.body)
    return operand.group(1) if operand else ""
  return ""


def is_start(found: Operation) -> bool:
  """Whether the collectives of an operation end at another one."""
  return found.op.endswith("-start") or found.label.startswith(
    "async-collective-start"
  )


class Flights:
  """Collectives under way while a program is read in its order.

  Attributes:
    landed: those that something ran beside.
  """

  def __init__(self) -> None:
    """None is."""
    self._started: dict[str, tuple[list[Collective], float]] = {}
    self.landed: list[Asynchronous] = []

  def start(self, label: str, held: list[Collective]) -> None:
    """These set off with an operation."""
    self._started[label] = (held, 0.0)

  def run(self, cycles: int) -> None:
    """Something else runs meanwhile."""
    share = cycles / max(len(self._started), 1)
    for label, (held, before) in self._started.items():
      self._started[label] = (held, before + share)

  def end(self, label: str) -> None:
    """Those of a start are there; a label that started nothing is none."""
    held, cycles = self._started.pop(label, ([], 0.0))
    if cycles:
      share = cycles / len(held)
      self.landed += [Asynchronous(c, share) for c in held]
