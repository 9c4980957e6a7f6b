"""The step folders of a run."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from mico_jax import files
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import mirror
from mico_jax.checkpoint.manifest import CheckpointError

CHECKPOINTS = "checkpoints"


def list_steps(folder: epath.PathLike) -> list[int]:
  """Finished steps below a `checkpoints` folder, ascending."""
  root = epath.Path(folder)
  return sorted(
    int(name)
    for name in files.names(root)
    if name.isdigit() and mirror.is_finished(root / name)
  )


def fingerprint_of(folder: epath.PathLike, step: int) -> str:
  """The hash of a step's manifest; "" where that step was not saved."""
  try:
    return manifest_lib.fingerprint(epath.Path(folder) / str(step))
  except CheckpointError:
    return ""


def read_head(
  folder: epath.PathLike,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Manifest and data item of a step folder; verifies all but the arrays.

  Raises:
    CheckpointError: naming the first files that do not verify.
  """
  folder = epath.Path(folder)
  manifest = manifest_lib.read(folder)
  _, problems = manifest_lib.read_files(folder, manifest)
  data_path = folder / "data" / manifest_lib.DATA
  try:
    data_text = files.read_bytes(data_path)
  except FileNotFoundError:
    data_text = b""
  if manifest_lib.sha256(data_text) != manifest["data_sha256"]:
    problems.append(f"{data_path}: content differs from the manifest's hash.")
  if problems:
    raise CheckpointError(manifest_lib.summarise(problems))
  return manifest, json.loads(data_text)
