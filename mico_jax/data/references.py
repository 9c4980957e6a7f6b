"""What a manifest writes for a file, and how it is read.

`photo.jpg`, `shard.tar:member`, `arrays.npz:name` or `arrays.npz:name[7]`, or a
list of those (frames). Paths are relative to the manifest's folder and may not
leave it, unless the source's `root` names a wider folder.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from mico_jax.config import ConfigError
from mico_jax.data.remote import Storage, is_remote
from mico_jax.modalities import DecodeError

_TAR = re.compile(r"(?P<file>.+?\.tar):(?P<member>.+)")
_NPZ = re.compile(r"(?P<file>.+?\.npz):(?P<name>\w+)(\[(?P<index>\d+)\])?")
_ARRAY_BYTES = 2**30  # arrays of .npz files kept in memory


def parent(path: str) -> str:
  """The folder of a file, local or remote."""
  if is_remote(path):
    return posixpath.dirname(path)
  return os.path.dirname(os.path.abspath(path))


def join(folder: str, path: str) -> str:
  """`path` relative to `folder`, normalised, ".." resolved."""
  if is_remote(path):
    folder, path = "", path
  full = path if is_remote(path) else posixpath.join(folder, path)
  if is_remote(full):
    scheme, rest = full.split("://", 1)
    return f"{scheme}://{posixpath.normpath(rest)}"
  return os.path.normpath(full)


class TarIndex:
  """Members of a tar file by name, for reading at random."""

  def __init__(self, path: str):
    """Reads the headers of a local tar file.

    Raises:
      DecodeError: if it is not an uncompressed tar file, or cut short.
    """
    self._lock = threading.Lock()
    self.members: dict[str, tuple[int, int]] = {}
    try:
      self._file = open(path, "rb")  # noqa: SIM115 (kept open for reading)
      size = os.fstat(self._file.fileno()).st_size
      with tarfile.open(fileobj=self._file, mode="r:") as tar:
        for member in tar:
          if member.isfile():
            if member.offset_data + member.size > size:
              raise DecodeError(f"{path}: cut short in {member.name!r}.")
            self.members[member.name] = (member.offset_data, member.size)
        # tarfile takes a cut header for the end; a whole file ends in zeros.
        self._file.seek(tar.offset)
        if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
          raise DecodeError(f"{path}: the tar file is cut short.")
      # tarfile closes nothing it was handed; keep reading from our handle.
    except (tarfile.TarError, OSError) as error:
      raise DecodeError(f"{path}: not a readable tar file: {error}") from error

  def read(self, member: str) -> bytes:
    """The content of a member; safe from several threads."""
    offset, size = self.members[member]
    with self._lock:
      self._file.seek(offset)
      return self._file.read(size)

  def __del__(self) -> None:
    """Closes the file."""
    if hasattr(self, "_file"):
      self._file.close()


class FileReader:
  """Reads references of one source."""

  def __init__(self, folder: str, root: str, storage: Storage, name: str):
    """Resolves relative paths.

    Args:
      folder: what paths are relative to.
      root: folder they may not leave; relative to `folder`; "": `folder`.
      storage: reads files.
      name: of the source, for messages.
    """
    self._folder, self._storage, self._name = folder, storage, name
    self._root = join(folder, root) if root else join(folder, ".")
    self._lock = threading.RLock()
    self._tars: dict[str, TarIndex] = {}
    self._arrays: OrderedDict[str, np.ndarray] = OrderedDict()

  def resolve(self, path: str) -> str:
    """The full path.

    Raises:
      ConfigError: if it leaves the root folder.
    """
    full = join(self._folder, path)
    inside = self._root.rstrip("/") + "/"
    if not full.startswith(inside):
      raise ConfigError(
        f"source {self._name!r}: path {path!r} leaves the folder {self._root}. "
        f"If that is meant, set data.sources.{self._name}.root (--root of "
        "data build and embed) to a folder that holds everything, relative to "
        "the manifest, such as '..'."
      )
    if not is_remote(full):
      self._check_links(path, full)
    return full

  def _check_links(self, path: str, full: str) -> None:
    """Refuses a link that leads out of the root folder."""
    real, root = os.path.realpath(full), os.path.realpath(self._root)
    if not real.startswith(root.rstrip("/") + "/"):
      raise ConfigError(
        f"source {self._name!r}: {path!r} is a link that leads out of the "
        f"folder {self._root}, to {real}. If that is meant, set data.sources."
        f"{self._name}.root (--root of data build and embed) to a folder that "
        "holds both."
      )

  def read(self, reference: Any) -> Any:
    """Bytes of a file, an array, or a list of those.

    Raises:
      DecodeError: for missing files, members or arrays.
      ConfigError: for paths that leave the root folder.
    """
    if isinstance(reference, (list, tuple)):
      return [self.read(item) for item in reference]
    if not isinstance(reference, str) or not reference:
      raise DecodeError(
        f"expected a path or a list of them, got {reference!r}."
      )
    if match := _TAR.fullmatch(reference):
      tar, member = self.tar(match["file"]), match["member"]
      if member not in tar.members:
        raise DecodeError(f"{match['file']}: has no member {member!r}.")
      return tar.read(member)
    if match := _NPZ.fullmatch(reference):
      array = self._array(match["file"], match["name"])
      if match["index"] is None:
        return array
      index = int(match["index"])
      if index >= len(array):
        raise DecodeError(f"{reference}: the array has {len(array)} entries.")
      return array[index]
    return self._storage.read(self.resolve(reference))

  def tar(self, path: str) -> TarIndex:
    """The index of a tar file, read once."""
    with self._lock:
      if path not in self._tars:
        self._tars[path] = TarIndex(self._storage.local(self.resolve(path)))
      return self._tars[path]

  def _array(self, path: str, name: str) -> np.ndarray:
    key = f"{path}:{name}"
    with self._lock:
      if key not in self._arrays:
        data = self._storage.read(self.resolve(path))
        try:
          with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            if name not in arrays.files:
              raise DecodeError(
                f"{path}: has no array {name!r}; it has {arrays.files}."
              )
            self._arrays[key] = arrays[name]
        except DecodeError:
          raise
        except Exception as error:
          raise DecodeError(f"{path}: not a readable .npz: {error}") from error
        while (
          len(self._arrays) > 1
          and sum(a.nbytes for a in self._arrays.values()) > _ARRAY_BYTES
        ):
          self._arrays.popitem(last=False)
      self._arrays.move_to_end(key)
      return self._arrays[key]
