"""The tensors that a checkpoint was imported from, byte for byte.

The manifest of an import holds name, dtype and SHA-256 of every tensor that its
parameters were made of; what no parameter holds lies in `extra/`. Together they
give back the file: the same names, dtypes and bytes.
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
from mico_jax.interop.files import dtypes, safetensors_file
from mico_jax.interop.files.tensors import Tensor
from mico_jax.interop.importing.convert import digest
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.interop.names.weight_map import Entry, to_theirs


class DroppedError(CheckpointError):
  """A tensor that was resized, and its original not kept, on import."""


@dataclasses.dataclass(frozen=True)
class Original(Tensor):
  """A tensor of the imported file.

  Attributes:
    sha256: of its bytes; `load` compares them.
  """

  sha256: str = ""


def open_tensors(path: epath.PathLike) -> dict[str, Original]:
  """The original tensors of an import, read when they are needed.

  Args:
    path: folder that `import_checkpoint` wrote.

  Raises:
    CheckpointError: if it is no import, or its files do not verify.
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
  table = {
    "/".join(entry.path): entry
    for entry in FORMATS[about["format"]].table(config.model)
  }
  entries = manifest["items"]["params"]

  @functools.lru_cache(maxsize=1)
  def intact(path: str) -> bool:
    """Whether a parameter is as it was written."""
    one = {path: entries[path]}
    found = {path: leaf(path)}
    return not manifest_lib.array_problems(one, found, item="params")

  @functools.lru_cache(maxsize=1)
  def leaf(path: str) -> np.ndarray:
    one = {path: entries[path]}
    found = storage.read_arrays(folder, "params", one, every=entries)
    # Its content is compared tensor by tensor.
    problems = manifest_lib.array_problems(
      one, found, item="params", hashes=False
    )
    if problems:
      raise CheckpointError(manifest_lib.summarise(problems))
    return found[path]

  tensors: dict[str, Original] = {}
  patch = config.model.vision.patch_size
  for path, described in entries.items():
    for at, original in enumerate(described.get("original", ())):
      tensor = _tensor(
        original, described, table[path], at, functools.partial(leaf, path),
        patch,
      )  # fmt: skip
      tensors[tensor.name] = _checked(
        tensor, original["sha256"], functools.partial(intact, path)
      )
  extra = about.get("extra")
  if extra is not None:  # Resized tables are there as they were.
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


def _checked(
  tensor: Tensor,
  sha256: str,
  intact: Callable[[], bool] = lambda: False,
) -> Original:
  """The tensor, compared with its hash whenever it is read.

  Args:
    tensor: to compare.
    sha256: of the tensor that was imported.
    intact: whether the parameter that it comes from is as it was written.
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
