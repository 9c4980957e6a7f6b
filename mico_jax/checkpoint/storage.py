"""Reading and writing one step folder.

A step folder is written by one asynchronous, atomic Orbax save of a composite:
arrays (`params`, `opt_state`, `ema`) as OCDBT, and small items (`data`,
`config`, `manifest`) as plain files. Each process writes and hashes the shards
of the first replica that it holds, behind training; then process 0 writes the
manifest. Arrays are not compressed, as weights hardly shrink and compression
would need memory for a copy.

Arrays are read back by TensorStore as host arrays, without a target tree or a
mesh; see `checkpoint.sharded` for those that go to devices.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_args, future, type_handlers

from mico_jax import failures
from mico_jax import files as files_lib
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint.manifest import CheckpointError

READERS = 8  # threads that read and hash
# Cache of the nodes of OCDBT's index; arrays are not cached.
_INDEX_BYTES = 32 * 2**20


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
    self, directory: epath.Path, args: Any = None
  ) -> dict[str, bytes]:
    """Reads every file below the item's folder."""
    return {
      str(path.relative_to(directory)): path.read_bytes()
      for path in directory.rglob("*")
      if path.is_file()
    }


# Orbax wants arguments to restore with, although nothing restores through it.
@checkpoint_args.register_with_handler(
  FilesHandler, for_save=True, for_restore=True
)
@dataclasses.dataclass
class FilesSave(checkpoint_args.CheckpointArgs):
  """Arguments of `FilesHandler`: a function that returns the files."""

  files: manifest_lib.FilesFn


class ManifestHandler(FilesHandler):
  """Orbax handler of files that process 0 makes from notes of all processes.

  The notes are stored in the item's folder, since all processes write to one
  folder. It must be the last item: its files are made when the others are
  complete.
  """

  def __init__(self) -> None:
    """Has no notes yet."""
    self._finish: Any = None

  async def _note(
    self, notes: Callable[[], Mapping[str, Any]], directory: epath.Path
  ) -> None:
    text = json.dumps(await asyncio.to_thread(notes))
    files_lib.write_text(_notes_path(directory, jax.process_index()), text)

  async def async_save(
    self, directory: epath.Path, args: Any
  ) -> list[ocp.Future]:
    """Starts making the notes and returns the commit future."""
    self._finish = args.finish
    return [
      future.CommitFutureAwaitingContractedSignals(
        self._note(args.notes, directory), name="mico_jax_manifest"
      )
    ]

  def finalize(self, directory: epath.Path) -> None:
    """Writes the files; Orbax calls it in process 0, when all have written."""
    finish, self._finish = self._finish, None
    paths = [_notes_path(directory, i) for i in range(jax.process_count())]
    notes = [json.loads(files_lib.read_text(path)) for path in paths]
    files = finish(directory.parent, notes)
    asyncio.run(self._write(lambda: files, directory))
    for path in paths:
      files_lib.remove(path)

  def save(self, directory: epath.Path, args: Any) -> None:
    """Makes the notes and returns when they are written."""
    self._finish = args.finish
    asyncio.run(self._note(args.notes, directory))


def _notes_path(directory: epath.Path, process: int) -> epath.Path:
  return directory / f"notes-{process}.json"


@checkpoint_args.register_with_handler(
  ManifestHandler, for_save=True, for_restore=True
)
@dataclasses.dataclass
class ManifestSave(checkpoint_args.CheckpointArgs):
  """Arguments of `ManifestHandler`.

  Attributes:
    notes: makes this process' notes, JSON types; called behind training.
    finish: (folder with the other items, the notes of all processes) -> files.
  """

  notes: Callable[[], Mapping[str, Any]]
  finish: Callable[[epath.Path, Sequence[Any]], Mapping[str, bytes]]


class OrbaxNoise(logging.Filter):
  """Drops log lines about errors that reach the caller as exceptions."""

  def filter(self, record: logging.LogRecord) -> bool:
    """False for records that Orbax or its event loop wrote."""
    if record.name == "asyncio":
      return "never retrieved" not in record.getMessage()
    return "orbax" not in record.pathname


_NOISE = OrbaxNoise()


def _drop_late_ends(former: Callable[[Any], Any]) -> Callable[[Any], Any]:
  """A hook that ignores errors of a closed event loop.

  Orbax closes its event loop at the first error, such as a full disk. Python
  would print a traceback for every other write or read still running.
  """

  def hook(report: Any) -> None:
    if "Event loop is closed" not in str(report.exc_value):
      former(report)

  hook.mico_jax = True  # type: ignore[attr-defined]
  return hook


def quiet() -> None:
  """Silences messages of Orbax about errors that are raised anyway."""
  if not hasattr(sys.unraisablehook, "mico_jax"):
    sys.unraisablehook = _drop_late_ends(sys.unraisablehook)
  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(_NOISE)


def absolute(path: epath.PathLike) -> Any:
  """The absolute path, local or remote."""
  text = os.fspath(path)
  return epath.Path(text if "://" in text else os.path.abspath(text))


def _arrays_handler() -> ocp.PyTreeCheckpointHandler:
  """Handler that writes each shard of the first replica, uncompressed.

  Without pinned memory Orbax shares the host copies that are hashed
  (`sharded.host_shards`); with it there would be a second copy.
  """
  return ocp.PyTreeCheckpointHandler(
    use_compression=False,
    enable_pinned_host_transfer=False,
    type_handler_registry=type_handlers.create_type_handler_registry(
      (np.ndarray, type_handlers.NumpyHandler()),
      (jax.Array, type_handlers.ArrayHandler(use_replica_parallel=False)),
    ),
  )


def make_checkpointer() -> ocp.AsyncCheckpointer:
  """The asynchronous composite checkpointer of all items."""
  quiet()
  arrays: dict[str, Any] = {
    name: _arrays_handler() for name in manifest_lib.ARRAY_ITEMS
  }
  return ocp.AsyncCheckpointer(
    ocp.CompositeCheckpointHandler(
      **arrays,
      data=FilesHandler(),
      config=FilesHandler(),
      manifest=ManifestHandler(),
    )
  )


def save_args(
  arrays: Mapping[str, Any],
  files: Mapping[str, manifest_lib.FilesFn],
  manifest: ManifestSave,
) -> ocp.args.Composite:
  """Arguments of one composite save."""
  return ocp.args.Composite(
    **{name: ocp.args.PyTreeSave(tree) for name, tree in arrays.items()},
    **{name: FilesSave(fn) for name, fn in files.items()},
    manifest=manifest,
  )


def path_dict(tree: Any) -> dict[str, Any]:
  """The leaves of a pytree, such as an optimizer state, as {"a/b/0": leaf}."""
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
  """Leaves {"a/b/0": leaf} as a tree with the structure of `target`.

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
  """Checks shape and dtype of a stored array against those of a run.

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
  """Puts a host array onto devices, with the sharding of `like`.

  Args:
    value: host array.
    like: array or ShapeDtypeStruct; without a sharding: the default device.

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


class ArrayFiles:
  """The stored arrays of one item of a step folder."""

  def __init__(
    self, folder: epath.PathLike, item: str, every: Iterable[str]
  ) -> None:
    """Checks the folder.

    Args:
      folder: step folder, local or on gs://.
      item: "params", "opt_state" or "ema".
      every: paths of all arrays of the item.

    Raises:
      CheckpointError: if there is no such folder, or it holds a pipe or device.
    """
    self._path = absolute(folder) / item
    if not files_lib.is_folder(self._path):
      raise CheckpointError(
        f"{self._path}: no such folder; the checkpoint is incomplete."
      )
    if pipe := next(files_lib.pipes(self._path), ""):
      raise CheckpointError(
        f"{self._path / pipe}: a pipe or device, expected a regular file."
      )
    named = stored_tree(item, {path: path for path in every})
    self._names = {
      path: ".".join(part.key for part in keys)
      for keys, path in jax.tree_util.tree_leaves_with_path(named)
    }
    self._context = ts.Context(
      {"cache_pool#index": {"total_bytes_limit": _INDEX_BYTES}}
    )

  def open(self, path: str) -> Any:
    """The TensorStore of an array.

    Raises:
      CheckpointError: if it is absent or damaged.
    """
    spec = {
      "driver": "zarr",
      "kvstore": {
        "driver": "ocdbt",
        "base": _kvstore(self._path),
        "path": f"{self._names[path]}/",
        "cache_pool": "cache_pool#index",
      },
    }
    return self._patiently(
      lambda: ts.open(spec, open=True, read=True, context=self._context)
    )

  def read(self, store: Any, where: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of an open array.

    Raises:
      CheckpointError: if it cannot be read.
    """
    return np.asarray(self._patiently(lambda: store[where].read()))

  def _patiently(self, call: Callable[[], Any]) -> Any:
    """The result of a future; retries while the store is unreachable."""
    try:
      return failures.wait_out(lambda: call().result(), f"reading {self._path}")
    except failures.TransientError:
      raise
    except Exception as e:  # TensorStore raises several kinds.
      lines = str(e).strip().splitlines() or [type(e).__name__]
      raise CheckpointError(
        f"{self._path}: cannot be read, cut short or damaged "
        f"({lines[0][:160]})."
      ) from e


def _kvstore(folder: epath.Path) -> dict[str, str]:
  """TensorStore's description of a folder."""
  text = f"{os.fspath(folder)}/"
  if not text.startswith("gs://"):
    return {"driver": "file", "path": text}
  bucket, _, path = text.removeprefix("gs://").partition("/")
  return {"driver": "gcs", "bucket": bucket, "path": path}


def read_arrays(
  folder: epath.PathLike, item: str, entries: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Reads the arrays of one item as {path: host array}.

  Args:
    folder: step folder.
    item: "params", "opt_state" or "ema".
    entries: the manifest's entries of that item.

  Raises:
    CheckpointError: if the files are absent, cut short or damaged.
  """
  files = ArrayFiles(folder, item, entries)
  with ThreadPoolExecutor(max_workers=READERS) as pool:
    read = lambda path: files.read(files.open(path), ())
    return dict(zip(entries, pool.map(read, entries), strict=True))


def stored_tree(item: str, flat: Mapping[str, Any]) -> dict[str, Any]:
  """The tree {path: leaf} in the form that Orbax stores.

  Parameters keep their names on disk. The leaves of an optimizer state are
  numbered in the order of their paths in the manifest.

  Args:
    item: "params", "opt_state" or "ema".
    flat: all arrays of the item, by path.
  """
  if item != "opt_state":
    return manifest_lib.unflatten(flat, escaped=True)
  return {f"{i:06d}": flat[path] for i, path in enumerate(sorted(flat))}
