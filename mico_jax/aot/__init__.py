"""Compiles for TPU slices that are not there, and reads what comes out.

The parts: `chips` (generations and their figures), `compiler` (libtpu without a
TPU), `report` (what it says of a program, and what that is worth), `text`,
`collectives` and `kernels` (how a compiled program is read).
"""

from mico_jax.aot.chips import CHIPS, Chip, chip
from mico_jax.aot.compiler import (
  devices,
  given_flags,
  missing,
  one_device,
  prepare,
)
from mico_jax.aot.kernels import (
  call_results,
  is_kernel,
  kernel_name,
  read_bundles,
  result_shapes,
)
from mico_jax.aot.report import Program, Report, compile_report, read_program

__all__ = [
  "CHIPS",
  "Chip",
  "Program",
  "Report",
  "call_results",
  "chip",
  "compile_report",
  "devices",
  "given_flags",
  "is_kernel",
  "kernel_name",
  "missing",
  "one_device",
  "prepare",
  "read_bundles",
  "read_program",
  "result_shapes",
]
