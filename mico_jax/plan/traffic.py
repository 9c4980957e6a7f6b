"""Bytes that the operations of a GPU program read and write.

XLA:GPU estimates no cycles, and nearly all operations except matrix products
are bound by memory, so they are estimated by their bytes. A fusion reads its
inputs once (only the slice of an input that it slices) and writes its result
(only the update of a result that it updates in place). Products (cuBLAS,
Triton, cuDNN) are left out, since they count by FLOPs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mico_jax.aot.collectives import KINDS
from mico_jax.aot.text import Operation, Text, called, sizes

_NOTHING = (
  *("parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while"),
  *("conditional", "call", "after-all", "partition-id", "replica-id"),
  *("async-start", "async-done", "async-update", "opt-barrier"),
)
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "get-tuple-element", "reshape")
_PRODUCTS = ("dot", "convolution")
_PRODUCT_CALLS = ("__cublas", "__cudnn", "__triton_gemm")


@dataclass(frozen=True)
class _Line:
  op: str
  size: int
  operands: tuple[str, ...]


def _line(operation: Operation) -> _Line:
  types, _, rest = operation.body.partition(f"{operation.op}(")
  names = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
  return _Line(operation.op, sum(sizes(types)), tuple(names))


def _fused(text: Text, name: str) -> int | None:
  """Bytes of a fusion; None for a product."""
  lines = {x.label: _line(x) for x in text.operations(name)}
  if any(line.op in _PRODUCTS for line in lines.values()):
    return None
  users: dict[str, list[tuple[str, _Line]]] = {}
  for label, line in lines.items():
    for operand in line.operands:
      users.setdefault(operand, []).append((label, line))

  def read(label: str, size: int) -> int:
    total = 0
    for user, line in users.get(label, ()):
      if line.op in _SLICES and line.operands[0] == label:
        total += line.size
      elif line.op == "dynamic-update-slice" and line.operands[0] == label:
        continue
      elif line.op in _VIEWS:
        total += read(user, size)
      else:
        return size
    return min(total, size)

  def written(label: str) -> int:
    line = lines[label]
    if line.op == "dynamic-update-slice":
      return lines[line.operands[1]].size if len(line.operands) > 1 else 0
    if line.op in ("tuple", *_VIEWS) and line.operands:
      return sum(written(x) for x in line.operands if x in lines)
    return line.size

  total = sum(
    read(label, line.size)
    for label, line in lines.items()
    if line.op == "parameter"
  )
  root = list(lines)[-1]  # a computation ends with its root
  return total + written(root)


def count(program: str) -> float:
  """Bytes read and written in a step by all operations except products.

  Args:
    program: `compiled.as_text()` of a GPU program.
  """
  text = Text(program)
  known: dict[str, int | None] = {}
  lines: dict[tuple[str, str], int] = {}
  total = 0.0
  for operation in text.walk():
    line = _line(operation)
    lines[operation.computation, operation.label] = line.size
    if operation.op in _NOTHING or operation.op.endswith(("-done", "-start")):
      continue
    if operation.op.startswith(KINDS):
      continue
    if operation.op == "fusion":
      name = called(operation.body, "calls")
      if name not in known:
        known[name] = _fused(text, name)
      total += operation.times * (known[name] or 0)
      continue
    if any(call in operation.body for call in _PRODUCT_CALLS):
      continue
    if operation.op in _PRODUCTS:
      continue
    reads = sum(lines.get((operation.computation, x), 0) for x in line.operands)
    total += operation.times * (line.size + reads)
  return total
