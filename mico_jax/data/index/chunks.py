"""The chunks of an ArrayRecord file as a column: `chunk`, their offsets."""

from __future__ import annotations

import hashlib
from typing import Any

from mico_jax.data.index.columns import Writer
from mico_jax.data.index.riegeli import read_footer
from mico_jax.data.storage import Storage

KIND = "array_record.1"
_SAMPLE = 1 << 20  # bytes of the first and the last chunk that count


def build(path: str, storage: Storage) -> tuple[Writer, dict[str, Any]]:
  """Reads the footer of a file.

  Returns:
    The column, with the offset of the footer behind the chunks, and its meta:
    `samples`, `group` (records of a chunk), `footer_end`, and `sha256` of the
    size, the footer and what the first and the last chunk begin with.

  Raises:
    DecodeError: if it is no ArrayRecord file, or its end is damaged.
    TransientError: for storage that stays away.
  """
  size = storage.stat(path).size
  footer = read_footer(size, lambda at, n: storage.read_range(path, at, n))
  digest = hashlib.sha256(f"{size} ".encode())
  start = int(footer.offsets[-1])
  digest.update(storage.read_range(path, start, footer.end - start))
  if len(footer.offsets) > 1:
    for first in (0, len(footer.offsets) - 2):
      start, stop = footer.offsets[first : first + 2].tolist()
      part = storage.read_range(path, start, min(stop - start, _SAMPLE))
      digest.update(part)
  writer = Writer(chunk="<i8")
  writer.add(chunk=footer.offsets)
  return writer, {
    "samples": footer.records,
    "group": footer.group,
    "footer_end": footer.end,
    "sha256": digest.hexdigest(),
  }
