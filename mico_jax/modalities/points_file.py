"""Reading of point clouds: arrays, .npy, .npz, PLY and LAS.

- Arrays are [N, 3], or [N, 6] with colours: 0..255 in integers, 0..1 in floats.
- .npz: an array `points` [N, 3], and if there are colours `colors` [N, 3].
- PLY, by the package `plyfile` (extra `pointcloud`): the element `vertex` with
  x, y, z, and if there are all of them red, green, blue; its faces are not
  read.
- LAS and LAZ, by the package `laspy` (extra `pointcloud`): coordinates with
  scale and offset applied; colours of 16 bits, which are none if all are 0.
"""

from __future__ import annotations

import dataclasses
import io
import re
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities.arrays import is_npy, read_npy
from mico_jax.modalities.base import DecodeError

MAX_BYTES = 2**31  # of an array in a .npz, unpacked
_PACKED = 64  # bytes of points in a byte of a LAZ file, at most
_CHANNELS = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True)
class Cloud:
  """Points as a file or array holds them.

  Attributes:
    xyz: coordinates, numbers.
    colour: red, green, blue in 0..1; None: there are none.
  """

  xyz: Shaped[np.ndarray, "N 3"]
  colour: Float[np.ndarray, "N 3"] | None = None


def read_points(raw: Any) -> Cloud:
  """A cloud out of the content of a file, or an array.

  Raises:
    DecodeError: for anything else, empty clouds, and unreadable files.
  """
  if isinstance(raw, np.ndarray):
    return _of_array(raw)
  if not isinstance(raw, bytes):
    raise DecodeError(
      f"expected the file of a point cloud or an array [N, 3], got "
      f"{type(raw).__name__}."
    )
  if not raw:
    raise DecodeError("the file is empty (0 bytes).")
  if is_npy(raw):
    return _of_array(read_npy(raw))
  for start, read in ((b"PK", _npz), (b"ply", _ply), (b"LASF", _las)):
    if raw.startswith(start):
      return read(raw)
  raise DecodeError("not a point cloud of a known kind (.npy .npz .ply .las).")


def _of_array(
  array: Shaped[np.ndarray, "..."],
  colour: Shaped[np.ndarray, "..."] | None = None,
) -> Cloud:
  """See above."""
  shape = list(array.shape)
  if array.dtype.kind not in "iuf":
    raise DecodeError(f"points of {array.dtype}; expected numbers.")
  if array.ndim != 2 or array.shape[1] not in (3, 6):
    raise DecodeError(
      f"points of shape {shape}; expected [N, 3], or [N, 6] with colours."
    )
  if not len(array):
    raise DecodeError("the point cloud is empty.")
  if array.shape[1] == 6 and colour is not None:
    raise DecodeError(f"points of shape {shape} and colours beside them.")
  if array.shape[1] == 6:
    colour = array[:, 3:]
  if colour is not None and colour.shape != (len(array), 3):
    raise DecodeError(f"colours of shape {list(colour.shape)} for {shape}.")
  shares = None if colour is None else _shares(colour)
  return Cloud(array[:, :3], shares)


def _shares(colour: Shaped[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
  """Colours in 0..1."""
  full = {"i": 255, "u": 255, "f": 1}.get(colour.dtype.kind, 0)
  if not full or not (colour.min() >= 0 and colour.max() <= full):
    what = f"{colour.min():.4g} to {colour.max():.4g}" if full else "no numbers"
    raise DecodeError(
      f"colours of {colour.dtype}, {what}; expected 0 to 255 in integers or 0 "
      "to 1 in floats (columns 4 to 6 of other kinds, such as normals, must be "
      "cut off)."
    )
  return colour.astype(np.float64) / full


def _npz(data: bytes) -> Cloud:
  """See above."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      sizes = {i.filename: i.file_size for i in archive.infolist()}
    if max(sizes.values(), default=0) > MAX_BYTES:
      raise DecodeError(f".npz with an array of over {MAX_BYTES} bytes.")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
      names = ", ".join(arrays.files) or "none"
      found = [arrays[k] for k in ("points", "colors") if k in arrays.files]
      missing = "points" not in arrays.files
  except (DecodeError, MemoryError):
    raise
  except Exception as error:  # zipfile, zlib and NumPy raise many kinds
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a readable .npz of numbers: {text}") from error
  if missing:
    raise DecodeError(
      f".npz without an array 'points'; it has {names}. Name one in a manifest "
      "by 'file.npz:name' or 'file.npz:name[7]'."
    )
  return _of_array(*found)


def _ply(data: bytes) -> Cloud:
  """See above."""
  import plyfile

  head = data[: data.find(b"end_header")]
  counts = re.findall(rb"^element +\w+ +(\d{1,20})", head, re.M)
  if (told := sum(map(int, counts))) > len(data):  # before there is memory
    raise DecodeError(f"a PLY of {len(data)} bytes that promises {told} rows.")
  try:
    rows = plyfile.PlyData.read(io.BytesIO(data))["vertex"].data
    names = rows.dtype.names or ()
    xyz = np.stack([rows[name] for name in "xyz"], axis=1)
    colour = None
    if set(_CHANNELS) <= {*names}:
      colour = np.stack([rows[name] for name in _CHANNELS], axis=1)
  except MemoryError:
    raise
  except Exception as error:  # a broken header can raise many kinds
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a readable PLY cloud: {text}") from error
  return _of_array(xyz, colour)


def _las(data: bytes) -> Cloud:
  """See above."""
  import laspy

  try:
    with laspy.open(io.BytesIO(data)) as file:
      promised = file.header.point_count * file.header.point_format.size
      if promised > _PACKED * len(data):  # before there is memory
        raise ValueError(f"it promises {promised} bytes of points")
      read = file.read()
    xyz = np.asarray(read.xyz, np.float64)
    colour = None
    if set(_CHANNELS) <= {*read.point_format.dimension_names}:
      colour = np.stack([np.asarray(read[n]) for n in _CHANNELS], axis=1)
  except MemoryError:
    raise
  except Exception as error:  # a broken header can raise many kinds
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a readable LAS cloud: {text}") from error
  if colour is None or not colour.any():
    return _of_array(xyz)
  if colour.max() <= 255:
    raise DecodeError(
      f"LAS colours up to {colour.max()}: LAS has 16 bits, so 8 were written "
      "as they are; multiply them by 256."
    )
  return _of_array(xyz, colour.astype(np.float64) / 65535)
