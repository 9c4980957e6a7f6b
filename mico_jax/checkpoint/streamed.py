"""Writing a step folder array by array, for weights larger than memory.

Each array is read, checked, hashed and written, then dropped, so memory peaks
at a few times the largest array. The files are those that `storage.read_arrays`
reads, in chunks, so that reading can stream as well.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import type_handlers

from mico_jax import config as config_lib
from mico_jax import files as files_lib
from mico_jax.checkpoint import described, mirror, storage
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint.described import Extras
from mico_jax.config import Config

CHUNK_BYTES = 64 * 2**20  # of the arrays on disk


@dataclass(frozen=True)
class Leaf:
  """An array that is made when it is written.

  Attributes:
    shape: of the array.
    dtype: of the array.
    read: makes the array.
    original: the manifest's entry of the tensors that it was made of, None:
      none; called after `read`.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  original: Callable[[], Any] = lambda: None

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Bytes of the array."""
    return self.size * self.dtype.itemsize


class _LeafHandler(type_handlers.NumpyHandler):
  """Writes leaves one after the other; on disk they are plain arrays."""

  def __init__(self, on_array: Callable[[Leaf, np.ndarray], None]):
    super().__init__(deepcopy_host_arrays=False)
    self._on_array = on_array

  async def serialize(
    self,
    values: Sequence[Any],
    infos: Sequence[Any],
    args: Sequence[Any] | None = None,
  ) -> Sequence[Any]:
    """Reads, hands over and writes each leaf before the next is read."""
    args = args or [ocp.SaveArgs()] * len(values)
    for leaf, info, arg in zip(values, infos, args, strict=True):
      array = leaf.read()
      futures = await super().serialize([array], [info], [arg])
      await asyncio.gather(
        asyncio.to_thread(self._on_array, leaf, array),
        *(asyncio.to_thread(future.result) for future in futures),
      )
      del array
    return []


def write_params(
  folder: epath.PathLike,
  leaves: Mapping[str, Leaf],
  *,
  logical_axes: Mapping[str, Any] | None = None,
  item: str = "params",
) -> dict[str, dict[str, Any]]:
  """Writes arrays as an item of a step folder.

  Args:
    folder: of the step; must exist.
    leaves: by path "a/b/c".
    logical_axes: tuples of axis names by path.
    item: "params", "opt_state" or "ema".

  Returns:
    The manifest's entry of every array.
  """
  paths = {id(leaf): path for path, leaf in leaves.items()}
  entries: dict[str, dict[str, Any]] = {}

  def note(leaf: Leaf, array: np.ndarray) -> None:
    path = paths[id(leaf)]
    entries.update(
      manifest_lib.describe_arrays({path: array}, logical_axes=logical_axes)
    )
    original = leaf.original()
    if original is not None:
      entries[path]["original"] = original

  storage.quiet()
  registry = type_handlers.create_type_handler_registry(
    (Leaf, _LeafHandler(note))
  )
  handler = ocp.PyTreeCheckpointHandler(
    use_compression=False, type_handler_registry=registry
  )
  tree = storage.stored_tree(item, dict(sorted(leaves.items())))
  chunks = jax.tree.map(
    lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree
  )
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(
      storage.absolute(folder) / item,
      args=ocp.args.PyTreeSave(tree, save_args=chunks),
    )
  return {path: entries[path] for path in sorted(entries)}


def write_step(
  folder: epath.PathLike,
  leaves: Mapping[str, Leaf],
  *,
  config: Config,
  extras: Extras,
  more: Mapping[str, Any] | None = None,
  step: int = 0,
  items: Mapping[str, Mapping[str, Leaf]] | None = None,
) -> None:
  """Writes a whole step folder that holds parameters, and what `items` names.

  Args:
    folder: of the step; must exist and be empty.
    leaves: parameters by path "a/b/c".
    config: of the model.
    extras: tokenizer, axes and so on. Its `self_check` is called with the
      parameters as they were written.
    more: further entries of the manifest.
    step: number of the step.
    items: further arrays, "opt_state" or "ema" -> leaves by path.
  """
  root = storage.absolute(folder)
  axes = manifest_lib.flatten(extras.logical_axes or {})
  arrays = {"params": write_params(root, leaves, logical_axes=axes)}
  for item, others in (items or {}).items():
    arrays[item] = write_params(root, others, item=item)
  config_text = config_lib.to_json(config).encode()
  data_text = json.dumps({"step": step, "counters": {}}).encode()
  head = {
    **(more or {}),
    "step": step,
    "config_sha256": manifest_lib.sha256(config_text),
    "data_sha256": manifest_lib.sha256(data_text),
    "metrics": {},
  }
  for item, contents in (
    ("config", {manifest_lib.CONFIG: config_text}),
    ("data", {manifest_lib.DATA: data_text}),
    ("manifest", described.with_files(extras, root, head, arrays)),
  ):
    for name, content in contents.items():
      path = root / item / name
      files_lib.make_folder(path.parent)
      files_lib.write_bytes(path, content)
  # As Orbax does: without it a copy on gs:// would count as unfinished.
  files_lib.write_text(root / mirror.COMMIT, "complete")
