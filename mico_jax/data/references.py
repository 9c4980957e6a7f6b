"""What a manifest writes for a file, and how it is read.

`photo.jpg`, `shard.tar:member`, `arrays.npz:name` or `arrays.npz:name[7]`,
`cube.npz:name@12,30` (the pixels around row 12, column 30; also of .mat),
`table.csv:rows[0:336]` (its header and 336 lines), or a list of those (frames).
A JSON object stands for a file that holds it, of modalities with
`Modality.objects`. Paths are relative to the manifest's folder and may not
leave it, links included, unless the source's `root` names a wider folder.

Open: an .npz in a store is not read ahead, as its directory tells where arrays
lie; once read, an array is kept for the samples that share it.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax.data.faults import describe
from mico_jax.data.storage import Span, Storage, check_size, is_remote, short
from mico_jax.data.tar import TarIndex
from mico_jax.failures import TransientError
from mico_jax.modalities import DecodeError
from mico_jax.modalities.arrays import read_npy, window

_TAR = re.compile(r"(?P<file>.+?\.tar):(?P<member>.+)")
_NPZ = re.compile(
  r"(?P<file>.+?\.npz):(?P<name>\w+)(\[(?P<index>-?\d{1,18})\])?"
)
_PLACE = re.compile(
  r"(?P<file>.+?\.(npz|mat)):(?P<name>\w+)@(?P<row>\d{1,9}),(?P<column>\d{1,9})"
)
_ROWS = re.compile(
  r"(?P<file>.+?\.csv):rows\[(?P<first>\d{1,18}):(?P<end>\d{1,18})\]"
)
_TABLES = 4  # tables kept in memory
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


def _real(path: str) -> str:
  """A local path with its links resolved; a remote one as it is."""
  return path if is_remote(path) else os.path.realpath(path)


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
    self._tables: OrderedDict[str, list[bytes]] = OrderedDict()

  def resolve(self, path: str) -> str:
    """The full path.

    Raises:
      DecodeError: if it leaves the root folder.
    """
    full = join(self._folder, path)
    try:
      inside = _real(self._root).rstrip("/") + "/"
      real = _real(full)
    except ValueError as error:  # a NUL in the name
      raise DecodeError(f"{short(path)}: {error}.") from error
    if not real.startswith(inside):
      where = "" if real == full else f" (it leads to {short(real)})"
      raise DecodeError(
        f"source {self._name!r}: path {short(path)!r} leaves the folder "
        f"{self._root}{where}. If that is meant, set "
        f"data.sources.{self._name}.root (--root of data build and embed) to a "
        "folder that holds everything, relative to the manifest, such as '..'."
      )
    return full

  def read(self, reference: Any, *, objects: bool = False) -> Any:
    """Bytes of a file, an array, or a list of those.

    Args:
      reference: as the module says.
      objects: whether a JSON object stands for a file.

    Raises:
      DecodeError: for missing files, members or arrays, and for paths that
        leave the root folder.
      TransientError: for storage that stays away.
    """
    if isinstance(reference, (list, tuple)):
      return [self.read(item, objects=objects) for item in reference]
    if objects and isinstance(reference, Mapping):
      return json.dumps(reference).encode()
    if not isinstance(reference, str) or not reference:
      raise DecodeError(
        f"expected a path or a list of them, got {reference!r:.80}."
      )
    if match := _TAR.fullmatch(reference):
      return self.tar(match["file"]).read(match["member"])
    if match := _NPZ.fullmatch(reference):
      array = self._array(match["file"], match["name"])
      if match["index"] is None:
        return array
      index, count = int(match["index"]), len(array) if array.ndim else 0
      if not 0 <= index < count:
        raise DecodeError(
          f"{short(reference)}: the array has {count} entries, counted from 0."
        )
      return array[index]
    if match := _PLACE.fullmatch(reference):
      array = self._array(match["file"], match["name"])
      try:
        return window(array, int(match["row"]), int(match["column"]))
      except DecodeError as error:
        raise DecodeError(f"{short(reference)}: {error}") from error
    if match := _ROWS.fullmatch(reference):
      first, end = int(match["first"]), int(match["end"])
      head, *rows = self._table(match["file"])
      if not first < end <= len(rows):
        raise DecodeError(
          f"{short(reference)}: the table has {len(rows)} rows, counted from 0."
        )
      return b"".join([head, *rows[first:end]])
    return self._storage.read(self.resolve(reference))

  def spans(self, reference: Any) -> list[Span]:
    """The bytes that `read` will need, as far as that is known before.

    Raises:
      DecodeError: as `read`, in part.
    """
    if isinstance(reference, (list, tuple)):
      return [span for item in reference for span in self.spans(item)]
    if not isinstance(reference, str) or any(
      pattern.fullmatch(reference) for pattern in (_NPZ, _PLACE, _ROWS)
    ):
      return []
    if match := _TAR.fullmatch(reference):
      return [self.tar(match["file"]).span(match["member"])]
    return [Span(self.resolve(reference))]

  def tar(self, path: str) -> TarIndex:
    """The index of a tar file, read once."""
    with self._lock:
      if path not in self._tars:
        self._tars[path] = TarIndex(self.resolve(path), self._storage)
      return self._tars[path]

  def _table(self, path: str) -> list[bytes]:
    """The lines of a table, the header first; a cell holds no line break."""
    with self._lock:
      if path not in self._tables:
        data: bytes = self._storage.read(self.resolve(path))
        lines = [x for x in data.splitlines(keepends=True) if x.strip()]
        if not lines:
          raise DecodeError(f"{short(path)}: the table is empty.")
        if not lines[-1].endswith((b"\n", b"\r")):
          lines[-1] += b"\n"
        self._tables[path] = lines
        while len(self._tables) > _TABLES:
          self._tables.popitem(last=False)
      self._tables.move_to_end(path)
      return self._tables[path]

  def _array(self, path: str, name: str) -> np.ndarray:
    key = f"{path}:{name}"
    with self._lock:
      if key not in self._arrays:
        full, limit = self.resolve(path), self._storage.max_file_bytes
        check_size(full, self._storage.stat(full).size, limit)
        with self._storage.open(full) as file:
          read = _read_mat if path.endswith(".mat") else _read_npz
          self._arrays[key] = read(file, short(path), name, limit)
        while (
          len(self._arrays) > 1
          and sum(a.nbytes for a in self._arrays.values()) > _ARRAY_BYTES
        ):
          self._arrays.popitem(last=False)
      self._arrays.move_to_end(key)
      return self._arrays[key]


def _read_npz(file: Any, path: str, name: str, limit: int) -> np.ndarray:
  """One array out of a .npz file.

  Args:
    file: open for reading at any place.
    path: of the file, for messages.
    name: of the array.
    limit: most bytes of the array; more are refused before they are unpacked.

  Raises:
    DecodeError: if there is no such array, or it is broken or too large.
  """
  try:
    with zipfile.ZipFile(file) as archive:
      names = [n.removesuffix(".npy") for n in archive.namelist()]
      if name not in names:
        raise DecodeError(
          f"has no array {name!r}, but {', '.join(names[:20])}."
        )
      info = archive.infolist()[names.index(name)]
      if limit and info.file_size > limit:
        raise DecodeError(
          f"array {name!r} of {info.file_size} bytes exceeds "
          f"data.max_file_bytes={limit}."
        )
      with archive.open(info) as member:  # ends at the size that it promises
        return read_npy(member.read())
  except DecodeError as error:
    raise DecodeError(f"{path}: {error}") from error
  except TransientError:
    raise
  except Exception as error:  # zipfile and zlib raise many kinds
    raise DecodeError(
      f"{path}: not a readable .npz: {describe(error)}"
    ) from error


def _read_mat(file: Any, path: str, name: str, limit: int) -> np.ndarray:
  """One array out of a .mat file of MATLAB, up to version 7.

  Args:
    file: open for reading at any place.
    path: of the file, for messages.
    name: of the array.
    limit: most bytes of the array; more are refused before they are unpacked.

  Raises:
    DecodeError: if there is no such array of numbers, or it is broken.
  """
  from scipy import io

  try:
    shapes = {n: (shape, kind) for n, shape, kind in io.whosmat(file)}
    if name not in shapes:
      raise DecodeError(
        f"has no array {name!r}, but {', '.join(shapes)[:200]}."
      )
    shape, kind = shapes[name]
    if limit and math.prod(shape) * 8 > limit:
      raise DecodeError(
        f"array {name!r} of shape {list(shape)} may exceed "
        f"data.max_file_bytes={limit}."
      )
    file.seek(0)
    array = io.loadmat(file, variable_names=[name])[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
      raise DecodeError(f"{name!r} is a {kind}; expected an array of numbers.")
    return array
  except DecodeError as error:
    raise DecodeError(f"{path}: {error}") from error
  except TransientError:
    raise
  except Exception as error:  # SciPy raises many kinds
    raise DecodeError(
      f"{path}: not a readable .mat of version 4 to 7: {describe(error)}"
    ) from error
