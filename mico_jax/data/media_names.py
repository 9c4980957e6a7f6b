"""Names of the media in a copy of a benchmark; users lay out their own ways."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from mico_jax.data.field_paths import fill
from mico_jax.modalities import MODALITIES, DecodeError

_ANY_FOLDER = "**/"
_ANY_ENDING = ".*"
_SAME_AS = "@"


class MediaNames:
  """Finds the files of a row among all names of a folder.

  A template is a name with fields in braces; one that begins with `**/` is
  looked for in every folder, one that ends in `.*` has any of the extensions of
  its modality, and `*.png` is the only such file of its folder. `@video` is the
  file of another modality that was found: a video, for its sound.
  """

  def __init__(
    self, names: Sequence[str], templates: Mapping[str, Sequence[str]]
  ):
    """Takes the names, relative with "/", and modality -> templates."""
    self._templates = templates
    self._all = set(names)
    self._in_folder: dict[str, list[str]] = {}
    self._by_base: dict[str, list[str]] = {}
    self._by_stem: dict[str, list[str]] = {}
    for name in names:
      folder, base = posixpath.split(name)
      stem = posixpath.splitext(base)[0]
      self._in_folder.setdefault(folder, []).append(name)
      self._by_base.setdefault(base, []).append(name)
      self._by_stem.setdefault(stem, []).append(name)

  def of(self, row: Mapping[str, Any]) -> dict[str, str]:
    """Modality -> name of its file; those without a file are left out.

    Raises:
      DecodeError: if several files have the name that is looked for.
    """
    found = {}
    for key, templates in self._templates.items():
      for template in templates:
        if template.startswith(_SAME_AS):
          same = found.get(template.removeprefix(_SAME_AS))
          if same is not None:
            found[key] = same
            break
          continue
        filled = fill(template, row)
        names = [] if filled is None else self._find(key, filled)
        if len(names) > 1:
          raise DecodeError(
            f"{len(names)} files may be the {key} {filled!r}: "
            f"{', '.join(names[:3])}; remove all but one."
          )
        if names:
          found[key] = names[0]
          break
    return found

  def _find(self, key: str, name: str) -> list[str]:
    everywhere = name.startswith(_ANY_FOLDER)
    folder, base = posixpath.split(name.removeprefix(_ANY_FOLDER))
    if base.endswith(_ANY_ENDING):
      base = base.removesuffix(_ANY_ENDING)
      candidates = self._by_stem.get(base, [])
      if base == "*":
        candidates = self._in_folder.get(folder, [])
      endings = MODALITIES[key].extensions
      candidates = [
        n for n in candidates if posixpath.splitext(n)[1].lower() in endings
      ]
    elif base.startswith("*."):
      ending = base.removeprefix("*")
      candidates = [
        n for n in self._in_folder.get(folder, []) if n.endswith(ending)
      ]
    else:
      candidates = self._by_base.get(base, [])
    if not everywhere:
      return [n for n in candidates if posixpath.split(n)[0] == folder]
    inside = lambda n: f"/{posixpath.split(n)[0]}".endswith(f"/{folder}")
    return [n for n in candidates if not folder or inside(n)]
