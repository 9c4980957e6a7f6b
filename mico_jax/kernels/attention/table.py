"""The cheaper attention backend on a TPU, by the compiler's static cycles.

`table.json` is written by `python -m mico_jax.benchmarks.dispatch`: generation
-> class of shapes -> backend -> cycles per row and head, forward and backward.
A class without entries keeps the default order of backends (on v4 the keys of
the long class exceed VMEM and are streamed, which is not measured).
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

PATH = pathlib.Path(__file__).with_name("table.json")
FEW, SHORT = 64, 512  # queries, at most; more are "long"


def shape_class(num_queries: int) -> str:
  """Class of a number of queries: "few", "short" or "long"."""
  if num_queries <= FEW:
    return "few"
  return "short" if num_queries <= SHORT else "long"


@functools.cache
def _table() -> dict[str, Any]:
  return json.loads(PATH.read_text())


def cheaper(generation: str, num_queries: int) -> list[str]:
  """Backends, the cheapest first; empty where none was measured."""
  cycles = _table().get(generation, {}).get(shape_class(num_queries), {})
  return sorted(cycles, key=lambda name: cycles[name])
