"""Members of a tar file, for reading at random.

Names are normalised ("./a.jpg" and "/a.jpg" are "a.jpg"). Links are followed
inside the archive, sparse members are filled with zeros. A name that occurs
more than once means no member: reading it is an error, since nothing says
which one is meant. Where the members lie is read once and kept
(`mico_jax.data.index`).
"""

from __future__ import annotations

from mico_jax.data.index import places, tars
from mico_jax.data.index.columns import Columns
from mico_jax.data.index.tars import normal_name
from mico_jax.data.storage import Span, Storage, short
from mico_jax.modalities import DecodeError

__all__ = ["TarIndex", "normal_name", "read_member", "span_of"]


class TarIndex:
  """The members of a tar file, local or remote.

  Attributes:
    path: of the file.
    columns: its index (`mico_jax.data.index.tars`).
    dangling: links that lead to no member, and members that are no files
      (devices, pipes, unknown types); the first thousand.
  """

  def __init__(self, path: str, storage: Storage | None = None):
    """Takes the index of a tar file, or makes it.

    Args:
      path: local or remote.
      storage: reads the file, and waits for storage that is away.

    Raises:
      DecodeError: if it is not an uncompressed tar file, or cut short.
      TransientError: for storage that stays away.
    """
    self.path = path
    self._storage = storage = Storage() if storage is None else storage
    self.columns = places.load(
      path, tars.KIND, storage, lambda: tars.build(path, storage)
    )
    self.dangling: list[str] = self.columns.meta["dangling"]

  def row(self, name: str) -> int:
    """The row of a member.

    Raises:
      DecodeError: if there is no such member, or more than one.
    """
    rows = tars.find(self.columns, normal_name(name))
    if len(rows) > 1:
      raise DecodeError(
        f"{short(self.path)}: member {short(name)!r} occurs {len(rows)} times; "
        "nothing says which one is meant."
      )
    if not rows:
      raise DecodeError(f"{short(self.path)}: has no member {short(name)!r}.")
    return rows[0]

  def read(self, name: str) -> bytes:
    """The content of a member; safe from several threads.

    Raises:
      DecodeError: if there is no such member, more than one, or it is too
        large or cut short.
      TransientError: for storage that stays away.
    """
    row = self.row(name)
    return read_member(self._storage, self.path, self.columns, row)

  def span(self, name: str) -> Span:
    """Where a member lies in the file; raises as `row`."""
    return span_of(self.path, self.columns, self.row(name))


def _pieces(columns: Columns, row: int) -> list[tuple[int, int]] | None:
  """(offset, size) of what a sparse member stores; None: all of it."""
  pieces = columns.meta["sparse"].get(str(row))
  return None if pieces is None else [(o, n) for o, n in pieces]


def span_of(path: str, columns: Columns, row: int) -> Span:
  """The bytes that an archive holds of a member."""
  pieces, size = _pieces(columns, row), int(columns["size"][row])
  stored = size if pieces is None else sum(n for _, n in pieces)
  return Span(path, int(columns["offset"][row]), stored)


def read_member(
  storage: Storage, path: str, columns: Columns, row: int
) -> bytes:
  """The content of a member.

  Args:
    storage: reads the file.
    path: of the archive.
    columns: its members.
    row: of the member.

  Raises:
    DecodeError: if it is too large or cut short.
    TransientError: for storage that stays away.
  """
  limit, size = storage.max_file_bytes, int(columns["size"][row])
  if limit and size > limit:
    raise DecodeError(
      f"{short(path)}: member {short(tars.name_at(columns, row))!r} of {size} "
      f"bytes exceeds data.max_file_bytes={limit}."
    )
  span = span_of(path, columns, row)
  data = storage.read_range(path, span.offset, span.size)
  if len(data) < span.size:
    name = short(tars.name_at(columns, row))
    raise DecodeError(f"{short(path)}: cut short in {name!r}.")
  pieces = _pieces(columns, row)
  return data if pieces is None else _filled(data, pieces, size)


def _filled(data: bytes, pieces: list[tuple[int, int]], size: int) -> bytes:
  """A sparse member with the zeros that are not stored."""
  out, start = bytearray(size), 0
  for offset, length in pieces:
    out[offset : offset + length] = data[start : start + length]
    start += length
  if len(out) != size:
    raise DecodeError("a sparse member's pieces lie outside of it.")
  return bytes(out)
