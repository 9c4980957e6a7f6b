"""Reading and writing one step folder through Orbax.

A step folder is written by one asynchronous, atomic Orbax save of a composite:
arrays (`params`, `opt_state`, `ema`) as OCDBT, and small items (`data`,
`config`, `manifest`) as plain files by `FilesHandler`, whose contents are
computed in the background once the arrays are safely copied to the host.

Arrays are read back as host arrays without a target tree or a mesh; the caller
verifies them and places them on devices, `BATCH_BYTES` at a time. Each process
reads every array in full, since a hash is that of a whole array: a few arrays
are whole on a host at a time, never the state.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_args, future

from mico_jax import failures
from mico_jax import files as files_lib
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint.manifest import CheckpointError

BATCH_BYTES = 256 * 2**20  # arrays read together, unless one alone is larger


class FilesHandler(ocp.AsyncCheckpointHandler):
  """Orbax handler of an item that is a few plain files.

  The contents come from a function, called in the commit thread of process 0.
  """

  async def _write(
    self, files: manifest_lib.FilesFn, directory: epath.Path
  ) -> None:
    if jax.process_index():
      return
    for name, data in files().items():
      path = directory / name
      files_lib.make_folder(path.parent)
      files_lib.write_bytes(path, data)

  async def async_save(
    self, directory: epath.Path, args: FilesSave
  ) -> list[ocp.Future]:
    """Starts writing and returns the commit future."""
    return [
      future.CommitFutureAwaitingContractedSignals(
        self._write(args.files, directory), name="mico_jax_files"
      )
    ]

  def save(self, directory: epath.Path, args: FilesSave) -> None:
    """Writes the files and returns when they are written."""
    asyncio.run(self._write(args.files, directory))

  def restore(
    self, directory: epath.Path, args: FilesRestore | None = None
  ) -> dict[str, bytes]:
    """Reads every file below the item's folder."""
    return {
      str(path.relative_to(directory)): path.read_bytes()
      for path in directory.rglob("*")
      if path.is_file()
    }


@checkpoint_args.register_with_handler(FilesHandler, for_save=True)
@dataclasses.dataclass
class FilesSave(checkpoint_args.CheckpointArgs):
  """Save arguments of `FilesHandler`: a function that returns the files."""

  files: manifest_lib.FilesFn


@checkpoint_args.register_with_handler(FilesHandler, for_restore=True)
@dataclasses.dataclass
class FilesRestore(checkpoint_args.CheckpointArgs):
  """Restore arguments of `FilesHandler`: none."""


class OrbaxNoise(logging.Filter):
  """Drops log lines about errors that reach the caller as exceptions."""

  def filter(self, record: logging.LogRecord) -> bool:
    """False for records that Orbax or its event loop wrote."""
    if record.name == "asyncio":
      return "never retrieved" not in record.getMessage()
    return "orbax" not in record.pathname


_NOISE = OrbaxNoise()


def _drop_late_ends(former: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """A hook that is silent on writes and reads that end behind a failed one.

  Orbax closes its event loop at the first error, on a full disk say. Python
  would print a traceback for each of the others, since the loop is gone.
  """

  def hook(report: Any) -> None:
    if "Event loop is closed" not in str(report.exc_value):
      former(report)

  hook.mico_jax = True  # type: ignore[attr-defined]
  return hook


def quiet() -> None:
  """Keeps Orbax from telling what reaches the caller as an exception."""
  if not hasattr(sys.unraisablehook, "mico_jax"):
    sys.unraisablehook = _drop_late_ends(sys.unraisablehook)
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(_NOISE)


def absolute(path: epath.PathLike) -> Any:
  """An epath with the current folder in front of a relative local path."""
  text = os.fspath(path)
  return epath.Path(text if "://" in text else os.path.abspath(text))


def make_checkpointer() -> ocp.AsyncCheckpointer:
  """The asynchronous composite checkpointer of all items."""
  quiet()
  arrays: dict[str, Any] = {
    name: ocp.PyTreeCheckpointHandler() for name in manifest_lib.ARRAY_ITEMS
  }
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(
      **arrays,
      data=FilesHandler(),
      config=FilesHandler(),
      manifest=FilesHandler(),
    )
  )


def save_args(
  arrays: Mapping[str, Any], files: Mapping[str, manifest_lib.FilesFn]
) -> ocp.args.Composite:
  """Arguments of one composite save."""
  return ocp.args.Composite(
    **{name: ocp.args.PyTreeSave(tree) for name, tree in arrays.items()},
    **{name: FilesSave(fn) for name, fn in files.items()},
  )


def path_dict(tree: Any) -> dict[str, Any]:
  """Any pytree (an optimizer state, say) as {"a/b/0": leaf}."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  flat = {
    "/".join(
      manifest_lib.escape(jax.tree_util.keystr((part,), simple=True))
      for part in path
    ): leaf
    for path, leaf in leaves
  }
  if len(flat) != len(leaves):
    raise ValueError("two leaves of the state have the same path.")
  return flat


def from_path_dict(target: Any, flat: Mapping[str, Any]) -> Any:
  """Puts {"a/b/0": leaf} back into a tree of the form of `target`.

  Raises:
    CheckpointError: if the leaves do not fit the target, naming the first.
  """
  wanted = path_dict(target)
  missing = [k for k in wanted if k not in flat]
  unknown = [k for k in flat if k not in wanted]
  if missing or unknown:
    raise CheckpointError(
      "the checkpoint's state does not fit this run: "
      f"{len(missing)} missing (first {missing[:1]}), "
      f"{len(unknown)} unknown (first {unknown[:1]}). "
      "Start a new workdir with --init."
    )
  return jax.tree.unflatten(
    jax.tree.structure(target), [flat[k] for k in wanted]
  )


def host_copy(value: Any) -> np.ndarray:
  """A copy of a (possibly sharded) array on the host.

  Sharded across processes, it is gathered: every process must call this.
  """
  if isinstance(value, jax.Array) and not value.is_fully_addressable:
    if value.is_fully_replicated:
      return np.array(value.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(value, tiled=True))
  return np.array(value)


def check_fits(shape: Iterable[int], dtype: Any, like: Any) -> None:
  """Checks that an array of a checkpoint is of the kind that a run needs.

  Args:
    shape: of the stored array.
    dtype: of the stored array, or its name.
    like: array or ShapeDtypeStruct of the run.

  Raises:
    CheckpointError: if shape or dtype differ.
  """
  dtype = jax.numpy.dtype(dtype)
  if tuple(shape) != tuple(like.shape) or dtype != like.dtype:
    raise CheckpointError(
      f"the checkpoint holds {dtype}{list(shape)} where this run "
      f"needs {like.dtype}{list(like.shape)}. Start a new workdir with --init."
    )


def place(value: np.ndarray, like: Any) -> Any:
  """Puts a host array where `like` (array or ShapeDtypeStruct) says.

  Raises:
    CheckpointError: if shape or dtype differ.
  """
  check_fits(value.shape, value.dtype, like)
  sharding = getattr(like, "sharding", None)
  if sharding is None:
    return jax.numpy.asarray(value)
  return jax.make_array_from_callback(
    value.shape, sharding, lambda index: value[index]
  )


def read_arrays(
  folder: epath.PathLike,
  item: str,
  entries: Mapping[str, Any],
  *,
  every: Iterable[str] | None = None,
) -> dict[str, np.ndarray]:
  """Reads the arrays of one item as {path: host array}.

  Args:
    folder: step folder.
    item: "params", "opt_state" or "ema".
    entries: the manifest's entries of that item; names the arrays to read.
    every: paths of all arrays of the item; None: `entries` are all.

  Raises:
    CheckpointError: if the files are absent, cut short or damaged.
  """
  quiet()
  path = absolute(folder) / item
  if not files_lib.is_folder(path):
    raise CheckpointError(
      f"{path}: no such folder; the checkpoint is incomplete."
    )
  every = None if every is None else tuple(every)
  like = stored_tree(item, {key: 0 for key in entries}, every)
  restore_args = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like
  )

  def call() -> Any:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      return checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=like,
          restore_args=restore_args,
          partial_restore=every is not None,
        ),
      )

  def thrice() -> Any:
    # Orbax takes a folder that it could not look at for one that is not there.
    for _ in range(2):
      try:
        return call()
      except Exception as e:
        if failures.is_transient(e):
          raise
    return call()

  try:
    tree = failures.wait_out(thrice, f"reading {path}")
  except failures.TransientError:
    raise
  except Exception as e:  # Orbax raises many kinds for damaged files.
    lines = str(e).strip().splitlines() or [type(e).__name__]
    raise CheckpointError(
      f"{path}: cannot be read, cut short or damaged ({lines[0][:160]})."
    ) from e
  # Both trees have the same keys, so their leaves come in the same order.
  named = stored_tree(item, {key: key for key in entries}, every)
  paths = jax.tree.leaves(named)
  arrays = jax.tree.leaves(tree)
  return {
    path: np.asarray(array) for path, array in zip(paths, arrays, strict=True)
  }


def stored_tree(
  item: str, flat: Mapping[str, Any], every: Iterable[str] | None = None
) -> dict[str, Any]:
  """{path: leaf} as the tree that Orbax stores.

  Parameters keep their names on disk. The leaves of an optimizer state are
  numbered in the order of their paths, which the manifest has.

  Args:
    item: "params", "opt_state" or "ema".
    flat: some or all arrays of the item.
    every: paths of all arrays of the item; None: those of `flat`.
  """
  if item != "opt_state":
    return manifest_lib.unflatten(flat, escaped=True)
  numbers = {key: i for i, key in enumerate(sorted(every or flat))}
  return {f"{numbers[key]:06d}": flat[key] for key in sorted(flat)}


def batches(
  items: Mapping[str, Mapping[str, Any]], limit: int = 0
) -> list[tuple[str, dict[str, Any]]]:
  """The arrays of a checkpoint in parts that are read one after the other.

  The largest arrays come first, so that they are whole on the host while
  little else is there yet.

  Args:
    items: the manifest's entries of each item.
    limit: bytes of a part that is more than one array; 0: `BATCH_BYTES`.

  Returns:
    (item, some of its entries) for each part.
  """
  limit = limit or BATCH_BYTES
  found: list[tuple[int, str, dict[str, Any]]] = []
  for item, entries in items.items():
    sizes = {
      path: math.prod(entry["shape"]) * jax.numpy.dtype(entry["dtype"]).itemsize
      for path, entry in entries.items()
    }
    part: dict[str, Any] = {}
    total = 0
    for path in sorted(sizes, key=lambda p: (-sizes[p], p)):
      if part and total + sizes[path] > limit:
        found.append((total, item, part))
        part, total = {}, 0
      part[path] = entries[path]
      total += sizes[path]
    if part:
      found.append((total, item, part))
  found.sort(key=lambda x: -x[0])
  return [(item, part) for _, item, part in found]
