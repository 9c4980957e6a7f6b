"""Reading of spectra: arrays, .npy, and .npz with a cube and wavelengths.

- .npz: an array `cube`, and if known `wavelengths` in nm beside it.

Files of MATLAB are read array by array, `cube.mat:name@12,30` in a manifest.
"""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities.arrays import is_npy, read_npy
from mico_jax.modalities.base import DecodeError

MAX_BYTES = 2**31  # of an array in a .npz, unpacked


def read_cube(
  raw: Any,
) -> tuple[Shaped[np.ndarray, "..."], Float[np.ndarray, "..."] | None]:
  """Values, and wavelengths in nm where the file has them.

  Raises:
    DecodeError: for anything else, and for unreadable files.
  """
  if isinstance(raw, np.ndarray):
    return raw, None
  if not isinstance(raw, bytes):
    raise DecodeError(
      "expected the file of a spectrum or an array [Y, X, bands], got "
      f"{type(raw).__name__}."
    )
  if not raw:
    raise DecodeError("the file is empty (0 bytes).")
  if is_npy(raw):
    return read_npy(raw), None
  try:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
      sizes = {i.filename: i.file_size for i in archive.infolist()}
    if max(sizes.values(), default=0) > MAX_BYTES:
      raise DecodeError(f".npz with an array of over {MAX_BYTES} bytes.")
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
      found = {k: arrays[k] for k in ("cube", "wavelengths") if k in arrays}
      names = ", ".join(arrays.files) or "none"
      told = found.get("wavelengths")
      told = None if told is None else np.asarray(told, np.float64)
  except (DecodeError, MemoryError):
    raise
  except Exception as error:  # zipfile, zlib and NumPy raise many kinds
    text = " ".join(str(error).split())[:200]
    raise DecodeError(
      f"not a readable spectrum (.npy, .npz): {text}"
    ) from error
  if "cube" not in found:
    raise DecodeError(
      f".npz without an array 'cube'; it has {names}. Name one in a manifest "
      "by 'file.npz:name@ROW,COLUMN'."
    )
  return found["cube"], told
