"""What PyPI's torchvision lacks beside a PyTorch for CPUs."""

from __future__ import annotations

import importlib
import importlib.util


def define() -> None:
  """Stands in for two operators, so that torchvision imports.

  Its compiled operators are linked against CUDA; without them it does not even
  import, for want of two that it only describes. The clients of exports import
  it and call neither. Without torchvision nothing happens.
  """
  if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
    return
  library = vars(importlib.import_module("torch"))["library"]
  arguments = "(Tensor dets, Tensor scores, float limit) -> Tensor"
  try:
    importlib.import_module("torchvision")
  except RuntimeError:
    for name in ("nms", "qnms"):
      library.define(f"torchvision::{name}", arguments)
