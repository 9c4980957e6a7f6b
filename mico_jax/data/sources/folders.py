"""Listing the files below a local folder."""

from __future__ import annotations

import os


def is_hidden(name: str) -> bool:
  """Whether a name is that of a hidden file, or of an operating system's."""
  return name.startswith(".") or name == "__MACOSX"


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
