"""The entries of a JSON list, found without holding the list in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from mico_jax import json_text
from mico_jax.modalities import DecodeError

_READ = 1 << 22  # bytes
_MOST = 1 << 26  # bytes of an entry
_BOM = b"\xef\xbb\xbf".decode("latin-1")
_SPACE = re.compile(r"[ \t\n\r]*")


class _Window:
  """A part of a file, as text of one character a byte.

  What is outside of strings is ASCII in JSON, so that entries begin and end
  where they do in the file.
  """

  def __init__(self, file: Any, take: Callable[[bytes], None]):
    self.text, self.start, self.ended = "", 0, False
    self._file, self._take = file, take

  def grow(self, at: int) -> int:
    """Reads on, and drops what is before a place; its new place."""
    rest = self.text[at:]
    data = self._file.read(max(_READ, len(rest)))
    self._take(data)
    self.ended = not data
    self.text, self.start = rest + data.decode("latin-1"), self.start + at
    return 0

  def skip(self, at: int) -> int:
    """The place of what follows white space."""
    while True:
      match = _SPACE.match(self.text, at)
      at = at if match is None else match.end()
      if at < len(self.text) or self.ended:
        return at
      at = self.grow(at)

  def at(self, place: int) -> str:
    """The character at a place; "": the end."""
    return self.text[place : place + 1]


def entries(
  file: Any, take: Callable[[bytes], None]
) -> Iterator[tuple[int, int, bytes]]:
  """The entries of a JSON list in UTF-8.

  Args:
    file: with the list, at its beginning.
    take: is given all bytes of the file, in order.

  Yields:
    Number of an entry (from 0), its offset in the file, its bytes.

  Raises:
    DecodeError: for anything else than a list, and what follows it.
  """
  decode = json.JSONDecoder(object_pairs_hook=json_text.unique).raw_decode
  window, number = _Window(file, take), 0
  at = window.grow(0)
  at = window.skip(len(_BOM) if window.text.startswith(_BOM) else at)
  if window.at(at) != "[":
    raise DecodeError("expected a JSON list in UTF-8")
  at = window.skip(at + 1)
  while window.at(at) != "]" or number:
    at, end = _entry(window, at, number, decode)
    yield number, window.start + at, window.text[at:end].encode("latin-1")
    number += 1
    at = window.skip(end)
    if window.at(at) == "]":
      break
    if window.at(at) != ",":
      raise DecodeError(f"expected ',' or ']' behind entry {number - 1}")
    at = window.skip(at + 1)
  at = window.skip(at + 1)
  if window.at(at):
    raise DecodeError("something follows the list")


def _entry(
  window: _Window,
  at: int,
  number: int,
  decode: Callable[[str, int], tuple[Any, int]],
) -> tuple[int, int]:
  """Where an entry begins and ends in the window."""
  while True:
    problem = ""
    try:
      _, end = decode(window.text, at)
      # The end of a number is told by what follows.
      if end < len(window.text) or window.ended:
        return at, end
    except (json.JSONDecodeError, RecursionError) as error:
      problem = " ".join(str(error).split())[:120]
    except ValueError as error:  # of `json_text.unique`
      raise DecodeError(f"entry {number}: {error}") from error
    if window.ended or len(window.text) - at > _MOST:
      raise DecodeError(
        f"entry {number}: not JSON, or of more than {_MOST >> 20} MiB: "
        f"{problem or 'no end'}"
      )
    at = window.grow(at)
