"""Ahead-of-time compilation for TPU slices without TPUs.

`chips` lists generations and their figures, `compiler` runs libtpu without a
TPU, `report` compiles a program and collects the compiler's figures, `program`
holds what the text of a compiled program contains; `text`, `collectives` and
`kernels` parse it.
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
