"""Format of the records in ArrayRecord files: one sample as one blob of bytes.

A blob is the length of a JSON header (uint32, little endian), the header, and
the media one after another. The header holds the id, the fields, and for each
modality a list of (offset, size, kind) with kind "file" (an encoded file) or
"npy", and whether the sample has a list of them (frames).
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
  """Packs a sample into bytes.

  Args:
    sample_id: of the sample.
    fields: of the record, as JSON can hold them.
    media: modality -> bytes of a file, an array, or a list of these.

  Raises:
    TypeError: for other media.
  """
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
  """The record in a blob that `pack` made.

  `config.fields` may name another medium of the record for a modality.

  Raises:
    DecodeError: for any other bytes.
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
  for key, name in config.fields.items():  # such as the sound of a video
    if name in header["media"]:
      media[key] = reader(header["media"][name])
  return make_record(id_of(header, ""), header["fields"], media, config)
