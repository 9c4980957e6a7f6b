"""The tensors that a checkpoint was imported from, byte for byte.

The manifest of an import holds name, dtype and SHA-256 of every tensor that its
parameters were made of; `extra/` holds the tensors of no parameter. Together
they reproduce the imported file: the same names, dtypes and bytes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from mico_jax.checkpoint import form, restore, storage
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import ModelConfig
from mico_jax.interop.files import dtypes, safetensors_file
from mico_jax.interop.files.tensors import Tensor
from mico_jax.interop.importing.convert import digest
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.interop.names.weight_map import Entry, to_theirs


class DroppedError(CheckpointError):
  """A tensor was resized on import and its original not kept."""


@dataclasses.dataclass(frozen=True)
class Original(Tensor):
  """A tensor of the imported file.

  Attributes:
    sha256: hash of its bytes, which `load` verifies.
  """

  sha256: str = ""


def open_tensors(path: epath.PathLike) -> dict[str, Original]:
  """The original tensors of an import, each read when it is loaded.

  Args:
    path: folder that `import_checkpoint` wrote.

  Raises:
    CheckpointError: if it was not imported, or its files do not verify.
  """
  folder = restore.step_folders(path)[0]
  manifest = manifest_lib.read(folder)
  files, problems = manifest_lib.read_files(folder, manifest)
  if problems:
    raise CheckpointError(manifest_lib.summarise(problems))
  about = manifest.get("import")
  if about is None:
    raise CheckpointError(
      f"{path}: was not imported, so it has no original tensors."
    )
  config = restore.parse_config(files[manifest_lib.CONFIG], folder)
  entries = manifest["items"]["params"]
  tensors = _of_parameters(folder, entries, about["format"], config.model)
  extra = about.get("extra")
  if extra is not None:  # Holds resized tables as they were.
    if not form.is_inside(folder / extra["file"], folder):
      raise CheckpointError(
        f"{folder / extra['file']}: leads out of the checkpoint's folder."
      )
    for name, tensor in safetensors_file.open_tensors(
      folder / extra["file"]
    ).items():
      tensors[name] = _checked(tensor, extra["tensors"][name])
  for copy, name in about["tied"].items():
    tensors[copy] = dataclasses.replace(tensors[name], name=copy)
  return tensors


def _of_parameters(
  folder: epath.Path,
  entries: Mapping[str, Any],
  format_name: str,
  model: ModelConfig,
) -> dict[str, Original]:
  """The imported tensors that the parameters were made of."""
  table = {
    "/".join(entry.path): entry for entry in FORMATS[format_name].table(model)
  }
  files = storage.ArrayFiles(folder, "params", entries)

  @functools.lru_cache(maxsize=1)
  def intact(path: str) -> bool:
    """Whether a parameter is as it was written."""
    one, arrays = {path: entries[path]}, {path: leaf(path)}
    return not manifest_lib.array_problems(one, arrays, item="params")

  @functools.lru_cache(maxsize=1)
  def leaf(path: str) -> np.ndarray:
    one = {path: entries[path]}
    arrays = {path: files.read(files.open(path), ())}
    # Contents are compared tensor by tensor, see `_checked`.
    problems = manifest_lib.array_problems(
      one, arrays, item="params", hashes=False
    )
    if problems:
      raise CheckpointError(manifest_lib.summarise(problems))
    return arrays[path]

  tensors: dict[str, Original] = {}
  for path, described in entries.items():
    read = functools.partial(leaf, path)
    for at, original in enumerate(described.get("original", ())):
      tensor = _tensor(
        original, described, table[path], at, read, model.vision.patch_size
      )
      tensors[tensor.name] = _checked(
        tensor, original["sha256"], functools.partial(intact, path)
      )
  return tensors


def _checked(
  tensor: Tensor,
  sha256: str,
  intact: Callable[[], bool] = lambda: False,
) -> Original:
  """The tensor, compared with its hash whenever it is loaded.

  Args:
    tensor: to compare.
    sha256: hash of the imported tensor.
    intact: whether the parameter that holds the tensor is as it was written.
  """

  def load() -> np.ndarray:
    array = tensor.load()
    if digest(array) == sha256:
      return array
    if intact():
      raise DroppedError(
        f"{tensor.name!r} was resized when it was imported, and its original "
        "not kept (--drop-extra). Import it again."
      )
    raise CheckpointError(
      f"{tensor.name!r} differs from the tensor that was imported: the "
      "checkpoint was altered. Import it again."
    )

  return Original(tensor.name, tensor.shape, tensor.dtype, load, sha256)


def _tensor(
  original: Mapping[str, str],
  described: Mapping[str, Any],
  entry: Entry,
  at: int,
  leaf: Any,
  patch_size: int,
) -> Tensor:
  """One of the tensors of a parameter."""
  layer, part = divmod(at, len(entry.names))
  dtype = dtypes.dtype(original["dtype"])

  def piece(value: np.ndarray) -> np.ndarray:
    if entry.layers:
      value = value[layer]
    if len(entry.names) > 1:
      width = value.shape[-1] // len(entry.names)
      value = value[..., part * width : (part + 1) * width]
    return to_theirs(value, entry, patch_size=patch_size)

  like = np.broadcast_to(np.zeros((), np.int8), described["shape"])
  load = lambda: piece(leaf()).astype(dtype, copy=False)
  return Tensor(original["name"], piece(like).shape, dtype, load)
