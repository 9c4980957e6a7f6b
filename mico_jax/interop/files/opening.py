"""Opening weights: safetensors, PyTorch files and sharded ones.

`open_tensors` reads names, shapes and dtypes; the numbers stay on disk until a
tensor is loaded. Code that a file may hold is never run.
"""

from __future__ import annotations

import json
import pathlib

from mico_jax.interop.files import safetensors_file, torch_file
from mico_jax.interop.files.tensors import MALFORMED, Tensors, WeightsError

INDEX = ".index.json"  # of sharded files: {"weight_map": {name: file}}


def open_tensors(path: str | pathlib.Path) -> Tensors:
  """The tensors of a file of weights.

  Args:
    path: a .safetensors file, a PyTorch file (.pt, .pth, .bin; needs torch),
      or the index of sharded ones (*.index.json).

  Raises:
    WeightsError: if it is no such file, is cut short or holds anything but
      tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise WeightsError(f"{path}: no such file.")
  if path.name.endswith(INDEX):
    return _open_shards(path)
  if path.suffix == ".safetensors":
    return safetensors_file.open_tensors(path)
  return torch_file.open_tensors(path)


def _open_shards(path: pathlib.Path) -> Tensors:
  try:
    places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    files = sorted({str(name) for name in places.values()})
  except MALFORMED as error:
    raise WeightsError(
      f"{path}: not an index of sharded weights ({type(error).__name__}); "
      'expected {"weight_map": {tensor: file}}.'
    ) from error
  merged: Tensors = {}
  for name in files:
    if pathlib.Path(name).name != name or name in (".", ".."):
      raise WeightsError(
        f"{path}: names the file {name!r} outside of its folder; expected "
        "plain file names."
      )
    if name.endswith(INDEX):
      raise WeightsError(
        f"{path}: names {name!r}, another index; expected files of tensors."
      )
    tensors = open_tensors(path.parent / name)
    unlisted = [k for k in tensors if places.get(k) != name]
    if unlisted:
      raise WeightsError(
        f"{path}: {name!r} holds {unlisted[0]!r} ({len(unlisted)} such), which "
        "the index does not list there; the index belongs to another file."
      )
    merged |= tensors
  missing = [name for name in places if name not in merged]
  if missing:
    raise WeightsError(
      f"{path}: {missing[0]!r} is not in {places[missing[0]]!r} "
      f"({len(missing)} such); a shard is missing or cut short."
    )
  return merged
