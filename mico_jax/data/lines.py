"""Logs in JSON lines to which several processes append.

A local file is appended to under a lock. Remote storage cannot append, so each
process rewrites a file of its own, `STEM-OWNER.jsonl`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mico_jax import files
from mico_jax.data.storage import is_remote
from mico_jax.failures import wait_out


def read_lines(workdir: str, stem: str) -> list[dict[str, Any]]:
  """All objects of `STEM*.jsonl`, without incomplete lines (after a kill)."""
  folder = epath.Path(workdir)
  lines: list[str] = []
  for name in files.names(folder):
    if name.startswith(stem) and name.endswith(".jsonl"):
      lines += files.read_text(folder / name).splitlines()
  entries = []
  for line in lines:
    try:
      entry = json.loads(line)
    except ValueError:
      continue
    if isinstance(entry, dict):
      entries.append(entry)
  return entries


def add_lines(
  workdir: str, stem: str, entries: Sequence[Mapping[str, Any]], owner: str
) -> None:
  """Appends objects to the log; waits for unreachable storage.

  Args:
    workdir: of the run.
    stem: of the file's name.
    entries: objects, one line each.
    owner: names this process's file on a remote workdir.

  Raises:
    TransientError: for storage that stays unreachable.
  """
  text = "".join(json.dumps(e, sort_keys=True) + "\n" for e in entries)
  if is_remote(workdir):
    file = epath.Path(workdir) / f"{stem}-{owner}.jsonl"
    try:
      old = files.read_text(file)
    except FileNotFoundError:
      old = ""
    files.write_text(file, old + text)
  else:
    path = pathlib.Path(workdir) / f"{stem}.jsonl"
    wait_out(lambda: _append(path, text), f"writing {path}")


def _append(path: pathlib.Path, text: str) -> None:
  """Appends all lines or, after an error, none."""
  import fcntl

  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a+b", buffering=0) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    size = file.seek(0, os.SEEK_END)
    data = text.encode()
    if size:
      file.seek(size - 1)
      if file.read(1) != b"\n":  # cut by a kill in mid-line
        data = b"\n" + data
    try:
      while data:
        data = data[file.write(data) :]
    except OSError:
      file.truncate(size)
      raise
