"""Storage that fails now and then.

`Faults` stands between the Python code of this process and the disk, or the
store memory://, so that any one call can be made to fail. `preload` compiles a
small library that stands between a process and the C library: it also meets the
calls of TensorStore. It needs a C compiler and Linux.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static unsigned char below_folder[1 << 16];
static unsigned long calls, faults, limit;
static const char *prefix = 0;
static size_t prefix_size;
static unsigned long seed;

__attribute__((constructor)) static void begin(void) {
  const char *rate = getenv("FAULTS_RATE"), *start = getenv("FAULTS_SEED");
  limit = (unsigned long)((rate ? atof(rate) : 0) * 4294967296.0);
  seed = start ? strtoul(start, 0, 10) : 0;
  prefix = getenv("FAULTS_FOLDER");
  prefix_size = prefix ? strlen(prefix) : 0;
}

__attribute__((destructor)) static void end(void) {
  const char *log = getenv("FAULTS_LOG");
  char text[64];
  if (!log) return;
  int size = snprintf(text, sizeof text, "%lu %lu\n", calls, faults);
  prefix = 0;
  int handle = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if (handle >= 0) {
    if (write(handle, text, size) < 0) {}
    close(handle);
  }
}

static int below(const char *path) {
  return prefix && path && !strncmp(path, prefix, prefix_size);
}
static int known(int handle) {
  return prefix && handle >= 0 && handle < (1 << 16) && below_folder[handle];
}
static int fails(int writes) {
  static const int errors[3] = {EIO, ESTALE, ENOSPC};
  unsigned long x = __sync_add_and_fetch(&calls, 1) + seed * 1000003ul;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ul;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebul;
  x ^= x >> 31;
  if ((x & 0xfffffffful) >= limit) return 0;
  __sync_add_and_fetch(&faults, 1);
  errno = errors[(x >> 32) % (writes ? 3 : 2)];
  return 1;
}
static int note(int handle, int yes) {
  if (handle >= 0 && handle < (1 << 16)) below_folder[handle] = yes;
  return handle;
}

#define REAL(result, name, ...) \
  static result (*real)(__VA_ARGS__) = 0; \
  if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name);

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); \
    mode_t mode = va_arg(more, int); va_end(more); \
    REAL(int, #name, const char *, int, ...) \
    if (below(path) && fails(flags & (O_WRONLY | O_RDWR))) return -1; \
    return note(real(path, flags, mode), below(path)); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); \
    mode_t mode = va_arg(more, int); va_end(more); \
    REAL(int, #name, int, const char *, int, ...) \
    int yes = below(path) || (path && path[0] != '/' && known(at)); \
    if (yes && fails(flags & (O_WRONLY | O_RDWR))) return -1; \
    return note(real(at, path, flags, mode), yes); \
  }
OPENAT(openat)
OPENAT(openat64)
int close(int handle) {
  REAL(int, "close", int)
  note(handle, 0);
  return real(handle);
}
#define PATH1(name, result, bad, type, writes) \
  result name(const char *path, type x) { \
    REAL(result, #name, const char *, type) \
    if (below(path) && fails(writes)) return bad; \
    return real(path, x); \
  }
PATH1(mkdir, int, -1, mode_t, 1)
PATH1(stat, int, -1, struct stat *, 0)
PATH1(lstat, int, -1, struct stat *, 0)
PATH1(stat64, int, -1, struct stat64 *, 0)
PATH1(lstat64, int, -1, struct stat64 *, 0)
PATH1(access, int, -1, int, 0)
#define PATH0(name, result, bad, writes) \
  result name(const char *path) { \
    REAL(result, #name, const char *) \
    if (below(path) && fails(writes)) return bad; \
    return real(path); \
  }
PATH0(unlink, int, -1, 1)
PATH0(rmdir, int, -1, 1)
PATH0(opendir, DIR *, 0, 0)
int rename(const char *from, const char *to) {
  REAL(int, "rename", const char *, const char *)
  if (below(to) && fails(1)) return -1;
  return real(from, to);
}
int unlinkat(int at, const char *path, int flags) {
  REAL(int, "unlinkat", int, const char *, int)
  if ((below(path) || known(at)) && fails(1)) return -1;
  return real(at, path, flags);
}
#define STATAT(name, type) \
  int name(int at, const char *path, type *x, int flags) { \
    REAL(int, #name, int, const char *, type *, int) \
    if ((below(path) || (path && path[0] != '/' && known(at))) && fails(0)) \
      return -1; \
    return real(at, path, x, flags); \
  }
STATAT(fstatat, struct stat)
STATAT(fstatat64, struct stat64)
#define HANDLE(name, result, writes, list, args) \
  result name list { \
    REAL(result, #name, TYPES_##name) \
    if (known(handle) && fails(writes)) return -1; \
    return real args; \
  }
#define TYPES_read int, void *, size_t
HANDLE(read, ssize_t, 0, (int handle, void *b, size_t n), (handle, b, n))
#define TYPES_write int, const void *, size_t
HANDLE(write, ssize_t, 1, (int handle, const void *b, size_t n), (handle, b, n))
#define TYPES_pread int, void *, size_t, off_t
HANDLE(pread, ssize_t, 0, (int handle, void *b, size_t n, off_t o),
       (handle, b, n, o))
#define TYPES_pread64 int, void *, size_t, off64_t
HANDLE(pread64, ssize_t, 0, (int handle, void *b, size_t n, off64_t o),
       (handle, b, n, o))
#define TYPES_pwrite int, const void *, size_t, off_t
HANDLE(pwrite, ssize_t, 1, (int handle, const void *b, size_t n, off_t o),
       (handle, b, n, o))
#define TYPES_pwrite64 int, const void *, size_t, off64_t
HANDLE(pwrite64, ssize_t, 1, (int handle, const void *b, size_t n, off64_t o),
       (handle, b, n, o))
#define TYPES_writev int, const struct iovec *, int
HANDLE(writev, ssize_t, 1, (int handle, const struct iovec *v, int n),
       (handle, v, n))
#define TYPES_fsync int
HANDLE(fsync, int, 1, (int handle), (handle))
#define TYPES_fdatasync int
HANDLE(fdatasync, int, 1, (int handle), (handle))
#define TYPES_ftruncate int, off_t
HANDLE(ftruncate, int, 1, (int handle, off_t n), (handle, n))
#define TYPES_fstat int, struct stat *
HANDLE(fstat, int, 0, (int handle, struct stat *x), (handle, x))
#define TYPES_fstat64 int, struct stat64 *
HANDLE(fstat64, int, 0, (int handle, struct stat64 *x), (handle, x))
"""


def possible() -> bool:
  """Whether `preload` works here."""
  return sys.platform == "linux" and shutil.which("cc") is not None


def preload(
  scratch: pathlib.Path, folder: pathlib.Path, rate: float, seed: int = 0
) -> dict[str, str]:
  """The environment of a process whose storage calls fail now and then.

  Args:
    scratch: where the library and its log are put.
    folder: calls below it fail.
    rate: share of them.
    seed: chooses which.

  Returns:
    Variables to add to the environment. Behind the process, `counts` tells
    what happened.
  """
  library = scratch / "faults.so"
  if not library.exists():
    source = scratch / "faults.c"
    source.write_text(_SOURCE)
    subprocess.run(
      ["cc", "-O1", "-shared", "-fPIC", "-w", "-o", str(library), str(source),
       "-ldl"],
      check=True,
    )  # fmt: skip
  return {
    "LD_PRELOAD": str(library),
    "FAULTS_FOLDER": os.path.join(folder, ""),
    "FAULTS_RATE": str(rate),
    "FAULTS_SEED": str(seed),
    "FAULTS_LOG": str(scratch / "faults.log"),
  }


def counts(scratch: pathlib.Path) -> tuple[int, int]:
  """Calls and faults of all processes that have ended so far."""
  log = scratch / "faults.log"
  lines = log.read_text().splitlines() if log.exists() else []
  both = [[int(x) for x in line.split()] for line in lines]
  return sum(x[0] for x in both), sum(x[1] for x in both)


# ------------------------------------------------------- inside this process
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
      fails = self._choose(number)
      if fails:
        self.failed.append(name)
        kind = self._random.choice(self._kinds)
    if fails:
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
