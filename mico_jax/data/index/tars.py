"""The members of a tar file as columns.

Rows are the members with data in the order of the file, then the links that
lead to one, in theirs. Columns: `offset` and `size` (of the data, as read),
`name_end` and `name` (names as written, one after another); `hash`, sorted, of
the normalised names, and `row` of each.
"""

from __future__ import annotations

import hashlib
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.index.repeats import hash_of
from mico_jax.data.storage import Storage, is_remote, short
from mico_jax.modalities import DecodeError

KIND = "tar.1"
DTYPES = {
  "offset": "<i8",
  "size": "<i8",
  "name_end": "<i8",
  "name": "u1",
  "hash": "<i8",
  "row": "<u4",
}
_LINKS = 16  # a chain of links that is longer leads nowhere
_NAMED = 1000  # names that are kept of what is no member, or repeats


def normal_name(name: str) -> str:
  """A member's name without "./", "//" and a leading "/"."""
  return posixpath.normpath(name).lstrip("/")


def name_at(columns: Columns, row: int) -> str:
  """The name of a member as it is written."""
  start = int(columns["name_end"][row - 1]) if row else 0
  data = columns["name"][start : int(columns["name_end"][row])].tobytes()
  return data.decode("utf-8", "surrogateescape")


def digest(columns: Columns) -> Any:
  """A SHA-256 over names and places of the members with data, to be added to.

  What a source that joined its shards before they had indexes of their own
  was known by.
  """
  whole = hashlib.sha256()
  add_to_digest(columns, whole)
  return whole


def add_to_digest(columns: Columns, whole: Any) -> None:
  """Adds the members of a shard to the digest of several."""
  offsets, sizes = columns["offset"], columns["size"]
  for row in range(columns.meta["files"]):
    whole.update(
      _place(name_at(columns, row), int(offsets[row]), int(sizes[row]))
    )


def _place(name: str, offset: int, size: int) -> bytes:
  return f"{name} {(offset, size)}".encode("utf-8", "backslashreplace")


def build(
  path: str, storage: Storage, **more: Any
) -> tuple[Writer, dict[str, Any]]:
  """Reads the headers of a tar file.

  Args:
    path: local or remote.
    storage: reads it, and waits for it.
    **more: types of further columns.

  Returns:
    The columns, and their meta: `files` (rows that are no links), `sha256`,
    `sparse` (row -> pieces), `repeated` (name -> how often), `repeats` (how
    many such names), `dangling` (names of links to nowhere, devices and pipes)
    and `dangles` (how many).

  Raises:
    DecodeError: if it is not an uncompressed tar file, or cut short.
    TransientError: for storage that stays away.
  """
  if is_remote(path):
    return _scan(path, storage, more)  # each read of it is waited for
  return storage.patiently(lambda: _scan(path, storage, more), path)


def _scan(
  path: str, storage: Storage, more: dict[str, Any]
) -> tuple[Writer, dict[str, Any]]:
  writer = Writer(**DTYPES, **more)
  return writer, _scanned(path, storage, writer)


def _scanned(path: str, storage: Storage, writer: Writer) -> dict[str, Any]:
  scan = _Scan(writer)
  with _opened(path, storage) as file:
    size = storage.stat(path).size
    try:
      with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in _members(tar):
          scan.add(info, path, size)
        # tarfile takes a cut header for the end; a whole file ends in zeros.
        _check_end(file, tar.offset, path)
    except (DecodeError, OSError):
      raise
    except Exception as error:  # tarfile raises many kinds for broken headers
      raise DecodeError(
        f"{short(path)}: not a readable tar file: "
        f"{' '.join(str(error).split())[:200]}"
      ) from error
  return scan.finish()


def _opened(path: str, storage: Storage) -> Any:
  return storage.scan(path) if is_remote(path) else open(path, "rb")


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
  while (info := tar.next()) is not None:
    yield info
    setattr(tar, "members", [])  # noqa: B010 (else it keeps them all)


def _check_end(file: Any, offset: int, path: str) -> None:
  file.seek(offset)
  if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
    raise DecodeError(f"{short(path)}: the tar file is cut short.")
  while rest := file.read(1 << 20):  # padding
    if rest.strip(b"\0"):
      raise DecodeError(
        f"{short(path)}: data follow the end of the archive (several archives "
        "joined?); pack their members into one."
      )


class _Scan:
  """What was read of a tar file so far."""

  def __init__(self, writer: Writer):
    self._writer = writer
    self._hashes: list[int] = []
    self._links: dict[str, tuple[str, str]] = {}  # name -> as written, target
    self._dangling: list[str] = []
    self._sparse: dict[str, list[tuple[int, int]]] = {}
    self._digest = hashlib.sha256()
    self._name_end = 0
    self._counts: Counter[str] = Counter()  # of links, and what they name

  def add(self, info: tarfile.TarInfo, path: str, size: int) -> None:
    """Takes a header; `path` and `size` are those of the file."""
    name = normal_name(info.name)
    if info.issym() or info.islnk():
      folder = posixpath.dirname(info.name) if info.issym() else ""
      target = normal_name(posixpath.join(folder, info.linkname))
      self._links[name] = (info.name, target)
      self._counts[name] += 1
    elif info.isfile():
      pieces: Any = getattr(info, "sparse", None)
      stored = info.size
      if pieces:
        row = str(len(self._hashes))
        self._sparse[row] = [(int(o), int(n)) for o, n in pieces]
        stored = sum(n for _, n in self._sparse[row])
      if info.offset_data + stored > size:
        raise DecodeError(f"{short(path)}: cut short in {short(info.name)!r}.")
      self._row(info.name, name, info.offset_data, info.size)
      self._digest.update(_place(info.name, info.offset_data, info.size))
    elif not info.isdir():
      self._dangling.append(name)

  def _row(self, written: str, name: str, offset: int, size: int) -> None:
    data = written.encode("utf-8", "surrogateescape")
    self._name_end += len(data)
    self._writer.add(
      offset=offset,
      size=size,
      name_end=self._name_end,
      name=np.frombuffer(data, np.uint8),
    )
    self._hashes.append(hash_of(name))

  def finish(self) -> dict[str, Any]:
    """Follows the links, sorts the names; gives the meta."""
    files = len(self._hashes)
    sha256 = self._digest.hexdigest()
    columns = self._writer.columns({"files": files})
    hashes = np.asarray(self._hashes, np.int64)
    repeated = self._repeated(columns, hashes)
    by_name = _Lookup(columns, hashes)
    for name, (written, target) in self._links.items():
      for _ in range(_LINKS):
        if target not in self._links or by_name.last(target) is not None:
          break
        target = self._links[target][1]
      row = by_name.last(target)
      if row is None:
        self._dangling.append(name)
        continue
      if str(row) in self._sparse:
        self._sparse[str(len(self._hashes))] = self._sparse[str(row)]
      place, size = int(columns["offset"][row]), int(columns["size"][row])
      self._row(written, name, place, size)
    hashes = np.asarray(self._hashes, np.int64)
    order = np.argsort(hashes, kind="stable")
    self._writer.add(hash=hashes[order], row=order)
    shown = sorted(repeated.items(), key=lambda x: x[1], reverse=True)[:_NAMED]
    return {
      "files": files,
      "sha256": sha256,
      "sparse": self._sparse,
      "repeats": len(repeated),
      "extra": sum(n - 1 for n in repeated.values()),
      "repeated": dict(shown),
      "dangling": self._dangling[:_NAMED],
      "dangles": len(self._dangling),
    }

  def _repeated(self, columns: Columns, hashes: np.ndarray) -> dict[str, int]:
    """Names that occur more than once, as members or links."""
    counts = Counter(self._counts)
    values, first, times = np.unique(
      hashes, return_index=True, return_counts=True
    )
    for place, number in zip(first[times > 1], times[times > 1], strict=True):
      counts[normal_name(name_at(columns, int(place)))] += int(number)
    linked = {hash_of(name): name for name in self._links}
    for value in values[times == 1] if linked else ():
      if int(value) in linked:
        counts[linked[int(value)]] += 1
    return {name: n for name, n in counts.items() if n > 1}


class _Lookup:
  """Rows by name among members whose names are not sorted in the file yet."""

  def __init__(self, columns: Columns, hashes: np.ndarray):
    self._columns = columns
    self._order = np.argsort(hashes, kind="stable")
    self._sorted = hashes[self._order]

  def last(self, name: str) -> int | None:
    """The last row of a name."""
    value = hash_of(name)
    first, last = np.searchsorted(self._sorted, (value, value + 1))
    for row in reversed(self._order[first:last].tolist()):
      if normal_name(name_at(self._columns, row)) == name:
        return row
    return None


def find(columns: Columns, name: str) -> list[int]:
  """The rows of a normalised name."""
  value = hash_of(name)
  first = int(np.searchsorted(columns["hash"], value))
  last = int(np.searchsorted(columns["hash"], value, side="right"))
  rows = (int(r) for r in columns["row"][first:last])
  return [r for r in rows if normal_name(name_at(columns, r)) == name]
