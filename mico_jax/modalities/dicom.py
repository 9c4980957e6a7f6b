"""Grey pictures of DICOM files, read by `pydicom` (extra `medical`)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mico_jax.modalities.base import DecodeError
from mico_jax.modalities.maps import Unit

_KINDS = {"MONOCHROME1": True, "MONOCHROME2": False}  # whether inverted


def read_dicom(
  raw: Any,
) -> tuple[Shaped[np.ndarray, "..."], Unit, str] | None:
  """Stored values, their unit and its name; None: it is no DICOM file.

  Padding (PixelPaddingValue) is NaN where there is any.

  Raises:
    DecodeError: for colours, signed values, and files that cannot be read.
  """
  if not isinstance(raw, bytes) or raw[128:132] != b"DICM":
    return None
  import pydicom

  try:
    data = pydicom.dcmread(io.BytesIO(raw))
    kind, bits = str(data.PhotometricInterpretation), int(data.BitsStored)
    signed = bool(data.PixelRepresentation)
    pixels = np.asarray(data.pixel_array)
    padding = data.get("PixelPaddingValue")
  except MemoryError:
    raise
  except Exception as error:  # a broken file can raise many kinds
    text = " ".join(str(error).split())[:200] or type(error).__name__
    raise DecodeError(f"not a readable DICOM picture: {text}") from error
  if kind not in _KINDS or signed:
    raise DecodeError(
      f"DICOM with {kind} and {'signed' if signed else 'unsigned'} values; "
      f"expected {' or '.join(_KINDS)}, unsigned."
    )
  unit = Unit(full=2**bits - 1, inverted=_KINDS[kind])
  if padding is not None and (pixels == padding).any():
    # Floats are shares of the full range.
    shares = pixels.astype(np.float64) / unit.full
    pixels = np.where(pixels == padding, np.nan, shares)
  return pixels, unit, f"{kind.lower()},{bits}"
