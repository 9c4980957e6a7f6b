"""Codes of modalities in words: "tva" is text against video + audio."""

from __future__ import annotations

from mico_jax.modalities import MODALITIES, sides

_ARROW = " → "


def in_words(letters: str) -> str:
  """Letters as names of modalities, "va" as "video + audio".

  Args:
    letters: of contexts.

  Returns:
    The names; "" for no letter, one that is none of a modality, or one twice.
  """
  names = {m.letter: key for key, m in MODALITIES.items()}
  known = bool(letters) and set(letters) <= set(names)
  if not known or len(set(letters)) < len(letters):
    return ""
  return " + ".join(names[letter] for letter in letters)


def group_in_words(group: str) -> str:
  """A group as what it compares, "tva" as "text against video + audio".

  Args:
    group: as tasks name it, also "i:d".

  Returns:
    The words; the group itself if it is none.
  """
  try:
    first, second = map(in_words, sides(group))
  except ValueError:
    return group
  return f"{first} against {second}"


def result_in_words(name: str) -> str:
  """A result's name with its code in words.

  Args:
    name: "<title>/<code>/...", such as "retrieval/t->va/R@1".

  Returns:
    Such as "retrieval, text → video + audio, R@1"; a part that is no code
    stays.
  """
  parts = name.split("/")
  if len(parts) > 1:
    code, blank, rest = parts[1].partition(" ")
    words = [in_words(side) for side in code.split("->")]
    if all(words):
      parts[1] = f"{_ARROW.join(words)}{blank}{rest}"
  return ", ".join(parts)
