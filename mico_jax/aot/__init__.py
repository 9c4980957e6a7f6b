"""Compiles for TPU slices that are not there, and reads what comes out.

The parts: `chips` (generations and their figures), `compiler` (libtpu without a
TPU), `report` (what it says of a program, and what that is worth), `program`
(what its text says), `text`, `collectives` and `kernels` (how that is read).
"""

from mico_jax.aot.chips import CHIPS, Chip, chip
from mico_jax.aot.compiler import (
  devices,
  missing,
  one_device,
  prepare,
  user_flags,
)
from mico_jax.aot.kernels import kernel_name, read_bundles, result_shapes
from mico_jax.aot.program import Call, Program, read_program
from mico_jax.aot.report import KernelReport, compile_report

__all__ = [
  "CHIPS",
  "Call",
  "Chip",
  "KernelReport",
  "Program",
  "chip",
  "compile_report",
  "devices",
  "kernel_name",
  "missing",
  "one_device",
  "prepare",
  "read_bundles",
  "read_program",
  "result_shapes",
  "user_flags",
]
