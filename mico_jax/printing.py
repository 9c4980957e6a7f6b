"""Escaping of untrusted text for a terminal.

Names of files, ids, captions and values come from data. A control character in
them could move the cursor, change colours or reverse the order of text, and a
line break could forge a message of this program.
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterable
from typing import Any

# Control, format (zero-width, bidirectional), surrogate, unassigned; line and
# paragraph separators. Joiners and marks of scripts are shown as they are.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them


def _is_hidden(char: str) -> bool:
  return char not in _JOINERS and unicodedata.category(char) in _HIDDEN


def escaped(text: str) -> str:
  r"""A text whose control characters are written out: `\x1b`, `\u202e`.

  Line breaks and tabs are among them, so the result is one line; surrogates
  (bytes of a file name that are no UTF-8) as well, so it can be encoded.
  """
  if text.isascii() and text.isprintable():
    return text
  return "".join(
    c.encode("unicode_escape").decode("ascii") if _is_hidden(c) else c
    for c in text
  )


def escaped_page(text: str) -> str:
  """Several lines, each as `escaped` gives it."""
  return "\n".join(map(escaped, text.split("\n")))


def escaped_json(text: str) -> str:
  """A JSON document whose hidden characters are escaped as JSON does it."""
  if text.isascii():  # `json.dumps` has escaped what else there is
    return text
  return "".join(
    json.dumps(c)[1:-1] if c != "\n" and _is_hidden(c) else c for c in text
  )


def shown(value: Any, longest: int = 80) -> str:
  """A value as a short line, for messages: its `repr`, cut and escaped."""
  if isinstance(value, (str, bytes)):
    value = value[: longest + 1]  # cheap, however long it is
  if isinstance(value, int) and abs(value) >= 10**longest:
    return f"an integer of {value.bit_length()} bits"
  try:
    text = escaped(repr(value))
  except (ValueError, RecursionError):  # integers of thousands of digits inside
    return f"a {type(value).__name__}"
  return text if len(text) <= longest else f"{text[: longest - 3]}..."


def did_you_mean(name: object, names: Iterable[object]) -> str:
  """The sentence " Did you mean 'video'?" where a name is near; else ""."""
  known = [str(n) for n in names]
  close = difflib.get_close_matches(str(name)[:200], known, n=1)
  return f" Did you mean {close[0]!r}?" if close else ""


def known_names(name: object, names: Iterable[object]) -> str:
  """What an error about an unknown name says: the known ones, and a near one.

  "known: image, video. Did you mean 'video'?"

  Args:
    name: that was given.
    names: that there are, in the order in which they are listed.
  """
  known = [str(n) for n in names]
  return f"known: {', '.join(known) or 'none'}.{did_you_mean(name, known)}"
