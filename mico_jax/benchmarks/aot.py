"""Compiles for a TPU slice on a machine without one, and reads the figures.

Needs `pip install mico-jax[aot]` (libtpu, x86-64 Linux; no TPU, no root). What
comes out are compiler figures, deterministic for one version of libtpu, and no
run times:

- bundles: VLIW instruction bundles of a Pallas kernel, by loop depth, about one
  cycle each; those at depth 1 run once per grid step. They hold no HBM time, no
  DMA latency and no cost of a grid step (about 0.35 us).
- cycles: XLA's own estimate of each of its operations, memory time included,
  times the trip counts of loops. Collectives and Pallas calls have none.
- memory: what the executable needs; running out of it raises at compile time.

Its compiler nests estimates of fused products deeper than the 64 KiB stack of
its fibers and dies of it ("SIGSEGV STACK OVERFLOW") with large steps, so stacks
of 1 MiB are asked for. Where a run on a TPU dies of that while it compiles, set
LIBTPU_INIT_ARGS=--fibers_default_thread_stack_size=1048576.

libtpu reads its flags when it is loaded, so `prepare` comes before the first
compilation of a process, and one process dumps into one folder. Flags that the
user gives (LIBTPU_INIT_ARGS) are kept.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mico_jax.kernels.compiler import Options


@dataclasses.dataclass(frozen=True)
class Chip:
  """One TPU generation; figures per chip, from the vendor's data sheets.

  Attributes:
    flops: peak bfloat16 FLOP/s.
    clock: Hz; None: unpublished.
    bandwidth: of HBM, bytes/s.
    memory: HBM in GiB.
    devices: JAX devices of a chip in its topologies.
    topology: the smallest slice that can be compiled for.
    cores: TensorCores of a device. Two share the "parallel" axes of a kernel's
      grid, and XLA's estimates are of both.
  """

  flops: float
  clock: float | None
  bandwidth: float
  memory: float
  devices: int
  topology: str
  cores: int = 1


CHIPS: dict[str, Chip] = {
  "v4": Chip(275e12, 1.05e9, 1228e9, 32, 2, "v4:2x2x1"),
  "v5e": Chip(197e12, 1.5e9, 819e9, 16, 1, "v5e:2x2"),
  "v5p": Chip(459e12, 1.75e9, 2765e9, 95, 1, "v5p:2x2x1", 2),
  "v6e": Chip(918e12, 1.75e9, 1640e9, 32, 1, "v6e:2x2"),
  "tpu7x": Chip(2307e12, None, 7380e9, 192, 2, "tpu7x:2x2x1"),
}
_BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "f32": 4,
  "s32": 4,
  "u32": 4,
}
_DTYPES = {
  "bfloat16": "bf16",
  "float16": "f16",
  "float32": "f32",
  "int32": "s32",
  "int8": "s8",
  "bool": "pred",
}
_COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "collective-permute",
  "all-to-all",
)
_UNKNOWN = 10**12  # larger estimates mean that there is none
_DUMP_FLAGS = (
  "--xla_jf_dump_to=",
  "--xla_jf_dump_llo_text=",
  "--xla_jf_dump_llo_pass_label_regex=",
)
_STACK_FLAG = "--fibers_default_thread_stack_size=1048576"
_folder: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Report:
  """What the compiler says of one program, for one device.

  Attributes:
    cycles: estimated cycles by XLA opcode, times trip counts.
    operations: (cycles, name, scope) of each, largest first; the scope says
      which part of the model it belongs to.
    collectives: opcode -> (count, bytes of the results), times trip counts.
    calls: label of a Pallas call -> how often it runs.
    results: label of a Pallas call -> shapes of its results, as in
      "bf16[8,16] f32[8]".
    bundles: label of a Pallas call, or name of the kernel -> {loop depth:
      bundles}; empty without a dump.
    steps: name of a Pallas kernel and shapes of its results -> grid steps of
      one call.
    argument_bytes: of the inputs.
    temporary_bytes: of everything in between.
  """

  cycles: dict[str, int]
  operations: list[tuple[int, str, str]]
  collectives: dict[str, tuple[int, int]]
  calls: dict[str, int]
  results: dict[str, str]
  bundles: dict[str, dict[int, int]]
  steps: dict[tuple[str, str], int]
  argument_bytes: int
  temporary_bytes: int

  @property
  def xla_cycles(self) -> int:
    """Sum of the estimates of XLA's own operations."""
    return sum(self.cycles.values())

  def kernel_cycles(self, label: str) -> int:
    """Bundles of one call of a kernel: of a grid step, times steps.

    Cores that share the grid (`Chip.cores`) have a part of them each.

    Args:
      label: of the call, a key of `calls`.

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
    return bundles * self.steps[name, self.results[label]]

  def step_bundles(self, part: str) -> int:
    """Bundles of a grid step, summed over kernels whose name has `part`."""
    return sum(
      depths.get(1, 0) or depths.get(0, 0)
      for name, depths in self.bundles.items()
      if part in name
    )


def kernel_name(label: str) -> str:
  """The name of a kernel without the number of its call."""
  return re.sub(r"\.\d+$", "", label)


def result_shapes(avals: Sequence[Any]) -> str:
  """Shapes of arrays as a compiled program writes them."""
  return " ".join(
    f"{_DTYPES.get(str(aval.dtype), aval.dtype)}"
    f"[{','.join(map(str, aval.shape))}]"
    for aval in avals
  )


def grid_steps(jaxpr: Any) -> dict[tuple[str, str], int]:
  """Grid steps of a call of each Pallas kernel, by name and results.

  Raises:
    ValueError: if two kernels of one name and results have different grids.
  """
  found: dict[tuple[str, str], int] = {}

  def visit(inner: Any) -> None:
    for eqn in inner.eqns:
      if eqn.primitive.name == "pallas_call":
        name = eqn.params.get("name") or ""
        if "name_and_src_info" in eqn.params:  # other versions of JAX
          name = eqn.params["name_and_src_info"].name
        steps = math.prod(eqn.params["grid_mapping"].grid)
        key = name, result_shapes([v.aval for v in eqn.outvars])
        if found.setdefault(key, steps) != steps:
          raise ValueError(f"{name}: grids of {found[key]} and {steps} steps")
        continue
      for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
          body = getattr(part, "jaxpr", part)
          if hasattr(body, "eqns"):
            visit(body)

  visit(jaxpr)
  return found


def missing() -> str | None:
  """Why nothing can be compiled here, or None."""
  if importlib.util.find_spec("libtpu") is None:
    return "libtpu is not installed; pip install mico-jax[aot]"
  return None


def prepare(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Sets the environment of libtpu; the first call of a process decides.

  Args:
    folder: where bundles are dumped; None: a new temporary folder.

  Returns:
    The folder in use.

  Raises:
    RuntimeError: if libtpu is missing.
  """
  global _folder
  if _folder is not None:
    return _folder
  if reason := missing():
    raise RuntimeError(reason)
  _folder = pathlib.Path(folder or tempfile.mkdtemp(prefix="mico_jax_aot"))
  _folder.mkdir(parents=True, exist_ok=True)
  values = (str(_folder), "true", "final_bundles")
  own = [flag + x for flag, x in zip(_DUMP_FLAGS, values, strict=True)]
  os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    LIBTPU_INIT_ARGS=" ".join([_STACK_FLAG, *given_flags().split(), *own]),
  )
  return _folder


def given_flags() -> str:
  """The user's flags for libtpu, without those of `prepare`."""
  given = os.environ.get("LIBTPU_INIT_ARGS", "").split()
  own = (_STACK_FLAG, *_DUMP_FLAGS)
  return " ".join(flag for flag in given if not flag.startswith(own))


def chip(topology: str) -> Chip:
  """The chip of a topology such as "v5e:2x2".

  Raises:
    ValueError: listing the known generations.
  """
  name = topology.split(":")[0]
  if name not in CHIPS:
    raise ValueError(
      f"topology {topology!r}: unknown generation {name!r}; known: "
      f"{', '.join(CHIPS)}."
    )
  return CHIPS[name]


def devices(topology: str) -> Sequence[Any]:
  """The devices of a slice, as far as a compiler needs them."""
  chip(topology)
  prepare()
  from jax.experimental import topologies

  full = topology if ":" in topology else CHIPS[topology].topology
  description: Any = topologies.get_topology_desc(
    platform="tpu", topology_name=full
  )
  return description.devices


def one_device(topology: str) -> NamedSharding:
  """A sharding that places whole arrays on the first device of a slice."""
  mesh = Mesh(np.array(devices(topology)[:1]), ("device",))
  return NamedSharding(mesh, PartitionSpec())


def compile_report(
  function: Callable[..., Any],
  *args: Any,
  sharding: NamedSharding | None = None,
  donate: Sequence[int] = (),
  options: Options | None = None,
) -> Report:
  """Compiles a function and reads what the compiler knows of it.

  Args:
    function: of arrays; jitted already or not.
    *args: trees of `jax.ShapeDtypeStruct`.
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
  cycles, collectives, operations, calls, results = read_program(text)
  new = sorted(set(folder.rglob("*-final_bundles.txt")) - before)
  bundles = read_bundles(new)
  for path in new:
    path.unlink()
  return Report(
    cycles,
    operations,
    collectives,
    calls,
    results,
    bundles,
    steps,
    memory.argument_size_in_bytes,
    memory.temp_size_in_bytes,
  )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  found: dict[str, list[str]] = {}
  current, entry = "", ""
  for line in text.splitlines():
    head = re.match(r"(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$", line)
    if head:
      current = head.group(2)
      found[current] = []
      entry = current if head.group(1) else entry
    elif current and line.startswith("  "):
      found[current].append(line)
  return found, entry


def _result_bytes(body: str, op: str) -> int:
  """Bytes of the largest array of a result type."""
  largest = 0
  for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", body.split(f" {op}")[0]):
    size = _BYTES.get(kind, 0)
    for dim in filter(None, dims.split(",")):
      size *= int(dim)
    largest = max(largest, size)
  return largest


def call_results(body: str) -> str:
  """Shapes of the results of a Pallas call, as `result_shapes` writes them.

  Args:
    body: of the instruction, what is behind its label.
  """
  types = body.split(" custom-call")[0]
  return " ".join(re.findall(r"\w+\[[\d,]*\]", types))


def read_program(
  text: str,
) -> tuple[
  dict[str, int],
  dict[str, tuple[int, int]],
  list[tuple[int, str, str]],
  dict[str, int],
  dict[str, str],
]:
  """Reads a program: cycles, collectives, operations, calls, results."""
  computations, entry = _computations(text)
  cycles: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  collectives: dict[str, tuple[int, int]] = {}
  operations: list[tuple[int, str, str]] = []
  results: dict[str, str] = {}

  def visit(name: str, times: int) -> None:
    for line in computations.get(name, ()):
      found = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = (.*)", line)
      if not found:
        continue
      label, body = found.groups()
      opcode = re.search(r"(?:^|[\s)}])([a-z][a-z0-9\-]*)\(", body)
      op = opcode.group(1) if opcode else "?"
      if op == "while":
        visit(_name(body, "body"), times * _trips(body, computations))
        continue
      if op == "call":
        visit(_name(body, "to_apply"), times)
      if op.startswith(_COLLECTIVES) and not op.endswith("-done"):
        count, size = collectives.get(op, (0, 0))
        size += times * _result_bytes(body, op)
        collectives[op] = (count + times, size)
      if "tpu_custom_call" in body:
        calls[label] += times
        results[label] = call_results(body)
      estimate = re.search(r'"estimated_cycles":"(\d+)"', body)
      if estimate and int(estimate.group(1)) < _UNKNOWN:
        cycles[op] += int(estimate.group(1)) * times
        scope = re.search(r'op_name="([^"]*)"', body)
        where = scope.group(1) if scope else ""
        operations.append((int(estimate.group(1)) * times, label, where))

  visit(entry, 1)
  operations.sort(reverse=True)
  return dict(cycles), collectives, operations, dict(calls), results


def _name(body: str, key: str) -> str:
  found = re.search(rf"{key}=%([\w.\-]+)", body)
  return found.group(1) if found else ""


def _trips(body: str, computations: dict[str, list[str]]) -> int:
  condition = "\n".join(computations.get(_name(body, "condition"), ()))
  constants = [int(x) for x in re.findall(r"constant\((\d+)\)", condition)]
  return next((x for x in reversed(constants) if x > 1), 1)


def read_bundles(
  paths: Sequence[pathlib.Path],
) -> dict[str, dict[int, int]]:
  """Counts the bundles of dumped kernels: name -> {loop depth: bundles}."""
  found: dict[str, dict[int, int]] = {}
  for path in paths:
    if "schedule-analysis" in path.name or "static_gap" in path.name:
      continue
    name = re.sub(r"^\d+-(.*)-\d+-final_bundles\.txt$", r"\1", path.name)
    depths: collections.Counter[int] = collections.Counter()
    for line in path.read_text().splitlines():
      bundle = re.match(
        r"\s*(0x[0-9a-f]+|\d+)\s+(?:[A-Z]{2})?\s*:\s*(>*)\s*\{", line
      )
      if bundle:
        depths[len(bundle.group(2))] += 1
    found[name] = dict(depths)
  return found
