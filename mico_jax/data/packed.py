"""Records packed into ArrayRecord files: one sample, one blob.

A blob is the length of a JSON header (uint32, little endian), the header, then
the media one after another. The header holds id, fields, and per modality a
list of (offset, size, kind) with kind "file" (an encoded file as it was) or
"npy"; a list of more than one entry is a list of frames.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mico_jax.config import SourceConfig
from mico_jax.data.records import Record, id_of, make_record
from mico_jax.modalities import DecodeError
from mico_jax.modalities.arrays import read_npy

FORMAT = "mico_jax.packed.1"


def pack(
  sample_id: str, fields: Mapping[str, Any], media: Mapping[str, Any]
) -> bytes:
  """One sample as bytes; media as sources read them (bytes, arrays, lists)."""
  entries: dict[str, dict[str, Any]] = {}
  blobs: list[bytes] = []
  offset = 0
  for key, raw in media.items():
    many = isinstance(raw, list)
    parts = []
    for item in raw if many else [raw]:
      if isinstance(item, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, item, allow_pickle=False)
        kind, data = "npy", buffer.getvalue()
      elif isinstance(item, bytes):
        kind, data = "file", item
      else:
        raise TypeError(f"cannot pack {type(item).__name__} of {key!r}.")
      parts.append((offset, len(data), kind))
      blobs.append(data)
      offset += len(data)
    entries[key] = {"many": many, "parts": parts}
  header = json.dumps(
    {"format": FORMAT, "id": sample_id, "fields": fields, "media": entries},
    sort_keys=True,
  ).encode()
  return b"".join((struct.pack("<I", len(header)), header, *blobs))


def unpack(data: bytes, config: SourceConfig) -> Record:
  """The record of a blob of `pack`.

  Raises:
    DecodeError: if it is none.
  """
  try:
    (size,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + size])
    if header["format"] != FORMAT:
      raise ValueError(f"format {header['format']!r}")
    if not isinstance(header["media"], Mapping):
      raise TypeError("media is no mapping")
    if not isinstance(header["fields"], Mapping):
      raise TypeError("fields is no mapping")
  except (
    struct.error,
    ValueError,
    KeyError,
    TypeError,
    RecursionError,
  ) as error:
    raise DecodeError(
      f"not a record made by `mico-jax data build`: {error}"
    ) from error
  start = 4 + size

  def reader(entry: Mapping[str, Any]) -> Callable[[], Any]:
    def read() -> Any:
      items = []
      for offset, length, kind in entry["parts"]:
        blob = data[start + offset : start + offset + length]
        if offset < 0 or len(blob) != length:
          raise DecodeError("the record is cut short.")
        items.append(read_npy(blob) if kind == "npy" else blob)
      return items if entry["many"] else items[0]

    return read

  media = {key: reader(entry) for key, entry in header["media"].items()}
  return make_record(id_of(header, ""), header["fields"], media, config)
