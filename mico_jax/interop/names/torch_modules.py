"""Our parameters in the names and layout of PyTorch modules.

Layers are unstacked: "vision/blocks/attn/proj/kernel" becomes
"vision.blocks.3.attn.proj.weight". A kernel is transposed to (out, in), or from
(rows, columns, in, out) to (out, in, rows, columns); `scale` is called weight;
all others keep name and shape. Only bytes are moved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mico_jax import axes
from mico_jax.aliases import Params
from mico_jax.checkpoint.manifest import flatten
from mico_jax.interop.files.tensors import Item
from mico_jax.models import MiCo

STACKED = "blocks"  # part of a path whose arrays are stacked over layers
LEAVES = {"kernel": "weight", "scale": "weight"}


def _turn(array: np.ndarray, leaf: str) -> np.ndarray:
  """A kernel with PyTorch's order of axes; other leaves unchanged."""
  if leaf != "kernel" or array.ndim < 2:
    return array
  if array.ndim == 2:
    return array.T
  return np.moveaxis(array, (-1, -2), (0, 1))


def names(path: str, layers: int) -> list[str]:
  """Names of a parameter "a/b/kernel" in PyTorch, one per layer.

  Args:
    path: of the parameter.
    layers: stacked layers; 0: not stacked.

  Raises:
    ValueError: for a stacked parameter outside of any "blocks".
  """
  parts = path.split("/")
  parts[-1] = LEAVES.get(parts[-1], parts[-1])
  if not layers:
    return [".".join(parts)]
  if STACKED not in parts:
    raise ValueError(f"{path} is stacked but has no part {STACKED!r}.")
  at = len(parts) - parts[::-1].index(STACKED)
  return [".".join([*parts[:at], str(i), *parts[at:]]) for i in range(layers)]


def stacked_layers(model: MiCo) -> dict[str, int]:
  """Path -> number of stacked layers (0: not stacked) of each parameter."""
  flat_axes = flatten(model.logical_axes())
  return {
    path: leaf.shape[0] if flat_axes[path][:1] == (axes.LAYERS,) else 0
    for path, leaf in flatten(model.abstract_params()).items()
  }


def items(params: Params, model: MiCo) -> Iterator[Item]:
  """The tensors of a model in PyTorch's layout.

  Args:
    params: nested dict of host arrays.
    model: of the parameters.

  Raises:
    ValueError: naming missing or unknown parameters.
  """
  flat, layers = flatten(params), stacked_layers(model)
  if flat.keys() != layers.keys():
    raise ValueError(
      f"the parameters do not fit the model: missing "
      f"{sorted(layers.keys() - flat.keys())[:8]}, unknown "
      f"{sorted(flat.keys() - layers.keys())[:8]}."
    )
  for path, stack in layers.items():
    value = np.asarray(flat[path])
    leaf = path.rpartition("/")[2]
    for i, name in enumerate(names(path, stack)):
      part = _turn(value[i] if stack else value, leaf)
      yield Item(name, part.shape, value.dtype, lambda part=part: part)
