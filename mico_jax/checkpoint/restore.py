"""Opening a checkpoint for use, and starting a run from its parameters.

`open_checkpoint` takes a workdir or a step folder and needs neither a mesh nor
a target tree. `partial_load` fits parameters into another model: the caller's
functions resize tables, new parts are reported, all else must match.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from etils import epath

from mico_jax import config as config_lib
from mico_jax import files as files_lib
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import mirror, named, sharded, storage
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.checkpoint.steps import CHECKPOINTS, list_steps
from mico_jax.config import Config

Check = Literal["full", "fast", "off"]
CHECKS: tuple[str, ...] = ("full", "fast", "off")


@dataclass(frozen=True)
class Checkpoint:
  """A verified checkpoint, on the host.

  Attributes:
    folder: of the step.
    step: of the training run.
    config: of the run.
    manifest: as read.
    params: nested dict of host arrays: the averaged weights if requested and
      present.
    source: "ema" or "params".
    files: the manifest's files (tokenizer, self-check) by name.
    warnings: one line each: newer steps that were skipped, and problems that
      `strict=False` tolerated.
  """

  folder: Any
  step: int
  config: Config
  manifest: Mapping[str, Any]
  params: Mapping[str, Any]
  source: str
  files: Mapping[str, bytes]
  warnings: tuple[str, ...] = ()

  def tokenizer_files(self) -> dict[str, bytes]:
    """The stored tokenizer files by name."""
    prefix = manifest_lib.TOKENIZER_PREFIX
    return {
      name.removeprefix(prefix): data
      for name, data in self.files.items()
      if name.startswith(prefix)
    }

  def self_check(self) -> dict[str, np.ndarray] | None:
    """Arrays of the self-check; None if the checkpoint has none."""
    data = self.files.get(manifest_lib.SELF_CHECK)
    return None if data is None else manifest_lib.unpack_arrays(data)


def step_folders(path: epath.PathLike) -> list[Any]:
  """Step folders that a path names, newest first.

  Args:
    path: a workdir, its `checkpoints` folder or a step folder; or a name or
      address, see `checkpoint.named`.

  Raises:
    CheckpointError: if there is no checkpoint.
  """
  root = files_lib.place(named.resolve(path))
  if {"manifest", "params"} & set(files_lib.names(root)):
    return [root]
  for folder in (root / CHECKPOINTS, root):
    steps = list_steps(folder)
    if steps:
      return [folder / str(step) for step in reversed(steps)]
  if not files_lib.exists(root):
    raise CheckpointError(
      f"no such workdir or checkpoint: {str(path)!r}{named.other_names(path)}"
    )
  raise CheckpointError(
    f"{str(path)!r} holds no checkpoint; give a workdir (with checkpoints/) "
    "or a step folder such as runs/demo/checkpoints/1000. Exports and weights "
    "of others are read by mico-jax import."
  )


def open_checkpoint(
  path: epath.PathLike,
  *,
  check: Check = "full",
  strict: bool = True,
  ema: bool = True,
  arrays: bool = True,
) -> Checkpoint:
  """Reads the newest checkpoint that verifies.

  Args:
    path: a workdir, its `checkpoints` folder or a step folder.
    check: "off" skips the content hashes of the parameters.
    strict: false turns problems of content into warnings; files that cannot be
      read stay errors.
    ema: take the averaged weights if there are any.
    arrays: false leaves `params` empty, for `read_params`.

  Raises:
    CheckpointError: if none can be read or verified.
  """
  if check not in CHECKS:
    raise ValueError(f"{check=} must be one of {', '.join(CHECKS)}.")
  reasons: list[str] = []
  folders = step_folders(path)
  for folder in folders:
    try:
      checkpoint = _open_step(folder, strict, ema, tuple(reasons))
      return (
        read_params(checkpoint, check=check, strict=strict)
        if arrays
        else checkpoint
      )
    except CheckpointError as e:
      reasons.append(f"skipped step {folder.name}: {e}")
  if len(folders) == 1:
    raise CheckpointError(reasons[0].partition(": ")[2])
  raise CheckpointError(
    f"no checkpoint of {str(path)!r} verifies: "
    f"{manifest_lib.summarise(reasons)}"
  )


def _open_step(
  folder: Any, strict: bool, ema: bool, warnings: tuple[str, ...]
) -> Checkpoint:
  manifest = manifest_lib.read(folder)
  files, problems = manifest_lib.read_files(folder, manifest)
  if manifest_lib.CONFIG not in files:
    raise CheckpointError(manifest_lib.summarise(problems))
  if problems and strict:
    raise CheckpointError(manifest_lib.summarise(problems))
  config = parse_config(files.pop(manifest_lib.CONFIG), folder)
  return Checkpoint(
    folder=folder,
    step=int(manifest["step"]),
    config=config,
    manifest=manifest,
    params={},
    source="ema" if ema and "ema" in manifest["items"] else "params",
    files=files,
    warnings=(*warnings, *problems),
  )


def read_params(
  checkpoint: Checkpoint, *, check: Check = "full", strict: bool = True
) -> Checkpoint:
  """The checkpoint with its parameters, read and verified.

  Raises:
    CheckpointError: if they cannot be read or do not verify.
  """
  entries = checkpoint.manifest["items"][checkpoint.source]
  item = checkpoint.source
  with mirror.local_copy(checkpoint.folder, (item,)) as here:
    flat = storage.read_arrays(here, item, entries)
  problems = manifest_lib.array_problems(
    entries, flat, item=checkpoint.source, hashes=check != "off"
  )
  if problems and strict:
    raise CheckpointError(manifest_lib.summarise(problems))
  return dataclasses.replace(
    checkpoint,
    params=manifest_lib.unflatten(flat),
    warnings=(*checkpoint.warnings, *problems),
  )


def stream_params(
  path: epath.PathLike,
  shardings: Mapping[str, Any] | None = None,
  *,
  ema: bool = True,
) -> tuple[dict[str, Any], Config]:
  """Loads parameters onto devices, a few arrays at a time.

  The host holds few saved shards at a time (see `checkpoint.sharded`), so
  weights as large as the memory of the devices load on a small host. Every
  array is verified before it is placed. With several processes, all must call.

  Args:
    path: a workdir (its newest checkpoint) or a step folder.
    shardings: tree of the parameters' shardings, as `parallel.param_shardings`
      makes it of the model's logical axes; None: the default device.
    ema: take the averaged weights if there are any.

  Returns:
    The parameters as device arrays, and the config of the checkpoint.

  Raises:
    CheckpointError: if a file or an array does not verify, or the shardings
      are those of another model.
  """
  folder = step_folders(path)[0]

  def head() -> tuple[dict[str, Any], dict[str, bytes]]:
    manifest = manifest_lib.read(folder)
    files, problems = manifest_lib.read_files(folder, manifest)
    if problems:
      raise CheckpointError(manifest_lib.summarise(problems))
    return manifest, files

  manifest, files = sharded.together(head)
  item = "ema" if ema and "ema" in manifest["items"] else "params"
  entries = manifest["items"][item]
  places = None if shardings is None else manifest_lib.flatten(shardings)
  if places is not None and places.keys() != entries.keys():
    other = sorted(places.keys() ^ entries.keys())
    raise CheckpointError(
      f"the shardings are those of another model: {other[:3]} ({len(other)}) "
      f"differ from {folder}."
    )
  likes = {
    name: jax.ShapeDtypeStruct(
      entry["shape"],
      jax.numpy.dtype(entry["dtype"]),
      sharding=places[name] if places else None,
    )
    for name, entry in entries.items()
  }
  with mirror.local_copy(folder, (item,)) as here:
    arrays = sharded.read_placed(here, {item: entries}, {item: likes})
  config = parse_config(files[manifest_lib.CONFIG], folder)
  return manifest_lib.unflatten(arrays[item]), config


def parse_config(text: bytes, folder: Any) -> Config:
  """The config stored in a checkpoint.

  Raises:
    CheckpointError: if it is not the JSON of a config of this version.
  """
  try:
    return config_lib.from_dict(json.loads(text))
  except ValueError as e:  # ConfigError and broken JSON.
    raise CheckpointError(
      f"{folder}: its config does not fit this version of mico_jax: {e}"
    ) from e


# ----------------------------------------------------------- partial loading
@dataclass(frozen=True)
class LoadReport:
  """Parameter paths by how `partial_load` treated them.

  Attributes:
    loaded: copied unchanged.
    resized: tables that were resized.
    new: absent from the source; they keep their initial values.
    unused: in the source only.
  """

  loaded: tuple[str, ...] = ()
  resized: tuple[str, ...] = ()
  new: tuple[str, ...] = ()
  unused: tuple[str, ...] = field(default=())

  def lines(self) -> list[str]:
    """The report for the console, one line per kind."""
    text = [f"{len(self.loaded)} parameters loaded"]
    for name in ("resized", "new", "unused"):
      paths = getattr(self, name)
      if paths:
        text.append(f"{name}: {', '.join(paths)}")
    return text


# (array, wanted shape) -> array of that shape.
Resizer = Callable[[np.ndarray, tuple[int, ...]], Any]


def partial_load(
  target: Mapping[str, Any],
  source: Mapping[str, Any],
  *,
  resizers: Mapping[str, Resizer] | None = None,
  may_be_new: Sequence[str] = (),
) -> tuple[dict[str, Any], LoadReport]:
  """Fits parameters into a model of other sizes or with other heads.

  Args:
    target: freshly initialised parameters.
    source: parameters of a checkpoint, host arrays.
    resizers: path regex -> function for parameters whose shapes differ.
    may_be_new: path regexes of parameters the source may lack.

  Returns:
    The target's tree with the source's values, and what was done.

  Raises:
    CheckpointError: listing parameters that are missing or whose shapes
      differ without a resizer.
  """
  have = manifest_lib.flatten(source)
  values: dict[str, Any] = {}
  loaded, resized, new, problems = [], [], [], []
  for path, like in manifest_lib.flatten(target).items():
    shape = tuple(like.shape)
    if path not in have:
      if any(re.search(pattern, path) for pattern in may_be_new):
        new.append(path)
        values[path] = like
      else:
        problems.append(f"{path} is not in the checkpoint")
      continue
    value = np.asarray(have[path])
    if value.shape == shape:
      loaded.append(path)
    else:
      matches = (f for p, f in (resizers or {}).items() if re.search(p, path))
      if (resize := next(matches, None)) is None:
        problems.append(
          f"{path} has shape {list(value.shape)}, the model needs {list(shape)}"
        )
        continue
      value = resize(value, shape)
      if value.shape != shape:
        problems.append(f"{path} cannot be resized to {list(shape)}")
        continue
      resized.append(path)
    values[path] = value.astype(like.dtype)
  if problems:
    more = f" ({len(problems) - 3} more)" if len(problems) > 3 else ""
    raise CheckpointError(
      f"the checkpoint does not fit the model: {'; '.join(problems[:3])}{more}."
      " Give the model the checkpoint's sizes, see mico-jax inspect."
    )
  unused = tuple(path for path in have if path not in values)
  report = LoadReport(tuple(loaded), tuple(resized), tuple(new), unused)
  return manifest_lib.unflatten(values), report
