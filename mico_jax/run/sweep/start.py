"""The checkpoint that a run of a sweep starts from.

A sweep keeps place and content hash beside the config of a run: runs that start
from others are never mixed, also where a sweep goes on after its checkpoint has
trained further.
"""

from __future__ import annotations

import json
import os
from typing import Any

from mico_jax import files
from mico_jax.checkpoint.manifest import fingerprint
from mico_jax.checkpoint.restore import step_folders
from mico_jax.config import ConfigError

START_FILE = "sweep_start.json"  # of a run that starts from a checkpoint


def start_of(init: str) -> dict[str, str]:
  """The newest step of a checkpoint, and the hash of its manifest.

  Args:
    init: workdir or step folder; "": from scratch, {}.

  Raises:
    CheckpointError: if there is no checkpoint.
  """
  if not init:
    return {}
  folder = step_folders(init)[0]
  path = str(folder)
  if files.is_local(path):
    path = os.path.abspath(path)
  return {"checkpoint": path, "sha256": fingerprint(folder)}


def stored_start(folder: Any) -> dict[str, str]:
  """What a run was planned to start from; {}: from scratch.

  Args:
    folder: of the run.

  Raises:
    ConfigError: for a file that this module did not write.
  """
  path = files.place(folder) / START_FILE
  try:
    start = json.loads(files.read_text(path))
    return {name: str(start[name]) for name in ("checkpoint", "sha256")}
  except FileNotFoundError:
    return {}
  except (ValueError, TypeError, KeyError):
    raise ConfigError(
      f"{path} names no checkpoint; remove the folder of that run."
    ) from None


def planned_start(folder: Any) -> str | None:
  """The checkpoint that a planned run starts from; None: from scratch.

  Args:
    folder: of the run.

  Raises:
    ConfigError: if it is not the one that the sweep saw any more.
    CheckpointError: if it is gone.
  """
  start = stored_start(folder)
  if not start:
    return None
  if fingerprint(files.place(start["checkpoint"])) != start["sha256"]:
    raise ConfigError(
      f"{start['checkpoint']} is another checkpoint than when the sweep was "
      "planned; give the sweep another --out."
    )
  return start["checkpoint"]
