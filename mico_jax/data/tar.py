"""Random access to the members of a tar file.

Names are normalised ("./a.jpg" and "/a.jpg" are "a.jpg"). Links are followed
inside the archive, and sparse members are filled with zeros. Reading a name
that occurs more than once is an error, since it is ambiguous.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import tarfile
from collections import Counter
from typing import Any

from mico_jax.data.remote import Storage, short
from mico_jax.modalities import DecodeError

_LINKS = 16  # links followed in a row


@dataclasses.dataclass(frozen=True)
class Member:
  """Position of a member in the archive.

  Attributes:
    offset: of its data in the file, in bytes.
    size: of its content, in bytes.
    sparse: (offset, size) of the pieces that are stored; None: all.
  """

  offset: int
  size: int
  sparse: tuple[tuple[int, int], ...] | None = None

  @property
  def stored(self) -> int:
    """Bytes that the archive stores."""
    if self.sparse is None:
      return self.size
    return sum(size for _, size in self.sparse)


def normal_name(name: str) -> str:
  """A member's name without "./", "//" and a leading "/"."""
  return posixpath.normpath(name).lstrip("/")


class TarIndex:
  """The members of a local tar file.

  Attributes:
    path: of the file.
    members: name -> position, in file order; of equal names the last.
    repeated: name -> number of members, for names that occur more than once.
    dangling: links without a target, and members that are no files (devices,
      pipes, unknown types).
    index: (name as stored, offset, size) of every member with data.
  """

  def __init__(self, path: str, storage: Storage | None = None):
    """Reads the headers.

    Args:
      path: local.
      storage: sets the limits, and retries reads.

    Raises:
      DecodeError: if it is not an uncompressed tar file, or is cut short.
      TransientError: for storage that stays unreachable.
    """
    self.path = path
    self._storage = Storage() if storage is None else storage
    self.members: dict[str, Member] = {}
    self.repeated: dict[str, int] = {}
    self.dangling: list[str] = []
    self.index: list[tuple[str, int, int]] = []
    self._storage.patiently(self._scan, path)

  def _scan(self) -> None:
    self.members, self.index, self.dangling, links = {}, [], [], {}
    counts: Counter[str] = Counter()
    self._file = open(self.path, "rb")  # noqa: SIM115 (kept open for reading)
    size = os.fstat(self._file.fileno()).st_size
    try:
      with tarfile.open(fileobj=self._file, mode="r:") as tar:
        for info in tar:
          name = normal_name(info.name)
          if info.issym() or info.islnk():
            folder = posixpath.dirname(info.name) if info.issym() else ""
            links[name] = normal_name(posixpath.join(folder, info.linkname))
            counts[name] += 1
          elif info.isfile():
            pieces: Any = info.sparse  # (offset, size), or None
            sparse = tuple((int(o), int(n)) for o, n in pieces or ())
            member = Member(info.offset_data, info.size, sparse or None)
            if member.offset + member.stored > size:
              raise DecodeError(
                f"{short(self.path)}: cut short in {short(info.name)!r}."
              )
            self.members[name] = member
            self.index.append((info.name, info.offset_data, info.size))
            counts[name] += 1
          elif not info.isdir():
            self.dangling.append(name)
        # tarfile takes a cut header for the end; a whole file ends with zeros.
        self._file.seek(tar.offset)
        if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
          raise DecodeError(f"{short(self.path)}: the tar file is cut short.")
        while rest := self._file.read(1 << 20):  # padding
          if rest.strip(b"\0"):
            raise DecodeError(
              f"{short(self.path)}: data follow the end of the archive "
              "(several archives joined?); pack their members into one."
            )
      # tarfile does not close the file, so that it can be read further.
    except (DecodeError, OSError):
      raise
    except Exception as error:  # tarfile raises many kinds for broken headers
      raise DecodeError(
        f"{short(self.path)}: not a readable tar file: "
        f"{' '.join(str(error).split())[:200]}"
      ) from error
    self.repeated = {name: n for name, n in counts.items() if n > 1}
    self._follow(links)

  def _follow(self, links: dict[str, str]) -> None:
    """Gives each link the position of its target."""
    files = dict(self.members)
    for name in links:
      target = name
      for _ in range(_LINKS):
        if target in files or target not in links:
          break
        target = links[target]
      if target in files:
        self.members[name] = files[target]
      else:
        self.dangling.append(name)

  def read(self, name: str) -> bytes:
    """The content of a member; safe from several threads.

    Raises:
      DecodeError: if there is no such member, more than one, or it is too
        large or cut short.
    """
    normal = name if name in self.members else normal_name(name)
    if normal in self.repeated:
      raise DecodeError(
        f"{short(self.path)}: member {short(name)!r} occurs "
        f"{self.repeated[normal]} times; nothing says which one is meant."
      )
    if normal not in self.members:
      raise DecodeError(f"{short(self.path)}: has no member {short(name)!r}.")
    member, limit = self.members[normal], self._storage.max_file_bytes
    if limit and member.size > limit:
      raise DecodeError(
        f"{short(self.path)}: member {short(name)!r} of {member.size} bytes "
        f"exceeds data.max_file_bytes={limit}."
      )
    data = self._storage.patiently(
      lambda: self._stored(member.offset, member.stored), self.path
    )
    if len(data) < member.stored:
      raise DecodeError(f"{short(self.path)}: cut short in {short(name)!r}.")
    return data if member.sparse is None else _filled(data, member)

  def _stored(self, offset: int, size: int) -> bytes:
    """Reads bytes of the file; opens it again after an error."""
    if self._file.closed:
      self._file = open(self.path, "rb")  # noqa: SIM115
    pieces = []
    try:
      while size > 0:  # one call reads at most 2 GiB
        piece = os.pread(self._file.fileno(), size, offset)
        if not piece:
          break
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    except OSError:
      self._file = open(self.path, "rb")  # noqa: SIM115 (a stale handle)
      raise
    return b"".join(pieces) if len(pieces) != 1 else pieces[0]

  def __del__(self) -> None:
    """Closes the file."""
    if hasattr(self, "_file"):
      self._file.close()


def _filled(data: bytes, member: Member) -> bytes:
  """The content of a sparse member: its stored pieces, and zeros."""
  out, start = bytearray(member.size), 0
  for offset, size in member.sparse or ():
    out[offset : offset + size] = data[start : start + size]
    start += size
  if len(out) != member.size:
    raise DecodeError("a sparse member's pieces lie outside of it.")
  return bytes(out)
