"""Listing the files below a local folder."""

from __future__ import annotations

import os

from mico_jax.config import ConfigError
from mico_jax.data.storage import is_remote


def is_hidden(name: str) -> bool:
  """Whether a name is that of a hidden file, or of an operating system's."""
  return name.startswith(".") or name == "__MACOSX"


def check_folder(path: str, source: str, kind: str) -> None:
  """Refuses what is no local folder.

  Args:
    path: of the source.
    source: its name.
    kind: of it.

  Raises:
    ConfigError: saying how files of a store are read.
  """
  if is_remote(path):
    raise ConfigError(
      f"data.sources.{source}.path: {path}: folders of a store are not listed; "
      "name its files in a manifest (kind 'manifest', root=the folder), or "
      f"make shards where it is local: mico-jax data convert --from {kind} "
      "--path DIR --out DIR."
    )
  if not os.path.isdir(path):
    raise ConfigError(
      f"data.sources.{source}.path: {path!r} is no local folder."
    )


def walk(root: str) -> list[str]:
  """Files below a folder, as sorted relative paths with "/".

  Hidden files and folders are left out. Links to folders are followed, except
  those that lead to a folder that holds them.
  """
  names = []
  for folder, folders, files in os.walk(root, followlinks=True):
    folders[:] = sorted(
      f
      for f in folders
      if not is_hidden(f) and not _leads_up(os.path.join(folder, f))
    )
    relative = os.path.relpath(folder, root).replace(os.sep, "/")
    for file in files:
      if not is_hidden(file):
        names.append(file if relative == "." else f"{relative}/{file}")
  return sorted(names)


def subfolders(root: str) -> list[str]:
  """Paths of the folders of a folder, without hidden ones, sorted."""
  with os.scandir(root) as entries:
    return sorted(
      e.path for e in entries if e.is_dir() and not is_hidden(e.name)
    )


def _leads_up(folder: str) -> bool:
  """Whether a link leads to a folder that holds it, which would never end."""
  if not os.path.islink(folder):
    return False
  real = os.path.realpath(folder)
  inside = os.path.realpath(os.path.dirname(folder))
  return f"{inside}/".startswith(f"{real}/")
