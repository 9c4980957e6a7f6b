"""Fields and media of a record as shards can hold them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax.data.records import Record
from mico_jax.modalities import DecodeError


def fields_of(record: Record) -> tuple[dict[str, Any], list[str]]:
  """The fields of a record as JSON can hold them, with its texts by kind.

  Returns:
    The fields, and the names of those that JSON cannot hold.
  """
  fields, lost = {}, []
  for name, value in record.fields.items():
    try:
      fields[str(name)] = plain(value)
    except TypeError:
      lost.append(str(name))
  if record.captions:
    fields["captions"] = {k: list(v) for k, v in record.captions.items()}
  if record.negatives:
    fields["negatives"] = {k: list(v) for k, v in record.negatives.items()}
  if len(record.questions):
    fields["questions"] = [list(q) for q in record.questions]
  return fields, lost


def storable(raw: Any) -> Any:
  """A medium as shards can hold it: sound with its rate becomes a WAV file."""
  if (
    isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[0], np.ndarray)
  ):
    import soundfile

    samples, rate = raw
    kinds = {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT"}
    if samples.dtype.name not in kinds:
      raise DecodeError(
        f"sound of {samples.dtype} cannot be stored; expected "
        f"{', '.join(kinds)}."
      )
    out = io.BytesIO()
    subtype = kinds[samples.dtype.name]
    soundfile.write(out, samples, int(rate), format="WAV", subtype=subtype)
    return out.getvalue()
  return raw


def plain(value: Any) -> Any:
  """A value as JSON can hold it; bytes must be UTF-8 texts.

  Raises:
    TypeError: for other values.
  """
  if value is None or isinstance(value, (str, bool, int, float)):
    return value
  if isinstance(value, bytes):
    try:
      return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      raise TypeError("bytes that are no UTF-8") from error
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return plain(value.tolist())
  raise TypeError(f"a {type(value).__name__}")
