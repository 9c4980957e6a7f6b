"""Checkpoints by name: those that come with the package, and hf://owner/name.

A name without separators that is no path here is looked up among
`mico_jax.pretrained.WEIGHTS`; an existing file or folder of that name comes
first. Its packaged file is unpacked once into the cache folder of this user,
where it is an ordinary step folder for every command. The folder gets its name
when it is complete, so two processes may do so at once; what was removed or
altered there since is unpacked again.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
import zlib

from etils import epath

from mico_jax import failures, files, pretrained
from mico_jax.checkpoint import hub
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.printing import known_names

CACHE = "pretrained"  # folder in the cache of this user
_EXPORTED = "mico_jax torch"  # begins the format in config.json of an export
_IMPORTER = "mico_jax.interop.importer"  # above this room: imported where used


def resolve(path: epath.PathLike) -> epath.PathLike:
  """The folder that a name or address stands for; a path is given back.

  Args:
    path: of a workdir or step folder, a name of `list_pretrained`, or
      hf://owner/name.

  Raises:
    CheckpointError: if the packaged file is absent or altered.
    ConfigError: if a repository cannot be fetched.
  """
  text = os.fspath(path)
  if hub.is_address(text):
    folder = hub.checkpoint(text)
    return converted(folder) if is_export(folder) else folder
  return unpacked(text) if is_name(text) else path


def is_export(folder: pathlib.Path) -> bool:
  """Whether `mico-jax export --to torch` wrote a folder."""
  try:
    settings = json.loads((folder / "config.json").read_bytes())
    return str(settings["format"]).startswith(_EXPORTED)
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return False


def converted(folder: pathlib.Path) -> pathlib.Path:
  """The checkpoint of an exported folder, made once per content.

  Raises:
    CheckpointError: if its weights do not fit this version.
  """
  states = [
    (parts, (at := os.stat(folder.joinpath(*parts))).st_size, at.st_mtime_ns)
    for parts in files.walk(folder)
    if not parts[0].startswith(".")  # notes of the library that fetched it
  ]
  state = hashlib.sha256(repr(states).encode()).hexdigest()
  out = files.user_cache(CACHE) / f"{folder.name}-{state[:16]}"
  if not files.exists(out):
    module = importlib.import_module(_IMPORTER)
    try:
      module.import_checkpoint("torch", folder, out, self_check=False)
    except OSError:
      if not files.exists(out):  # another process was faster
        raise
  return out


def is_name(text: str) -> bool:
  """Whether a text names packaged weights, and is no path here."""
  return text in pretrained.WEIGHTS and not files.exists(text)


def other_names(path: epath.PathLike) -> str:
  """What an error about an absent checkpoint adds: names, and a near one."""
  text = os.fspath(path)
  if not text or set("/\\:") & set(text):
    return "."
  return f"; packaged weights, {known_names(text, pretrained.WEIGHTS)}"


def unpacked(name: str) -> pathlib.Path:
  """The step folder of packaged weights, unpacked if it is not there.

  Args:
    name: of `list_pretrained`.

  Raises:
    CheckpointError: if the packaged file is absent or altered.
  """
  weights = pretrained.describe(name)
  try:
    content = weights.content()
  except pretrained.DamagedWeights as error:
    raise CheckpointError(str(error)) from error
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    folder = files.user_cache(CACHE) / f"{name}-{weights.sha256[:16]}"
    if _is_whole(folder, archive):
      return folder
    try:
      return _unpack(archive, folder)
    except OSError as error:
      reason = error.strerror or type(error).__name__
    other = _temporary(weights.sha256)
    if not _is_whole(other, archive):
      failures.say(
        f"{folder}: cannot be written ({reason}); {name} lies in {other} "
        "until this process ends."
      )
      archive.extractall(other)
    return other


def _is_whole(folder: pathlib.Path, archive: zipfile.ZipFile) -> bool:
  """Whether a folder holds the files of an archive, byte for byte."""
  try:
    return all(
      zlib.crc32((folder / info.filename).read_bytes()) == info.CRC
      for info in archive.infolist()
    )
  except OSError:
    return False


def _unpack(archive: zipfile.ZipFile, folder: pathlib.Path) -> pathlib.Path:
  """Unpacks into a folder beside, then renames it.

  Raises:
    OSError: if there is no place for it.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  part = tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)
  try:
    archive.extractall(part)
    os.chmod(part, 0o755)
    for _ in range(2):
      with contextlib.suppress(OSError):
        os.rename(part, folder)
      # If it was there, another process was faster, or it is damaged.
      if _is_whole(folder, archive):
        return folder
      shutil.rmtree(folder, ignore_errors=True)
    raise OSError(f"{folder} cannot be replaced")
  finally:
    shutil.rmtree(part, ignore_errors=True)


@functools.cache
def _temporary(sha256: str) -> pathlib.Path:
  """A folder of this process for packaged weights, removed at its end."""
  folder = tempfile.mkdtemp(prefix=f"mico_jax_{sha256[:8]}_")
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return pathlib.Path(folder)
