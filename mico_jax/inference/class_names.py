"""Checks of class names before their prompts are embedded."""

from __future__ import annotations

from collections.abc import Sequence

from mico_jax.config import ConfigError
from mico_jax.data.identity import tell
from mico_jax.data.tokenizer import Tokenizer

_RARE = "\U00010348"  # a Gothic letter, in no vocabulary
_NAMED = 5


def check_class_names(tokenizer: Tokenizer, names: Sequence[str]) -> None:
  """Refuses classes that no prompt can tell from the bare template.

  Classes whose names are equal, or give the same tokens, are named on stderr:
  they share every score, so that none of them is ever right.

  Raises:
    ConfigError: naming classes without a token that the tokenizer knows.
  """
  special = set(tokenizer.info.special)
  unknown = set(_ids(tokenizer, _RARE)) | special
  seen: dict[tuple[int, ...], str] = {}
  nothing, same = [], []
  for name in names:
    ids = tuple(i for i in _ids(tokenizer, name) if i not in special)
    if not set(ids) - unknown:
      nothing.append(name)
    elif ids in seen:
      same.append(f"{seen[ids]!r} and {name!r}")
    seen.setdefault(ids, name)
  if nothing:
    raise ConfigError(
      f"{len(nothing)} of {len(names)} class names have no token that the "
      "checkpoint's tokenizer knows: "
      f"{', '.join(map(repr, nothing[:_NAMED]))}. "
      "Write them in its language, or use a checkpoint with another tokenizer."
    )
  if same:
    tell(
      f"{len(same)} class names have the tokens of another "
      f"({'; '.join(same[:_NAMED])}); none of these is ever right."
    )


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
  """Ids of a text that is not cut."""
  return [int(i) for i in tokenizer.encode(text, 4 * len(text.encode()) + 8)]
