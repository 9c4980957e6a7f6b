"""Writing the files that `torch.load` reads, tensor by tensor, without torch.

A state dict as `torch.save` lays it out: an uncompressed zip of one pickle, in
which every tensor points to a storage, and one member of plain bytes for each
storage. One tensor at a time is in memory: it is read, hashed, written and
dropped. bfloat16 is written by its bits.

Source: https://pytorch.org/docs/stable/notes/serialization.html (the layout of
the archive), https://docs.python.org/3/library/pickletools.html (opcodes).
"""

from __future__ import annotations

import hashlib
import math
import pathlib
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from mico_jax.interop.files.dtypes import STORAGES
from mico_jax.interop.files.tensors import Item, Written, contents, record

ROOT = "archive"  # folder of the members
ALIGNMENT = 64  # bytes, of the storages in the file, as of `torch.save`
_DATE = (1980, 1, 1, 0, 0, 0)  # fixed: equal tensors give equal bytes
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


# --------------------------------------------------------------------- pickle
def _text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
  if value < 2**31:
    return b"J" + struct.pack("<i", value)
  data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data


def _numbers(values: Sequence[int]) -> bytes:
  return b"(" + b"".join(map(_number, values)) + b"t"


def _tensor(one: Item, storage: str) -> bytes:
  """The pickle of a C-ordered tensor with a storage of its own."""
  strides, step = [], 1
  for size in reversed(one.shape):
    strides.append(step)
    step *= size
  where = (
    b"("
    + _text("storage")
    + f"ctorch\n{STORAGES[one.dtype]}Storage\n".encode()
    + _text(storage)
    + _text("cpu")
    + _number(math.prod(one.shape))
    + b"tQ"
  )
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + where
    + _number(0)
    + _numbers(one.shape)
    + _numbers(strides[::-1])
    + b"\x89"  # no gradient
    + _ORDERED_DICT
    + b"tR"
  )


def _pickle(items: Sequence[Item], storages: Mapping[str, str]) -> bytes:
  pairs = (_text(x.name) + _tensor(x, storages[x.name]) for x in items)
  return b"\x80\x02" + _ORDERED_DICT + b"(" + b"".join(pairs) + b"u."


# -------------------------------------------------------------------- archive
class _Hashed:
  """A stream that is hashed while it is written."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.digest = hashlib.sha256()
    self.at = 0

  def write(self, data: Any) -> int:
    """Writes and hashes some bytes."""
    self.digest.update(data)
    self.at += memoryview(data).nbytes
    return self._file.write(data)

  def flush(self) -> None:
    """Flushes the file."""
    self._file.flush()


def _member(stream: _Hashed, name: str, size: int) -> zipfile.ZipInfo:
  """A member whose bytes begin at a multiple of `ALIGNMENT`."""
  info = zipfile.ZipInfo(f"{ROOT}/{name}", _DATE)
  info.file_size = size
  begin = stream.at + 30 + len(info.filename) + 4
  padding = -begin % ALIGNMENT
  info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
  return info


def write(
  path: pathlib.Path,
  items: Iterable[Item],
  *,
  ties: Mapping[str, str] | None = None,
) -> Written:
  """Writes a state dict.

  Args:
    path: of the file.
    items: in the order of the state dict.
    ties: name -> another name of equal content, whose storage it shares.

  Returns:
    The file and its tensors, with hashes.

  Raises:
    ValueError: for two tensors of one name, or a dtype without a storage.
  """
  items, ties = list(items), dict(ties or {})
  by_name = {one.name: one for one in items}
  if len(by_name) < len(items):
    raise ValueError("two tensors have the same name.")
  for one in items:
    if one.dtype not in STORAGES:
      raise ValueError(f"{one.name}: PyTorch files have no {one.dtype}.")
  owners = [one for one in items if one.name not in ties]
  storages = {one.name: str(i) for i, one in enumerate(owners)}
  storages |= {name: storages[other] for name, other in ties.items()}
  records: dict[str, dict[str, Any]] = {}
  with open(path, "wb") as file:
    stream = _Hashed(file)
    # Without `seek`, the archive is written strictly forwards.
    target: Any = stream  # has the methods that a forward ZipFile uses
    with zipfile.ZipFile(target, "w") as archive:

      def put(name: str, data: Any) -> None:
        size = memoryview(data).nbytes
        with archive.open(_member(stream, name, size), "w") as member:
          member.write(data)

      put("data.pkl", _pickle(items, storages))
      put("byteorder", b"little")
      for one, data, digest in contents(owners):
        put(f"data/{storages[one.name]}", data.data)
        records[one.name] = record(one, sha256=digest)
      put("version", b"3\n")
  for name, other in ties.items():
    records[name] = {**records[other], "name": name}
  about = {
    "name": path.name,
    "bytes": path.stat().st_size,
    "sha256": stream.digest.hexdigest(),
    "tensors": len(items),
  }
  return Written((about,), tuple(records[one.name] for one in items))
