"""Reading of graphs with features: .npz and JSON.

Both hold `node_features` [N, F], `edge_index` [2, E] (the nodes of each edge,
from 0) and, if there are any, `edge_features` [E, G].
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mico_jax.modalities.base import DecodeError

MAX_BYTES = 2**28  # of an array in a .npz, unpacked
_NAMES = ("node_features", "edge_index", "edge_features")


@dataclass(frozen=True)
class Graph:
  """A graph as a file or array holds it.

  Attributes:
    nodes: features of each node.
    edges: the two nodes of each edge.
    features: of each edge.
    weights: of each edge.
  """

  nodes: Float[np.ndarray, "N F"]
  edges: Int[np.ndarray, "2 E"]
  features: Float[np.ndarray, "E G"]
  weights: Float[np.ndarray, " E"]


def read_graph(raw: Any) -> Graph:
  """A graph out of the content of a file.

  Args:
    raw: bytes of a .npz or of a JSON object, or a mapping.

  Raises:
    DecodeError: for anything else, and for arrays that do not fit.
  """
  if isinstance(raw, bytes):
    raw = _npz(raw) if raw.startswith(b"PK") else _json(raw)
  if not isinstance(raw, Mapping):
    raise DecodeError(
      f"expected the file of a graph or a mapping, got {type(raw).__name__}."
    )
  if missing := [name for name in _NAMES[:2] if name not in raw]:
    names = ", ".join(map(str, raw))[:200] or "none"
    raise DecodeError(f"a graph without {missing[0]!r}; it has {names}.")
  nodes, index = (_array(raw[name], name) for name in _NAMES[:2])
  nodes = nodes.reshape(0, 0) if nodes.size == 0 else nodes
  index = index.reshape(2, 0) if index.size == 0 else index
  if nodes.ndim != 2 or index.ndim != 2 or len(index) != 2:
    raise DecodeError(
      f"node_features of shape {list(nodes.shape)}, edge_index of "
      f"{list(index.shape)}; expected [N, F] and [2, E]."
    )
  if (index != np.rint(index)).any():
    raise DecodeError("edge_index holds fractions; expected nodes from 0.")
  count = index.shape[1]
  features = np.zeros((count, 0))
  if raw.get(_NAMES[2]) is not None:
    features = _array(raw[_NAMES[2]], _NAMES[2])
    features = features if features.size else features.reshape(count, 0)
  if features.ndim != 2 or len(features) != count:
    raise DecodeError(
      f"edge_features of shape {list(features.shape)} for {count} edges."
    )
  return Graph(nodes, index.astype(np.int64), features, np.ones(count))


def _array(value: Any, name: str) -> Float[np.ndarray, "..."]:
  """Numbers, finite or not."""
  try:
    array = np.asarray(value)
    if array.dtype.kind not in "iufb" and array.size:
      raise ValueError(f"values of {array.dtype}")
    return array.astype(np.float64)
  except (TypeError, ValueError) as error:  # also lists of several lengths
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"{name} holds no array of numbers: {text}.") from error


def _json(data: bytes) -> Any:
  try:
    return json.loads(data)
  except (ValueError, RecursionError) as error:
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a readable graph (.npz, JSON): {text}") from error


def _npz(data: bytes) -> dict[str, Any]:
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      sizes = {i.filename: i.file_size for i in archive.infolist()}
    if max(sizes.values(), default=0) > MAX_BYTES:
      raise DecodeError(f".npz with an array of over {MAX_BYTES} bytes.")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
      return {k: arrays[k] for k in arrays.files}
  except (DecodeError, MemoryError):
    raise
  except Exception as error:  # zipfile, zlib and NumPy raise many kinds
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a readable .npz of numbers: {text}") from error
