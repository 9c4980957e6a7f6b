"""Files of a workdir, local or in a store, with passing faults waited out."""

from __future__ import annotations

import os

from etils import epath

from mico_jax.failures import wait_out


def is_local(path: epath.PathLike) -> bool:
  """Whether a path has no scheme such as s3://."""
  return "://" not in os.fspath(path)


def make_folder(path: epath.PathLike) -> None:
  """Makes a folder and those above it, as far as they are missing."""
  folder = epath.Path(path)
  wait_out(
    lambda: folder.mkdir(parents=True, exist_ok=True), f"making {folder}"
  )
