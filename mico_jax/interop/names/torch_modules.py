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
from mico_jax.interop.names.weight_map import Entry
from mico_jax.models import MiCo

STACKED = "blocks"  # part of a path whose arrays are stacked over layers
LEAVES = {"kernel": "weight", "scale": "weight"}
_KERNELS = {2: "linear", 4: "filter"}  # axes -> kind of `weight_map.Entry`


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
  name = _template(path, stacked=bool(layers))
  return [name.format(i=i) for i in range(max(layers, 1))]


def _template(path: str, *, stacked: bool) -> str:
  """The name of a parameter in PyTorch, with `{i}` for the layer."""
  parts = path.split("/")
  parts[-1] = LEAVES.get(parts[-1], parts[-1])
  if stacked:
    if STACKED not in parts:
      raise ValueError(f"{path} is stacked but has no part {STACKED!r}.")
    parts.insert(len(parts) - parts[::-1].index(STACKED), "{i}")
  return ".".join(parts)


def entries(model: MiCo) -> Iterator[Entry]:
  """The weight map of this layout: the inverse of `items`.

  Raises:
    ValueError: for a kernel that is no matrix and no filter of two axes.
  """
  shapes = flatten(model.abstract_params())
  for path, stack in stacked_layers(model).items():
    kind, axes_of_one = "same", shapes[path].ndim - bool(stack)
    if path.endswith("/kernel") and axes_of_one > 1:
      if axes_of_one not in _KERNELS:
        raise ValueError(f"{path} has {axes_of_one} axes, expected 2 or 4.")
      kind = _KERNELS[axes_of_one]
    names_of = (_template(path, stacked=bool(stack)),)
    yield Entry(tuple(path.split("/")), names_of, kind, layers=stack)


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
