"""Parts of the reference pages: their head and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

HEAD = "<!-- Made by `python -m mico_jax.docs.tables`; do not edit. -->\n"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Formats a Markdown table."""
  cells = [header, ["---"] * len(header), *rows]
  lines = (
    "| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |"
    for row in cells
  )
  return "\n".join(lines) + "\n"


def first_paragraph(doc: str | None) -> str:
  """The first paragraph of a docstring as one line."""
  return " ".join((doc or "").strip().partition("\n\n")[0].split())
