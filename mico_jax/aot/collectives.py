"""Collectives of a compiled program: their devices and bytes."""

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
    kind: one of `KINDS`.
    axes: mesh axes along which the devices of a group differ, joined by "+".
    group: devices of the first group, by position in the mesh.
    count: number of these collectives in a step.
    bytes: received by a device in a step with the best algorithm on a ring: an
      all-gather or reduce-scatter moves (n - 1) / n of the whole array, an
      all-reduce twice that.
  """

  kind: str
  axes: str
  group: tuple[int, ...]
  count: int
  bytes: float


@dataclass(frozen=True)
class Asynchronous:
  """A collective that runs while other operations do.

  Attributes:
    collective: the collective.
    cycles: estimated cycles per step of the operations between its start and
      its end, shared evenly among the collectives that run at the same time;
      Pallas calls have no estimate and count as zero.
  """

  collective: Collective
  cycles: float


def _mesh_groups(axes: str, named: str) -> list[tuple[int, ...]]:
  """Groups of devices along some axes of a mesh.

  Args:
    axes: of the mesh, such as "'a'=2,'b'=8".
    named: axes of a group, such as "'a','b':(2)4": all of `a`, and of `b`,
      split into 2 x 4 x 1, the part of size 4.

  Raises:
    ValueError: for parts that do not divide their axis.
  """
  whole = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
  parts: list[tuple[str, int, int]] = []  # axis, outer size, size of the part
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named):
    parts.append((name, int(before or 1), int(size or whole[name])))
  shape: list[int] = []
  place: dict[tuple[str, int], int] = {}  # (axis, outer size) -> dimension
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
    place[axis, outer]
    for name, before, size in parts
    for axis, outer in sorted(place)
    if axis == name and before <= outer < before * size
  ]
  order = [i for i in range(len(shape)) if i not in inside] + inside
  ids = np.arange(math.prod(shape)).reshape(shape).transpose(order)
  width = math.prod(shape[i] for i in inside)
  return [tuple(int(i) for i in row) for row in ids.reshape(-1, width)]


def _iota(sizes: str, order: str | None) -> np.ndarray:
  """Iota of shape `sizes` ("2,4"), transposed by `order` ("1,0")."""
  shape = [int(x) for x in sizes.split(",")]
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose([int(x) for x in order.split(",")]) if order else ids


def replica_groups(body: str) -> list[tuple[int, ...]]:
  """Groups of a collective, as positions in the mesh; [] without groups.

  Raises:
    ValueError: for groups in an unknown notation.
  """
  match = re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", body)
  if match:
    axes, between, named = match.groups()
    groups = _mesh_groups(axes, named)
    if not between.strip(" ,"):
      return groups
    permuted = re.fullmatch(
      r", device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\) ?", between
    )
    if not permuted:
      raise ValueError(f"unknown form of groups: {match.group()}")
    order = _iota(*permuted.groups()).reshape(-1)
    return [tuple(int(order[i]) for i in row) for row in groups]
  match = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", body
  )
  if match:
    shape = [int(x) for x in match.group(1).split(",")]
    ids = _iota(*match.group(2, 3)).reshape(shape)
    return [tuple(int(i) for i in row) for row in ids]
  match = re.search(
    r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", body
  )
  if not match:
    unknown = re.search(r"replica_groups=(?!\{\}).{,80}", body)
    if unknown:
      raise ValueError(f"unknown form of groups: {unknown.group()}")
    return []
  rows = re.findall(r"\{([\d,]+)\}", match.group(1))
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
  """Bytes that a device receives.

  Args:
    kind: one of `KINDS`.
    results: bytes of each array of the result type.
    n: devices of a group.
    started: whether it is the start of an asynchronous collective.
  """
  if kind == "collective-permute":
    return float(max(results, default=0))
  if started and kind != "all-reduce":  # its type is (operands, results)
    results = results[len(results) // 2 :]
  whole = float(sum(results))
  if kind == "reduce-scatter":
    whole *= n
  return whole * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def collective_of(
  operation: Operation, mesh: Mapping[str, int], *, scattered: bool = False
) -> Collective | None:
  """The operation as a collective; None if it is another operation.

  Args:
    operation: of a program.
    mesh: axis -> size.
    scattered: whether it is an all-reduce whose result is sliced at once.
  """
  kind = next((k for k in KINDS if operation.op in (k, f"{k}-start")), None)
  if kind is None:
    return None
  groups = replica_groups(operation.body)
  group = groups[0] if groups else tuple(range(math.prod(mesh.values())))
  if kind == "collective-permute":
    group = tuple(sorted({i for pair in groups[:2] for i in pair}))
  types = operation.body.split(f" {operation.op}(")[0]
  started = operation.op.endswith("-start")
  if started:  # drop the runtime's state after operands and results
    types = re.sub(r"(, [us]32\[\](\{[^}]*\})?)+\)$", ")", types)
  results = sizes(types)
  moved = _moved(kind, results, max(len(group), 1), started=started)
  if scattered:
    kind, moved = "reduce-scatter", moved / 2
  return Collective(
    kind, axes_of(group, mesh), group, operation.times, moved * operation.times
  )


def _continues(label: str, name: str) -> bool:
  """Whether a fusion continues a collective that another fusion started.

  The start, the fusion that runs at the same time, and the end all contain the
  instruction of the collective.
  """
  beside = name.startswith("async_collective_fusion")
  return beside or label.startswith("async-collective-done")


def held_by(
  text: Text, operation: Operation, mesh: Mapping[str, int]
) -> list[Collective]:
  """The collectives that an operation is, starts, or contains."""
  here = collective_of(operation, mesh)
  held = [here] if here else []
  name = called(operation.body, "calls") if operation.op == "fusion" else ""
  if name and not _continues(operation.label, name):
    for inner in text.operations(name, operation.times):
      inside = collective_of(
        inner, mesh, scattered="all-reduce-scatter" in name
      )
      held += [inside] if inside else []
  return held


def merged(collectives: Iterable[Collective]) -> list[Collective]:
  """Sums collectives of the same kind and axes; those with most bytes first."""
  table: dict[tuple[str, str], Collective] = {}
  for new in collectives:
    old = table.get((new.kind, new.axes))
    if old:
      count, size = old.count + new.count, old.bytes + new.bytes
      new = dataclasses.replace(old, count=count, bytes=size)
    table[new.kind, new.axes] = new
  return sorted(table.values(), key=lambda c: -c.bytes)


def start_of(operation: Operation) -> str:
  """Label of the operation that this one ends; "" if it ends none."""
  if operation.label.startswith("async-collective-done"):  # a fusion
    return operation.label.replace("-done", "-start", 1)
  if operation.op.removesuffix("-done") in KINDS and operation.op.endswith(
    "-done"
  ):
    operand = re.search(r"-done\(.*?%([\w.\-]+)\)", operation.body)
    return operand.group(1) if operand else ""
  return ""


def is_start(operation: Operation) -> bool:
  """Whether another operation ends the collectives of this one."""
  return operation.op.endswith("-start") or operation.label.startswith(
    "async-collective-start"
  )


class Flights:
  """Collectives that are running while a program is read in order.

  Attributes:
    landed: finished collectives during which other operations ran.
  """

  def __init__(self) -> None:
    """Starts without any."""
    self._started: dict[str, tuple[list[Collective], float]] = {}
    self.landed: list[Asynchronous] = []

  def start(self, label: str, held: list[Collective]) -> None:
    """Starts the collectives of an operation."""
    self._started[label] = (held, 0.0)

  def run(self, cycles: int) -> None:
    """Counts the cycles of another operation for all running collectives."""
    share = cycles / max(len(self._started), 1)
    for label, (held, before) in self._started.items():
      self._started[label] = (held, before + share)

  def end(self, label: str) -> None:
    """Ends the collectives that `label` started, if it started any."""
    held, cycles = self._started.pop(label, ([], 0.0))
    if cycles:
      share = cycles / len(held)
      self.landed += [Asynchronous(c, share) for c in held]
