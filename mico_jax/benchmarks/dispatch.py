"""Writes the table by which attention chooses its backend on a TPU.

`python -m mico_jax.benchmarks.dispatch` compiles one shape of each class for
each generation, forward and backward, with this package's kernels and with XLA,
and writes their static cycles (`mico_jax/aot/report.py`) to
`kernels/attention/table.json`. Attention takes the cheaper backend, and the
kernels in a class without comparison (streamed keys are not measured here). Run
it after a change of the kernels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax

from mico_jax import aot
from mico_jax.benchmarks import attention
from mico_jax.benchmarks.shapes import SHAPES
from mico_jax.kernels.attention.table import PATH

# Class of the table -> the shape that represents it.
SHAPES_OF = {"few": "cross_257", "short": "apart_257", "long": "long_1028"}


def measure(generations: Sequence[str]) -> dict[str, Any]:
  """Cycles per row and head, forward with backward.

  Args:
    generations: keys of `aot.CHIPS`.

  Returns:
    generation -> class -> backend -> cycles; a class is empty if one of the
    backends does not support it.
  """
  table: dict[str, Any] = {}
  for generation in generations:
    classes: dict[str, dict[str, int]] = {}
    topology = aot.CHIPS[generation].topology
    for name, shape in SHAPES_OF.items():
      classes[name] = {}
      for backend, function in (
        ("pallas_tpu", attention.ours),
        ("xla", attention.xla),
      ):
        try:
          cycles = function(SHAPES[shape], topology, backward=True)
        except NotImplementedError as error:
          print(f"{generation} {shape} {backend}: {error}", file=sys.stderr)
          classes[name] = {}
          break
        classes[name][backend] = round(cycles.total)
        print(f"{generation} {shape} {backend}: {cycles}", file=sys.stderr)
    table[generation] = classes
  return table


def main(argv: Sequence[str] | None = None) -> int:
  """Measures and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, default=PATH)
  parser.add_argument(
    "--generations", default=",".join(aot.CHIPS), help="by commas"
  )
  args = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")
  known = json.loads(args.out.read_text()) if args.out.exists() else {}
  known |= measure(args.generations.split(","))
  known["libtpu"] = importlib.metadata.version("libtpu")
  args.out.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
