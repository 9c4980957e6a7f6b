"""Arrays of .npy and .npz files, whose headers are not taken at their word."""

from __future__ import annotations

import io
import math
import zipfile
from typing import Any

import numpy as np

from mico_jax.modalities import DecodeError

_HEADER = 1 << 16  # bytes; longer headers of .npy files are refused


def read_npy(data: bytes, name: str) -> np.ndarray:
  """An array out of the bytes of a .npy file.

  The header's shape and type must need exactly the bytes that are there;
  nothing is allocated before.

  Raises:
    DecodeError: if they do not, or hold objects.
  """
  file = io.BytesIO(data)
  shape, dtype = _header(file, name)
  here = len(data) - file.tell()
  wanted = math.prod(shape) * dtype.itemsize
  if dtype.hasobject or wanted != here:
    raise DecodeError(
      f"{name}: the header promises {dtype} {_shape(shape)}, which is "
      f"{wanted} bytes; the file holds {here}."
    )
  file.seek(0)
  try:
    return np.load(file, allow_pickle=False)
  except Exception as error:
    raise DecodeError(f"{name}: {_text(error)}") from error


def _header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
  try:
    version = np.lib.format.read_magic(file)
    read = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
      raise ValueError(f"format version {version}")
    shape, _, dtype = read(file, max_header_size=_HEADER)
  except Exception as error:
    raise DecodeError(f"{name}: no readable .npy: {_text(error)}") from error
  return shape, dtype


def read_npz(data: bytes, path: str, name: str, limit: int) -> np.ndarray:
  """One array out of the bytes of a .npz file.

  Args:
    data: of the file.
    path: of the file, for messages.
    name: of the array.
    limit: most bytes of the array; more are refused before they are unpacked.

  Raises:
    DecodeError: if there is no such array, or it is broken or too large.
  """
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      names = [n.removesuffix(".npy") for n in archive.namelist()]
      if name not in names:
        raise DecodeError(
          f"{path}: has no array {name!r}; it has {', '.join(names[:20])}."
        )
      info = archive.infolist()[names.index(name)]
      if limit and info.file_size > limit:
        raise DecodeError(
          f"{path}: array {name!r} of {info.file_size} bytes exceeds "
          f"data.max_file_bytes={limit}."
        )
      with archive.open(info) as member:  # ends at the size that it promises
        array = member.read()
  except DecodeError:
    raise
  except Exception as error:
    raise DecodeError(f"{path}: not a readable .npz: {_text(error)}") from error
  return read_npy(array, f"{path}:{name}")


def _shape(shape: tuple[int, ...]) -> str:
  return str(shape) if len(shape) <= 8 else f"of {len(shape)} axes"


def _text(error: BaseException) -> str:
  return " ".join(str(error).split())[:200] or type(error).__name__
