"""An ONNX graph of one picture to one map, through onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mico_jax.config import ConfigError
from mico_jax.data.build.models import Batch
from mico_jax.modalities.spatial import resize_smooth


def load_graph(path: str, options: Mapping[str, Any]) -> Batch:
  """A graph with one input [N, 3, Y, X] (float32) and a map as first output.

  Runs in one thread, so that equal pictures give equal maps.

  Args:
    path: of the file.
    options: `size` of the input's sides (0: the graph's own), `mean` and `std`
      of the pixels in 0..1.

  Returns:
    A function of pictures uint8 [Y, X, 3] that gives maps float32 [y, x] or
    [y, x, C], C being of 3 channels.

  Raises:
    ConfigError: for a graph of another form, or no size.
  """
  import onnxruntime

  settings = onnxruntime.SessionOptions()
  settings.intra_op_num_threads = settings.inter_op_num_threads = 1
  session = onnxruntime.InferenceSession(
    path, settings, providers=onnxruntime.get_available_providers()
  )
  (entry, *others), shape = session.get_inputs(), session.get_inputs()[0].shape
  if others or len(shape) != 4 or shape[1] != 3:
    raise ConfigError(
      f"onnx:{path}: expected one input [N, 3, Y, X], it has {shape}."
    )
  size = tuple(options["size"] or side for side in shape[2:])
  if not all(isinstance(side, int) and side > 0 for side in size):
    raise ConfigError(f"onnx:{path}: its input is of any size; set `size`.")
  batch = shape[0] if isinstance(shape[0], int) else None
  mean, std = (np.float32(options[k]) for k in ("mean", "std"))

  def call(items: Sequence[UInt8[np.ndarray, "Y X 3"]]) -> list[np.ndarray]:
    pixels = np.stack([resize_smooth(x[None], size)[0] for x in items])
    planes = ((pixels / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    parts = [planes] if batch is None else np.split(planes, len(planes))
    maps = [session.run(None, {entry.name: part})[0] for part in parts]
    return [_channels_last(x) for part in maps for x in part]

  return call


def _channels_last(array: np.ndarray) -> Float[np.ndarray, "y x *C"]:
  """[Y, X] of [1, Y, X], [Y, X, 3] of [3, Y, X]."""
  array = np.asarray(array, np.float32)
  if array.ndim == 3 and array.shape[0] == 1:
    return array[0]
  if array.ndim == 3 and array.shape[0] == 3:
    return np.ascontiguousarray(array.transpose(1, 2, 0))
  return array
