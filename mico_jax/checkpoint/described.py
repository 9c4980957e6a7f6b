"""The manifest of a step and the files beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from etils import epath

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import storage
from mico_jax.checkpoint.manifest import CheckpointError


@dataclass(frozen=True)
class Extras:
  """Contents of a checkpoint beside the state; the same for every save.

  Attributes:
    logical_axes: tree of axis-name tuples, in the form of the parameters.
    tokenizer_files: {file name: content}.
    tokenizer_info: special ids and sizes, JSON types only.
    preprocessing: {modality: mode name} for train and eval, and constants.
    topology: mesh, processes, devices; `topology()` by default.
    self_check: host parameters -> arrays of the self-check.
  """

  logical_axes: Mapping[str, Any] | None = None
  tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
  tokenizer_info: Mapping[str, Any] = field(default_factory=dict)
  preprocessing: Mapping[str, Any] = field(default_factory=dict)
  topology: Mapping[str, Any] = field(default_factory=dict)
  self_check: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


def topology() -> dict[str, Any]:
  """Processes, devices and backend of this run."""
  return {
    "backend": jax.default_backend(),
    "device_kind": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
  }


def manifest_files(
  extras: Extras,
  folder: epath.PathLike,
  head: Mapping[str, Any],
  layouts: Mapping[str, Any],
  notes: Sequence[Mapping[str, Any]],
) -> dict[str, bytes]:
  """As `with_files`, of arrays that several processes wrote in shards.

  Args:
    extras: as of the run.
    folder: of the step, with the arrays of all processes.
    head: entries of the manifest about this step alone.
    layouts: item -> layout of its arrays, see `sharded.layout`.
    notes: of each process: item -> path -> start of a shard -> hash.
  """
  axes = manifest_lib.flatten(extras.logical_axes or {})
  items = {
    name: manifest_lib.describe_shards(
      layout,
      [note.get(name, {}) for note in notes],
      logical_axes={} if name == "opt_state" else axes,
    )
    for name, layout in layouts.items()
  }
  return with_files(extras, folder, head, items)


def with_files(
  extras: Extras,
  folder: epath.PathLike,
  head: Mapping[str, Any],
  items: Mapping[str, Mapping[str, Any]],
) -> dict[str, bytes]:
  """The files of the `manifest` item, by name: self-check and tokenizer too.

  Args:
    extras: as of the run.
    folder: of the step, with its arrays.
    head: entries of the manifest about this step alone.
    items: item -> the manifest's entry of every array.

  Raises:
    CheckpointError: if the arrays differ from what was written.
  """
  files = {
    f"{manifest_lib.TOKENIZER_PREFIX}{name}": content
    for name, content in extras.tokenizer_files.items()
  }
  checked = "ema" if "ema" in items else "params"
  if extras.self_check is not None:
    entries = items[checked]
    flat = storage.read_arrays(folder, checked, entries)
    problems = manifest_lib.array_problems(entries, flat, item=checked)
    if problems:
      raise CheckpointError(
        f"the store altered what was written: "
        f"{manifest_lib.summarise(problems)}"
      )
    outputs = extras.self_check(manifest_lib.unflatten(flat))
    files[manifest_lib.SELF_CHECK] = manifest_lib.pack_arrays(outputs)
  return manifest_lib.to_files(
    {
      **head,
      "items": items,
      "tokenizer": dict(extras.tokenizer_info),
      "preprocessing": dict(extras.preprocessing),
      "versions": manifest_lib.versions(),
      "topology": dict(extras.topology or topology()),
      "self_check_of": checked,
    },
    files,
  )
