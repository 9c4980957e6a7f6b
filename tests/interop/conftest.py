"""Lets the clients of exports load beside a PyTorch for CPUs."""

from __future__ import annotations

import numpy as np
import pytest

from mico_jax.checkpoint.manifest import flatten, unflatten
from mico_jax.interop.names import torch_modules
from mico_jax.testing import torchvision_operators

torchvision_operators.define()  # before tests import clients


@pytest.fixture(scope="session")
def from_torch():
  """Function that makes a model's parameters of the tensors of an export."""

  def parameters(tensors, model):
    shapes, flat = flatten(model.abstract_params()), {}
    left = dict(tensors)
    for path, layers in torch_modules.stacked_layers(model).items():
      parts = [left.pop(name) for name in torch_modules.names(path, layers)]
      if path.endswith("/kernel") and parts[0].ndim > 1:
        parts = [np.moveaxis(x, (0, 1), (-1, -2)) for x in parts]
      flat[path] = np.stack(parts) if layers else parts[0]
      assert flat[path].shape == shapes[path].shape, path
    assert not left
    return unflatten(flat)

  return parameters
