"""Compiles a program ahead of time and caches the compiler's figures.

They are cached by the hash of program, topology, compiler and its flags, so
that planning again only traces; programs with a kernel whose bundles were not
dumped are not cached. `memory_analysis` and the out-of-memory error of the TPU
compiler are exact, since it allocates every buffer. XLA:GPU has no such error;
there the sum is compared with `Topology.usable`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.errors import JaxRuntimeError

from mico_jax import aot
from mico_jax.aot.collectives import Asynchronous, Collective
from mico_jax.kernels.compiler import Options
from mico_jax.plan import gpu, parts, traffic
from mico_jax.plan.parts import Summary
from mico_jax.plan.topology import Topology

CACHE = "MICO_JAX_PLAN_CACHE"  # folder of the cache; "off": none
_VERSION = 6  # of the cached files
_UNITS = {unit: 2 ** (10 * i) for i, unit in enumerate(["", *"KMGTPE"])}
_SIZE = r"([\d.]+)([KMGTPE]?)"
# Out-of-memory errors of the TPU compiler: from buffer allocation, from the sum
# of temporaries, and from a first estimate.
_TOO_LARGE = (
  rf"Used {_SIZE} of {_SIZE} hbm",
  rf"total memory required[^()]*\({_SIZE}B?\) exceeds available HBM "
  rf"\({_SIZE}B?\)",
  rf"Requires {_SIZE}B?, has {_SIZE}B? available",
)


@dataclass(frozen=True)
class Facts:
  """Figures of the compiler about one program, per device.

  Attributes:
    fits: whether it needs no more than the device's usable memory.
    needed: bytes at the peak: arguments, results in buffers of their own,
      temporaries, code.
    arguments: bytes of the inputs.
    temporaries: bytes of temporaries, including gradients and activations.
    limit: usable bytes if the compiler's error states them, else 0.
    seconds: of lowering and compiling.
    program: cycles, collectives, kernel calls; None if it does not fit.
    bundles: label of a Pallas call -> instruction bundles of a grid step.
    traffic: bytes that operations other than products read and write; only on
      GPUs.
    cached: whether the figures come from the cache.
  """

  fits: bool
  needed: int
  arguments: int
  temporaries: int
  limit: int
  seconds: float
  program: Summary | None
  bundles: dict[str, int] = field(default_factory=dict)
  traffic: float = 0.0
  cached: bool = False


def cache_folder() -> pathlib.Path | None:
  """Folder of the cache; None: nothing is cached."""
  folder = os.environ.get(CACHE, "")
  if folder == "off":
    return None
  if folder:
    return pathlib.Path(folder)
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  return pathlib.Path(home).expanduser() / "mico_jax" / "plan"


def program_hash(
  text: str,
  where: Topology,
  mesh: Mapping[str, int],
  options: Options | None,
) -> str:
  """Hash of a lowered program and of everything else that decides the figures.

  That is the compiler, its options and flags, the description of the devices,
  and how the text of the program is parsed.
  """
  package = "jax-cuda13-pjrt" if where.is_gpu else "libtpu"
  try:
    version = importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    version = "unknown"
  about: list[Any] = [_VERSION, where.name, dict(mesh), list(parts.table())]
  about += [jax.__version__, version, os.environ.get("XLA_FLAGS", ""), options]
  about.append(
    gpu.description(where.kind) if where.is_gpu else aot.user_flags()
  )
  return hashlib.sha256(f"{about}\n{text}".encode()).hexdigest()


def _size(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])


def out_of_memory(message: str) -> tuple[int, int] | None:
  """(needed, usable) bytes of an out-of-memory error; None for other errors."""
  for wording in _TOO_LARGE:
    if match := re.search(wording, message):
      return _size(*match.group(1, 2)), _size(*match.group(3, 4))
  return None


def _collective(fields: dict[str, Any]) -> Collective:
  fields["group"] = tuple(fields["group"])
  return Collective(**fields)


def _from_json(text: str) -> Facts:
  fields: dict[str, Any] = json.loads(text)
  program: Any = fields["program"]
  if program is not None:
    program = Summary(
      cycles=program["cycles"],
      costliest=[tuple(x) for x in program["costliest"]],
      collectives=[_collective(c) for c in program["collectives"]],
      calls=[aot.Call(**c) for c in program["calls"]],
      asynchronous=[
        Asynchronous(_collective(x["collective"]), x["cycles"])
        for x in program["asynchronous"]
      ],
    )
  fields.update(program=program, cached=True)
  return Facts(**fields)


def compile_facts(
  traced: Any,
  where: Topology,
  mesh: Mapping[str, int],
  options: Options | None = None,
) -> Facts:
  """Compiles a traced function, or reads its figures from the cache.

  Args:
    traced: `jitted.trace(...)`, for devices of the topology.
    where: the topology.
    mesh: axis -> size, in order.
    options: of the TPU compiler, see `mico_jax.kernels.compiler`.

  Raises:
    JaxRuntimeError: for any error of the compiler except out of memory.
  """
  start = time.monotonic()
  lowered = traced.lower(lowering_platforms=(where.platform,))
  folder = cache_folder()
  options = gpu.COMPILER_OPTIONS if where.is_gpu else options
  name = program_hash(lowered.as_text(), where, mesh, options)
  path = folder / f"{name}.json" if folder else None
  if path and path.is_file():
    return _from_json(path.read_text(encoding="utf-8"))
  dumps = None if where.is_gpu else aot.prepare()
  before = set(dumps.rglob("*")) if dumps else set()
  try:
    compiled = lowered.compile(compiler_options=options)
  except JaxRuntimeError as error:
    needed = out_of_memory(str(error))
    if needed is None:
      raise
    facts = _too_large(str(error), needed, time.monotonic() - start)
  else:
    facts = _read(compiled, where, mesh, time.monotonic() - start)
  if dumps:
    new = [p for p in dumps.rglob("*") if p not in before and p.is_file()]
    facts = dataclasses.replace(facts, bundles=_bundles(facts, new))
    for file in new:
      file.unlink()
  if path and not _unknown_kernels(facts, where):
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(dataclasses.asdict(facts)), encoding="utf-8")
    partial.replace(path)
  return facts


def _bundles(facts: Facts, dumped: Sequence[pathlib.Path]) -> dict[str, int]:
  """Bundles of a grid step of each Pallas call of a program.

  The compiler dumps equal calls once; a call without a dump gets the largest
  number of its kernel.
  """
  labels = {call.label for call in facts.program.calls} if facts.program else ()
  bundles: dict[str, int] = {}
  for label in labels:
    ending = re.compile(rf"\d+-{re.escape(label)}-\d+-final_bundles\.txt")
    files = [p for p in dumped if ending.fullmatch(p.name)]
    for depths in aot.read_bundles(files).values():
      # The grid is the outermost loop; loops inside a kernel count once.
      step = sum(n for depth, n in depths.items() if depth >= 1)
      bundles[label] = max(bundles.get(label, 0), step or depths.get(0, 0))
  largest: dict[str, int] = {}
  for label, count in bundles.items():
    name = aot.kernel_name(label)
    largest[name] = max(largest.get(name, 0), count)
  others = {x: aot.kernel_name(x) for x in labels if x not in bundles}
  return bundles | {
    label: largest[name] for label, name in others.items() if name in largest
  }


def _unknown_kernels(facts: Facts, where: Topology) -> set[str]:
  """Labels of Pallas calls whose bundles were not dumped."""
  if where.is_gpu or facts.program is None:
    return set()
  return {call.label for call in facts.program.calls} - set(facts.bundles)


def _too_large(message: str, needed: tuple[int, int], seconds: float) -> Facts:
  sizes = {
    name: _size(number, unit)
    for name, number, unit in re.findall(
      r"^\s*(program|arguments)\s+([\d.]+)([KMGT]?)", message, re.MULTILINE
    )
  }
  used, limit = needed
  arguments = sizes.get("arguments", 0)
  return Facts(
    fits=False,
    needed=used,
    arguments=arguments,
    temporaries=sizes.get("program", used - arguments),
    limit=limit,
    seconds=seconds,
    program=None,
  )


def _read(
  compiled: Any, where: Topology, mesh: Mapping[str, int], seconds: float
) -> Facts:
  memory = compiled.memory_analysis()
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  needed = memory.argument_size_in_bytes + max(results, 0)
  needed += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  text = compiled.as_text()
  return Facts(
    fits=needed <= where.usable or not where.is_gpu,
    needed=needed,
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    limit=0,
    seconds=seconds,
    program=parts.summarize(text, mesh),
    traffic=traffic.count(text) if where.is_gpu else 0.0,
  )
