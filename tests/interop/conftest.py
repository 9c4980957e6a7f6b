"""Lets the clients of exports load beside a PyTorch for CPUs."""

from __future__ import annotations

import importlib
import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def operators_of_torchvision():
  """Stands in for what PyPI's torchvision lacks beside such a PyTorch.

  Its compiled operators are linked against CUDA; without them it does not even
  import, for want of two that it only describes. timm and open_clip import it
  and call neither.
  """
  if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
    return
  from torch import library

  arguments = "(Tensor dets, Tensor scores, float limit) -> Tensor"
  try:
    importlib.import_module("torchvision")
  except RuntimeError:
    for name in ("nms", "qnms"):
      library.define(f"torchvision::{name}", arguments)
