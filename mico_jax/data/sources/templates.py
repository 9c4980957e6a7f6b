"""Names of files made of the fields of a sample: "clips/{clip_id}.mp4"."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.modalities import MODALITIES, DecodeError
from mico_jax.printing import known_names


def check_templates(templates: Mapping[str, str], name: str) -> None:
  """Checks the keys and texts of the option `files`.

  Args:
    templates: modality -> name of its file, with fields in braces.
    name: of the source.

  Raises:
    ConfigError: for an unknown modality, or a text that is no template.
  """
  for key, template in templates.items():
    where = f"data.sources.{name}.options.files.{key}"
    if key not in MODALITIES:
      raise ConfigError(
        f"{where}: unknown modality; {known_names(key, MODALITIES)}"
      )
    try:
      parts = list(string.Formatter().parse(template))
    except ValueError as error:
      raise ConfigError(f"{where}={template!r}: {error}.") from error
    if any(conversion or form for _, _, form, conversion in parts):
      raise ConfigError(
        f"{where}={template!r}: write fields as {{name}}, without a format."
      )


def fill(template: str, fields: Mapping[str, Any]) -> str | None:
  """The name of a file; None if a field is missing.

  Raises:
    DecodeError: for a field that is no text or integer, or holds "/".
  """
  parts = []
  for text, field, _, _ in string.Formatter().parse(template):
    parts.append(text)
    if field is None:
      continue
    value = fields.get(field)
    if value is None:
      return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
      raise DecodeError(
        f"field {field!r} names a file: expected text, got {value!r:.60}."
      )
    if "/" in str(value) or "\\" in str(value):
      raise DecodeError(
        f"field {field!r}={value!r:.60} is a part of the name {template!r}, "
        "and may hold no slash."
      )
    parts.append(str(value))
  return "".join(parts)
