"""Storage that fails now and then.

`Faults` stands between the Python code of this process and the disk, or the
store memory://, so that any one call can be made to fail. Calls that libraries
make in C, such as those of TensorStore, do not pass here.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class StoreError(Exception):
  """A refusal as botocore words it: no OSError."""

  def __init__(self, status: int):
    """Keeps the status where botocore does."""
    super().__init__(f"An error occurred ({status})")
    self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


# What a call may raise: the error of a local disk, of a store, of a slow body.
LOCAL_KINDS: dict[str, Callable[[], Exception]] = {
  "EIO": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
  "ESTALE": lambda: OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
  "ENOSPC": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
}
STORE_KINDS: dict[str, Callable[[], Exception]] = {
  "503": lambda: StoreError(503),
  "slow body": lambda: TimeoutError("the body did not come"),
  "reset": lambda: ConnectionResetError(errno.ECONNRESET, "reset by peer"),
}
_OS_CALLS = (
  *("open", "mkdir", "stat", "lstat", "listdir", "scandir", "unlink"),
  *("remove", "rmdir", "rename", "replace", "utime"),
)
_HANDLE_CALLS = ("pwrite", "pread", "ftruncate", "fsync", "write")
_STORE_CALLS = (
  *("cat_file", "pipe_file", "ls", "info", "rm", "rm_file", "makedirs"),
  *("exists", "isdir", "isfile"),
)


class Faults:
  """Counts the storage calls of this process below a folder; some fail.

  Attributes:
    calls: names of the calls so far.
    failed: of those that failed.
  """

  def __init__(
    self,
    folder: str,
    choose: Callable[[int], bool],
    kinds: Mapping[str, Callable[[], Exception]],
    seed: int = 0,
  ):
    """Changes nothing before `installed`.

    Args:
      folder: local, or of the store "memory://".
      choose: whether the call of this number (from 0) fails.
      kinds: what it raises, one by one.
      seed: of the choice among kinds.
    """
    self.calls: list[str] = []
    self.failed: list[str] = []
    self._folder = folder.rstrip("/").removeprefix("memory://")
    self._choose, self._kinds = choose, list(kinds.values())
    self._random = random.Random(seed)
    self._handles: set[int] = set()
    self._guard = threading.Lock()

  def _meet(self, name: str) -> None:
    with self._guard:
      number = len(self.calls)
      self.calls.append(name)
      if not self._choose(number):
        return
      self.failed.append(name)
      kind = self._random.choice(self._kinds)
    raise kind()

  def _below(self, path: Any) -> bool:
    try:
      text = os.fsdecode(path)
    except TypeError:
      return False  # a handle
    return self._folder in text

  def _wrap(self, real: Any, name: str) -> Any:
    def call(path: Any, *args: Any, **options: Any) -> Any:
      below = self._below(path)
      if below:
        self._meet(name)
      result = real(path, *args, **options)
      if name == "open" and isinstance(result, int):
        (self._handles.add if below else self._handles.discard)(result)
      return result

    return call

  def _wrap_handle(self, real: Any, name: str) -> Any:
    def call(handle: Any, *args: Any) -> Any:
      if handle in self._handles:
        self._meet(name)
      return real(handle, *args)

    return call

  def _wrap_close(self, real: Any, name: str) -> Any:
    del name

    def call(handle: Any) -> None:
      self._handles.discard(handle)
      real(handle)

    return call

  def _wrap_store(self, real: Any, name: str) -> Any:
    def call(store: Any, path: Any, *args: Any, **options: Any) -> Any:
      if self._folder in str(path) and not getattr(self._inside, "yes", False):
        self._meet(name)
      former = getattr(self._inside, "yes", False)
      self._inside.yes = True  # methods call each other
      try:
        return real(store, path, *args, **options)
      finally:
        self._inside.yes = former

    return call

  _inside = threading.local()

  @contextlib.contextmanager
  def installed(self) -> Iterator[Faults]:
    """Within, the calls of this process meet the faults."""
    from fsspec.implementations.memory import MemoryFileSystem

    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, wrap: Callable[[Any, str], Any]) -> None:
      real = getattr(owner, name)
      replaced.append((owner, name, real))
      setattr(owner, name, wrap(real, name))

    try:
      for name in _OS_CALLS:
        replace(os, name, self._wrap)
      replace(os, "close", self._wrap_close)
      for name in _HANDLE_CALLS:
        replace(os, name, self._wrap_handle)
      for owner in (builtins, io):
        replace(owner, "open", self._wrap)
      for name in _STORE_CALLS:
        replace(MemoryFileSystem, name, self._wrap_store)
      yield self
    finally:
      for owner, name, real in reversed(replaced):
        setattr(owner, name, real)
