"""Which backend is cheaper on a TPU, by static cycles of the compiler.

`table.json` is written by `python -m mico_jax.benchmarks.dispatch`: generation
-> class of shapes -> backend -> cycles per row and head, forward and backward.
Where nothing is compared (VMEM of v4 is too small for keys of the long class at
once, so they are streamed) the order of the door stands.
"""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

PATH = pathlib.Path(__file__).with_name("table.json")
FEW, SHORT = 64, 512  # queries, at most; more are "long"


def shape_class(num_queries: int) -> str:
  """The class of a shape: "few", "short" or "long"."""
  if num_queries <= FEW:
    return "few"
  return "short" if num_queries <= SHORT else "long"


@functools.cache
def _table() -> dict[str, Any]:
  return json.loads(PATH.read_text())


def cheaper(generation: str, num_queries: int) -> list[str]:
  """Backends from the cheapest on; empty where nothing was compared."""
  cycles = _table().get(generation, {}).get(shape_class(num_queries), {})
  return sorted(cycles, key=lambda name: cycles[name])
