"""`memory://` for `etils.epath`: stands for a bucket in tests.

etils knows gs://, s3:// and local paths. `register` adds memory://, kept by
fsspec's in-process file system, with the methods this package uses.
"""

from __future__ import annotations

import fnmatch
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

_PREFIX = "memory://"


class MemoryPath(pathlib.PurePosixPath):
  """A path of fsspec's in-process file system, `memory://a/b`."""

  def __new__(cls, *parts: Any) -> MemoryPath:
    """Drops the scheme; the rest is a POSIX path from the root."""
    texts = [str(p).removeprefix(_PREFIX) for p in parts]
    return super().__new__(cls, "/", *(t.lstrip("/") for t in texts))

  if sys.version_info >= (3, 12):

    def __init__(self, *parts: Any):
      texts = [str(p).removeprefix(_PREFIX) for p in parts]
      super().__init__("/", *(t.lstrip("/") for t in texts))

  def __str__(self) -> str:
    return _PREFIX + super().__str__().lstrip("/")

  def __fspath__(self) -> str:
    return str(self)

  @property
  def _fs(self) -> Any:
    return fsspec.filesystem("memory")

  def exists(self) -> bool:
    """Whether a file or folder is there."""
    return self._fs.exists(str(self))

  def is_dir(self) -> bool:
    """Whether it is a folder."""
    return self._fs.isdir(str(self))

  def is_file(self) -> bool:
    """Whether it is a file."""
    return self._fs.isfile(str(self))

  def iterdir(self) -> Iterator[MemoryPath]:
    """The entries of a folder."""
    for entry in self._fs.ls(str(self), detail=False):
      yield MemoryPath(entry)

  def glob(self, pattern: str, **kwargs: Any) -> Iterator[MemoryPath]:
    """The entries of a folder whose names fit."""
    del kwargs
    return (p for p in self.iterdir() if fnmatch.fnmatch(p.name, pattern))

  def mkdir(
    self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False
  ) -> None:
    """Creates a folder with its parents."""
    del mode, parents
    self._fs.makedirs(str(self), exist_ok=exist_ok)

  def read_bytes(self) -> bytes:
    """Content of a file."""
    return self._fs.cat_file(str(self))

  def write_bytes(self, data: bytes) -> int:
    """Writes a file."""
    self._fs.pipe_file(str(self), data)
    return len(data)

  def read_text(self, encoding: str = "utf-8") -> str:
    """Content of a text file."""
    return self.read_bytes().decode(encoding)

  def write_text(self, text: str, encoding: str = "utf-8") -> int:
    """Writes a text file."""
    return self.write_bytes(text.encode(encoding))

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes a file."""
    if self.exists() or not missing_ok:
      self._fs.rm_file(str(self))

  def rmtree(self, missing_ok: bool = False) -> None:
    """Deletes a folder with all in it."""
    if self.exists() or not missing_ok:
      self._fs.rm(str(self), recursive=True)


def register() -> None:
  """Makes `epath.Path("memory://...")` work in this process."""
  epath.register_path_cls(_PREFIX)(MemoryPath)
