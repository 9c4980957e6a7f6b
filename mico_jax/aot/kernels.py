"""Pallas kernels of a compiled program: names, grids, dumped bundles."""

from __future__ import annotations

import collections
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

_DTYPES = {
  "bfloat16": "bf16",
  "float16": "f16",
  "float32": "f32",
  "int32": "s32",
  "int8": "s8",
  "bool": "pred",
}


def is_kernel(body: str) -> bool:
  """Whether an instruction calls a Pallas kernel.

  Args:
    body: text of the instruction after its label.
  """
  return 'custom_call_target="tpu_custom_call"' in body


def kernel_name(label: str) -> str:
  """Name of a kernel, without the number of the call."""
  return re.sub(r"\.\d+$", "", label)


def result_shapes(avals: Sequence[Any]) -> str:
  """Shapes of arrays in the notation of compiled programs."""
  return " ".join(
    f"{_DTYPES.get(str(aval.dtype), aval.dtype)}"
    f"[{','.join(map(str, aval.shape))}]"
    for aval in avals
  )


def grid_steps(jaxpr: Any) -> dict[tuple[str, str], int]:
  """Grid steps per call of each Pallas kernel, by name and result shapes.

  Raises:
    ValueError: if two kernels of one name and results have different grids.
  """
  grids: dict[tuple[str, str], int] = {}
  for eqn in pallas_calls(jaxpr):
    name = eqn.params.get("name") or ""
    if "name_and_src_info" in eqn.params:  # other versions of JAX
      name = eqn.params["name_and_src_info"].name
    steps = math.prod(eqn.params["grid_mapping"].grid)
    call = name, result_shapes([v.aval for v in eqn.outvars])
    if grids.setdefault(call, steps) != steps:
      raise ValueError(f"{name}: grids of {grids[call]} and {steps} steps")
  return grids


def pallas_calls(jaxpr: Any) -> Iterator[Any]:
  """The Pallas calls of a jaxpr and of its inner jaxprs."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "pallas_call":
      yield eqn
      continue
    for value in eqn.params.values():
      for part in value if isinstance(value, (tuple, list)) else (value,):
        body = getattr(part, "jaxpr", part)
        if hasattr(body, "eqns"):
          yield from pallas_calls(body)


def call_results(body: str) -> str:
  """Result shapes of a Pallas call, in the notation of `result_shapes`.

  Args:
    body: text of the instruction after its label.
  """
  types = body.split(" custom-call")[0]
  return " ".join(re.findall(r"\w+\[[\d,]*\]", types))


def read_bundles(
  paths: Sequence[pathlib.Path],
) -> dict[str, dict[int, int]]:
  """Bundles of dumped kernels: name -> {loop depth: bundles}."""
  kernels: dict[str, dict[int, int]] = {}
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
    kernels[name] = dict(depths)
  return kernels
