"""Where the chunks of an ArrayRecord file lie, told by its last bytes.

The library tells no offsets, and without them a remote file would have to be
copied whole. An ArrayRecord file is a Riegeli file: blocks of 64 KiB, each with
a header of 24 bytes that is no part of the chunks; the last block holds a chunk
with the offset of the footer, a chunk whose first record describes the file and
whose others are the offsets of the chunks. Records themselves are left to the
library, which checks them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from mico_jax.modalities import DecodeError

BLOCK = 1 << 16
_BLOCK_HEADER = 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")
_MAGIC = 0x71930E704FDAE05E
_SIMPLE = ord("r")
_MOST = 1 << 31  # bytes of a footer
_CODECS = {98: "brotli", 115: "snappy", 122: "zstd"}  # by the code of a letter


class Footer(NamedTuple):
  """What the last bytes of a file say.

  Attributes:
    records: number of records.
    group: records of each chunk but the last.
    offsets: of the chunks, int64, and of the footer.
    end: of the footer; what follows up to the last block is padding.
  """

  records: int
  group: int
  offsets: np.ndarray
  end: int


def read_footer(size: int, read: Callable[[int, int], bytes]) -> Footer:
  """The footer of a file.

  Args:
    size: of the file, in bytes.
    read: gives the bytes from an offset on: (offset, number of bytes).

  Raises:
    DecodeError: for a file that is none, or cut short.
  """
  try:
    return _footer(size, read)
  except DecodeError:
    raise
  except (ValueError, IndexError, KeyError, struct.error, OSError) as error:
    text = " ".join(str(error).split())[:120]
    raise DecodeError(f"the footer is damaged: {text}.") from error


def _footer(size: int, read: Callable[[int, int], bytes]) -> Footer:
  if size < BLOCK or size % BLOCK:
    raise DecodeError(f"{size} bytes are no whole blocks of {BLOCK}.")
  records, _ = _chunk(read, size - BLOCK, size)
  fields = _fields(next(records))
  if fields.get(2) != _MAGIC or not 0 < fields.get(1, 0) < size - BLOCK:
    raise DecodeError("its last block is not that of an ArrayRecord file.")
  start = int(fields[1])
  records, end = _chunk(read, start, size - BLOCK)
  about = _fields(_message(next(records), 1))
  count = int(about.get(2, 0))
  offsets = np.empty(count + 1, np.int64)
  group = 0
  for i in range(count):
    entry = _fields(next(records))
    offsets[i] = entry[1]
    group = group or int(entry.get(3, 0))
  offsets[count] = start
  if count and (group < 1 or (np.diff(offsets) <= 0).any() or offsets[0] < 0):
    raise DecodeError("the footer lists no rising offsets.")
  total = int(about.get(3, 0))
  if not max(count - 1, 0) * group <= total <= count * group:
    raise DecodeError(f"{count} chunks of {group} do not hold {total} records.")
  return Footer(total, group, offsets, end)


def _logical(
  read: Callable[[int, int], bytes], offset: int, size: int, end: int
) -> tuple[bytes, int]:
  """`size` bytes without the headers of blocks, and the offset behind them."""
  first = offset
  if offset % BLOCK == 0:
    offset += _BLOCK_HEADER
  # As many blocks begin within as the bytes and their headers reach.
  whole = BLOCK - _BLOCK_HEADER
  rest = max(size - (BLOCK - offset % BLOCK), 0)
  stop = offset + size + -(-rest // whole) * _BLOCK_HEADER
  if stop > end:
    raise DecodeError("a chunk of the footer is cut short.")
  data = read(first, stop - first)
  if len(data) != stop - first:
    raise DecodeError("a chunk of the footer is cut short.")
  pieces, place = [], offset - first
  while place < len(data):
    until = min(len(data), place + BLOCK - (first + place) % BLOCK)
    pieces.append(data[place:until])
    place = until + _BLOCK_HEADER
  return b"".join(pieces), stop


def _chunk(
  read: Callable[[int, int], bytes], offset: int, end: int
) -> tuple[Iterator[bytes], int]:
  """The records of a simple chunk, and the offset behind it."""
  header, place = _logical(read, offset, _CHUNK_HEADER.size, end)
  _, size, _, kind, decoded = _CHUNK_HEADER.unpack(header)
  if kind & 0xFF != _SIMPLE or max(size, decoded) > _MOST:
    raise DecodeError("the footer is no simple chunk.")
  data, stop = _logical(read, place, size, end)
  return _records(data, kind >> 8), stop


def _records(data: bytes, number: int) -> Iterator[bytes]:
  codec = data[0]
  length, place = _varint(data, 1)
  sizes = _unpacked(data[place : place + length], codec)
  values = _unpacked(data[place + length :], codec)
  at = start = 0
  for _ in range(number):
    count, at = _varint(sizes, at)
    if start + count > len(values):
      raise DecodeError("a record of the footer is cut short.")
    yield values[start : start + count]
    start += count


def _unpacked(data: bytes, codec: int) -> bytes:
  if codec == 0:
    return data
  import pyarrow

  if codec not in _CODECS:
    raise DecodeError(f"the footer is packed in an unknown way ({codec}).")
  size, place = _varint(data, 0)
  if size > _MOST:
    raise DecodeError(f"the footer promises {size} bytes.")
  codec_of = pyarrow.Codec(_CODECS[codec])
  return codec_of.decompress(data[place:], size).to_pybytes()


def _varint(data: bytes, place: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[place]
    value |= (byte & 0x7F) << shift
    place += 1
    if byte < 0x80:
      return value, place
    shift += 7
    if shift > 63:
      raise DecodeError("a number of the footer is too long.")


def _fields(message: bytes) -> dict[int, int]:
  """The numbers of a protocol buffer, by field."""
  return {k: v for k, v in _values(message) if isinstance(v, int)}


def _message(message: bytes, field: int) -> bytes:
  """A message within a message."""
  for key, value in _values(message):
    if key == field and isinstance(value, bytes):
      return value
  raise DecodeError("the footer lacks a message.")


def _values(message: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(field, number or bytes) of a protocol buffer."""
  place = 0
  while place < len(message):
    tag, place = _varint(message, place)
    kind, value = tag & 7, 0
    if kind == 0:
      value, place = _varint(message, place)
      yield tag >> 3, value
    elif kind == 1:
      (value,) = struct.unpack_from("<Q", message, place)
      place += 8
      yield tag >> 3, value
    elif kind == 2:
      size, place = _varint(message, place)
      yield tag >> 3, message[place : place + size]
      place += size
    else:
      raise DecodeError(f"the footer has a field of kind {kind}.")
