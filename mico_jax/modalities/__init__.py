"""Table of the modalities, and lookups by letter, group or file type.

Data, embeddings, objectives, evaluation, command line and export loop over
`MODALITIES`. To add a modality, write `mico_jax/modalities/<name>.py` with its
record and add its line here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from mico_jax.modalities.audio import AUDIO
from mico_jax.modalities.base import (
  UNSTATED,
  WHOLE,
  Alias,
  ArraySpec,
  Axis,
  Caption,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Modality,
  Mode,
  Scale,
  Stated,
)
from mico_jax.modalities.biosignal import BIOSIGNAL
from mico_jax.modalities.columns import Column, as_columns
from mico_jax.modalities.depth import DEPTH
from mico_jax.modalities.files import FileSpec, parse_file
from mico_jax.modalities.generic_signal import SIGNAL
from mico_jax.modalities.graph import GRAPH
from mico_jax.modalities.hyperspectral import HYPERSPECTRAL
from mico_jax.modalities.image import IMAGE
from mico_jax.modalities.imu import IMU
from mico_jax.modalities.normal import NORMAL
from mico_jax.modalities.pointcloud import POINTCLOUD
from mico_jax.modalities.subtitle import SUBTITLE
from mico_jax.modalities.tabular import TABULAR
from mico_jax.modalities.text import TEXT
from mico_jax.modalities.thermal import THERMAL
from mico_jax.modalities.timeseries import TIMESERIES
from mico_jax.modalities.video import VIDEO
from mico_jax.modalities.xray import XRAY

MODALITIES: dict[str, Modality] = {
  "image": IMAGE,
  "video": VIDEO,
  "audio": AUDIO,
  "depth": DEPTH,
  "normal": NORMAL,
  "thermal": THERMAL,
  "xray": XRAY,
  "imu": IMU,
  "biosignal": BIOSIGNAL,
  "timeseries": TIMESERIES,
  "signal": SIGNAL,
  "pointcloud": POINTCLOUD,
  "hyperspectral": HYPERSPECTRAL,
  "graph": GRAPH,
  "tabular": TABULAR,
  "subtitle": SUBTITLE,
  "text": TEXT,
}

KNOWLEDGE: tuple[str, ...] = tuple(
  key for key, m in MODALITIES.items() if m.kind == "knowledge"
)


def by_letter(letter: str) -> Modality:
  """The modality of a letter.

  Raises:
    ValueError: for an unknown letter, listing the known ones.
  """
  for modality in MODALITIES.values():
    if modality.letter == letter:
      return modality
  known = ", ".join(f"{m.letter} {k}" for k, m in MODALITIES.items())
  raise ValueError(f"no modality with letter {letter!r}; known: {known}.")


def letters(group: str) -> str:
  """The letters of a group without its text: "tva", "va", "v:a" -> "va".

  Raises:
    ValueError: for an unknown or repeated letter, no context at all, or a colon
      with nothing on one side.
  """
  first, colon, second = group.partition(":")
  if colon and not (first and second):
    raise ValueError(
      f"group {group!r} has nothing on one side of its colon; write both, such "
      "as 'i:d'."
    )
  context = f"{first}{second}".removeprefix("t")
  for letter in context:
    if by_letter(letter).letter == "t":
      raise ValueError(f"group {group!r}: 't' must come first.")
  if not context or len(set(context)) < len(context):
    raise ValueError(
      f"group {group!r} needs one or more different context letters, such as "
      "'tv' or 'tva'."
    )
  return context


def has_text(group: str) -> bool:
  """Whether a group has a text ("tva"), and not contexts alone ("i:d")."""
  return group.startswith("t")


def sides(group: str) -> tuple[str, str]:
  """What a group compares: "tva" -> ("t", "va"), "i:d" and "id" -> ("i", "d").

  Raises:
    ValueError: as `letters`, and for a group without a text that does not say
      what is compared with what.
  """
  context = letters(group)
  if has_text(group):
    return "t", context
  first, colon, second = group.partition(":")
  if colon:
    return first, second
  if len(context) != 2:
    raise ValueError(
      f"group {group!r} has no text and does not say what is compared with "
      f"what; write 't{group}', or two contexts such as 'i:d' or 'va:d'."
    )
  return context[0], context[1]


def as_configured(modality: Modality, model: object) -> Modality:
  """The record of a modality with the head and context that a model gives it.

  The only place that resolves `Modality.alias`.

  Args:
    modality: of the table.
    model: a `mico_jax.config.ModelConfig`.
  """
  alias = modality.alias
  if alias is None or getattr(model, alias.option) != alias.key:
    return modality
  other = MODALITIES[alias.key]
  return dataclasses.replace(
    modality, head_letter=other.head, context_type=other.context_type
  )


def played_by(letter: str, there: Collection[str]) -> str:
  """The modality that serves a letter among those present; "": none.

  It is the letter's modality, or one that shares its head: an image serves as a
  video of one frame.

  Args:
    letter: of a context.
    there: modalities that are present.
  """
  first = by_letter(letter).key
  others = (k for k, m in MODALITIES.items() if m.head_letter == letter)
  return next((key for key in (first, *others) if key in there), "")


def shown(context: str) -> frozenset[str]:
  """The letters of a context, and those that they can serve for."""
  heads = {by_letter(letter).head for letter in context}
  return frozenset(context) | heads


def has_words(context: str) -> bool:
  """Whether a context has a text modality, such as subtitles."""
  return any(by_letter(letter).kind == "interface" for letter in context)


def by_extension(suffix: str) -> Modality | None:
  """The modality of files that end in `suffix`, such as ".jpg"; None: none."""
  suffix = suffix.lower()
  for modality in MODALITIES.values():
    if suffix in modality.extensions:
      return modality
  return None


def file_spec(text: str) -> FileSpec:
  """Modality of a file named on the command line, and what is stated of it.

  The modality follows from the file's extension unless it is written in front:
  "normal:FILE", "depth:mm:FILE", "imu:g,deg/s@50:FILE".

  Raises:
    ValueError: for an unknown file type, naming the known ones.
  """
  return parse_file(text, MODALITIES)


__all__ = [
  "KNOWLEDGE",
  "MODALITIES",
  "UNSTATED",
  "WHOLE",
  "Alias",
  "ArraySpec",
  "Axis",
  "Caption",
  "Column",
  "CustomEmbedding",
  "DecodeError",
  "FileSpec",
  "Geometry",
  "Modality",
  "Mode",
  "Scale",
  "Stated",
  "as_columns",
  "as_configured",
  "by_extension",
  "by_letter",
  "file_spec",
  "has_text",
  "has_words",
  "letters",
  "played_by",
  "shown",
  "sides",
]
