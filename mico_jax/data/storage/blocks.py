"""The block cache of a host: remote bytes on local disk, never above a limit.

A remote file is a sparse local file (`cached_file`), of which only the blocks
that were read are present. All that changes the cache happens under one lock
between the processes of the host; reading takes none: a reader looks at the
state of its blocks before and after, and what went in between it reads again.

A block counts once its bytes are written. A process that is killed while it
changes something leaves the mark `dirty`, and whoever comes next counts anew
and gives back what no map knows of; so does the first one after the machine
came up, since the order of writes on disk is then unknown.

What was filled is listed in a log, oldest first. Room is made from its start;
what was read since goes to its end instead, once for each of up to three reads
(CLOCK, near to least recently used).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import pathlib
import platform
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator

from mico_jax.data.storage.cached_file import (
  BLOCK,
  PRESENT,
  CachedFile,
  map_of,
  runs,
)
from mico_jax.data.storage.kept_part import KeptPart
from mico_jax.data.storage.punch import can_punch, punch

_OPEN = 256  # files that a process holds open
_VERSION = b"mico_jax.blocks.1"
_ENTRY = struct.Struct("<16sQQ")  # key, first block, number of blocks
_SEGMENT = 512  # entries of a file of the log
_PAGE = 4096


class BlockCache:
  """Blocks of remote files; safe from threads and processes of one host.

  Attributes:
    part: what of all that is read once an epoch is to be kept.
  """

  def __init__(self, folder: pathlib.Path, limit: int):
    """Opens or makes the cache.

    Args:
      folder: of all hosts' caches; this host's is a folder in it.
      limit: bytes on disk.

    Raises:
      OSError: if the folder cannot be written, or its file system cannot give
        back parts of a file.
    """
    self._folder = folder / (platform.node() or "host").replace("/", "_")
    self._folder.mkdir(parents=True, exist_ok=True)
    if not can_punch(self._folder):
      raise OSError(f"{self._folder}: the file system makes no holes")
    self._limit = limit
    self._within = threading.Lock()  # flock knows processes, not threads
    self._files: OrderedDict[str, CachedFile] = OrderedDict()
    self._opening = threading.Lock()
    self._log = self._segment = -1  # where the log ends, and its number
    self._start = self._oldest = -1  # where it starts, and its number
    self.part = KeptPart(limit)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    self._lock = os.open(self._folder / "lock", flags, 0o600)
    with self._changing():
      pass

  @property
  def folder(self) -> pathlib.Path:
    """Of this host's files."""
    return self._folder

  def __del__(self) -> None:
    """Closes the lock and the log."""
    for name in ("_lock", "_log", "_start"):
      handle = getattr(self, name, -1)
      if handle >= 0:
        os.close(handle)

  # ------------------------------------------------------------------ reading
  def file(self, key: str, size: int) -> CachedFile:
    """The open file of a key, made if there is none."""
    with self._opening:
      file = self._files.get(key)
      if file is not None:
        self._files.move_to_end(key)
        return file
    with self._changing():
      known = map_of(self._folder, key).exists()
      if not known:
        room = _map_bytes(size)
        if not self._make_room(room):
          self._drop_unused()
        if not self._make_room(room):
          raise OSError("data.cache_gb has no room for one more file")
        self._maps += room
      file = CachedFile(self._folder, key, size)
    with self._opening:
      self._files[key] = file
      while len(self._files) > _OPEN:
        self._files.popitem(last=False)
    return file

  def read(self, key: str, size: int, offset: int, end: int) -> bytes | None:
    """Bytes of a file; None if any block of them is absent.

    Args:
      key: of the file.
      size: of the file, in bytes.
      offset: of the first byte.
      end: one past the last, at most `size`.
    """
    file = self.file(key, size)
    first, last = offset // BLOCK, -(-end // BLOCK)
    before = file.states(first, last)
    if not all(s & PRESENT for s in before):
      return None
    data = os.pread(file.handle, end - offset, offset)
    if file.states(first, last) != before or len(data) != end - offset:
      return None
    file.touch(first, last)
    return data

  def states(self, key: str, size: int, offset: int, end: int) -> bytes:
    """What changes when a block of the range comes or goes."""
    return self.file(key, size).states(offset // BLOCK, -(-end // BLOCK))

  def used(self, key: str, size: int, offset: int, end: int) -> None:
    """Notes that a range was read through its file."""
    self.file(key, size).touch(offset // BLOCK, -(-end // BLOCK))

  def missing(
    self, key: str, size: int, offset: int, end: int
  ) -> tuple[int, int] | None:
    """The span, in bytes, of the absent blocks of a range; None: all there.

    Blocks between absent ones are in it: one request costs less than two.
    """
    first = offset // BLOCK
    absent = runs(self.states(key, size, offset, end), 0)
    if not absent:
      return None
    start, stop = (first + absent[0][0]) * BLOCK, (first + absent[-1][1])
    return start, min(stop * BLOCK, size)

  # ----------------------------------------------------------------- changing
  def put(self, key: str, size: int, start: int, data: bytes) -> bool:
    """Keeps bytes; whether there was room.

    Args:
      key: of the file.
      size: of the file, in bytes.
      start: of the data, at the start of a block.
      data: up to the end of a block or of the file.

    Raises:
      OSError: for a disk that is full or away.
    """
    file = self.file(key, size)
    first = start // BLOCK
    last = first + -(-len(data) // BLOCK)
    with self._changing():
      absent = runs(file.states(first, last), 0)
      need = sum(b - a for a, b in absent) * BLOCK
      if not self._make_room(need):
        return False
      view = memoryview(data)
      for a, b in absent:
        piece = view[a * BLOCK : b * BLOCK]
        _write(file.handle, piece, start + a * BLOCK)
        file.fresh(first + a, first + b)
        file.set_present(first + a, first + b)
        self._append(bytes.fromhex(key), first + a, b - a)
        self._used += (b - a) * BLOCK
    return True

  def _total(self) -> int:
    log = (self._tail - self._head + 2 * _SEGMENT) * _ENTRY.size
    return self._used + self._maps + log + 4 * _PAGE

  def _make_room(self, need: int) -> bool:
    """Lets the oldest blocks go until `need` bytes fit; whether they do."""
    laps = 4 * (self._tail - self._head)  # more than there are chances
    while self._total() + need > self._limit and self._head < self._tail:
      key, first, count = self._pop()
      file = self._files.get(key.hex())
      if file is None:
        if not map_of(self._folder, key.hex()).exists():
          continue
        size = (self._folder / f"{key.hex()}.data").stat().st_size
        file = CachedFile(self._folder, key.hex(), size)
      if file.untouch(first, first + count) and laps > 0:
        self._append(key, first, count)
      else:
        file.set_absent(first, first + count)
        punch(file.handle, first * BLOCK, count * BLOCK)
        self._used -= count * BLOCK
      laps -= 1
    return self._total() + need <= self._limit

  def _drop_unused(self) -> None:
    """Removes files of which nothing is present and which nobody has open."""
    for path in self._folder.glob("*.map"):
      handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        data = path.with_suffix(".data")
        blocks = os.fstat(handle).st_size // 2
        if not any(s & PRESENT for s in os.pread(handle, blocks, 0)):
          data.unlink(missing_ok=True)
          path.unlink()
          self._maps -= _map_bytes(blocks * BLOCK)
      except BlockingIOError:
        continue
      finally:
        os.close(handle)

  # ------------------------------------------------- counts, log and their lock
  @contextlib.contextmanager
  def _changing(self) -> Iterator[None]:
    """Within, this thread alone of all processes changes the cache."""
    with self._within:
      fcntl.flock(self._lock, fcntl.LOCK_EX)
      try:
        if not self._load():
          self._recover()
        os.pwrite(self._lock, b"\1", _DIRTY)
        yield
        self._save()
      finally:
        # An error leaves the mark: whoever comes next counts anew.
        fcntl.flock(self._lock, fcntl.LOCK_UN)

  def _load(self) -> bool:
    """Reads the counts; whether they can be relied on."""
    data = os.pread(self._lock, _STATE.size, 0)
    if len(data) < _STATE.size:
      return False
    version, boot, counts = data[:32], data[32:80], data[80:]
    *numbers, dirty = struct.unpack("<4QQ", counts)
    self._used, self._maps, self._head, self._tail = numbers
    good = version.rstrip(b"\0") == _VERSION and boot.rstrip(b"\0") == _boot()
    return good and not dirty

  def _save(self) -> None:
    counts = (self._used, self._maps, self._head, self._tail, 0)
    os.pwrite(self._lock, _STATE.pack(_VERSION, _boot(), *counts), 0)

  def _recover(self) -> None:
    """Counts anew what the maps say is there; all else becomes a hole."""
    data = os.pread(self._lock, _STATE.size, 0)
    fresh = data[32:80].rstrip(b"\0") != _boot() or not data.startswith(
      _VERSION
    )
    for path in self._folder.glob("log-*"):
      path.unlink()
    self._used = self._maps = 0
    # No number that another process may have open as the end of the log.
    self._head = self._tail = time.time_ns() // _SEGMENT * _SEGMENT
    for path in self._folder.glob("*.data"):
      if fresh or not path.with_suffix(".map").exists():
        path.with_suffix(".map").unlink(missing_ok=True)
        path.unlink()
        continue
      file = CachedFile(self._folder, path.stem, path.stat().st_size)
      self._maps += _map_bytes(file.size)
      states = file.states(0, file.blocks)
      for first, last in runs(states, 0):
        punch(file.handle, first * BLOCK, (last - first) * BLOCK)
      for first, last in runs(states, PRESENT):
        self._append(bytes.fromhex(path.stem), first, last - first)
        self._used += (last - first) * BLOCK

  def _append(self, key: bytes, first: int, count: int) -> None:
    number, place = divmod(self._tail, _SEGMENT)
    if number != self._segment:
      if self._log >= 0:
        os.close(self._log)
        self._log = -1
      path = self._folder / f"log-{number}"
      flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
      self._log = os.open(path, flags, 0o600)
      self._segment = number
    entry = _ENTRY.pack(key, first, count)
    _write(self._log, memoryview(entry), place * _ENTRY.size)
    self._tail += 1

  def _pop(self) -> tuple[bytes, int, int]:
    number, place = divmod(self._head, _SEGMENT)
    path = self._folder / f"log-{number}"
    if number != self._oldest:
      self._close_oldest()
      self._start = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
      self._oldest = number
    data = os.pread(self._start, _ENTRY.size, place * _ENTRY.size)
    self._head += 1
    if place == _SEGMENT - 1:
      self._close_oldest()
      path.unlink()
    return _ENTRY.unpack(data)

  def _close_oldest(self) -> None:
    if self._start >= 0:
      os.close(self._start)
    self._start = self._oldest = -1


_STATE = struct.Struct("<32s48s4QQ")
_DIRTY = _STATE.size - 8


@functools.cache
def _boot() -> bytes:
  """What differs after each start of the machine."""
  try:
    path = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return path.read_bytes().strip()[:48]
  except OSError:
    return b"unknown"


def _map_bytes(size: int) -> int:
  """Disk that a file takes beside its blocks: its map, its list of extents."""
  return max(-(-2 * -(-size // BLOCK) // _PAGE), 1) * _PAGE + 2 * _PAGE


def _write(handle: int, data: memoryview, place: int) -> None:
  while len(data):
    done = os.pwrite(handle, data, place)
    data, place = data[done:], place + done
