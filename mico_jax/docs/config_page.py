"""The reference page of the config, made by `mico_jax.docs.tables`.

The description of a field is its comment in `mico_jax/config/`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from mico_jax import config
from mico_jax.docs.markdown import HEAD, first_paragraph, markdown_table


def field_comments(cls: type) -> dict[str, str]:
  """The comment of each field, on its line and in the lines above it."""
  comments: dict[str, str] = {}
  above: list[str] = []
  for line in inspect.getsource(cls).splitlines():
    text = line.strip()
    if text.startswith("#"):
      above.append(text.lstrip("# "))
      continue
    match = re.match(r"(\w+): ", text) if line.startswith("  ") else None
    if match and not line.startswith("   "):
      beside = text.partition("  # ")[2]
      comments[match[1]] = " ".join([*above, beside]).strip()
    above = []
  return comments


def _default(field: dataclasses.Field[Any]) -> str:
  value = field.default
  if value is dataclasses.MISSING and field.default_factory is not (
    dataclasses.MISSING
  ):
    value = field.default_factory()
  return f"`{value!r}`"


def _declared(hint: Any) -> str:
  """Values that a field accepts, from its type hint."""
  if typing.get_origin(hint) is typing.Annotated:
    base, *rules = typing.get_args(hint)
  else:
    base, rules = hint, []
  if base is bool:
    return "True or False"
  texts = [rule.short for rule in rules]
  args = typing.get_args(base)
  if typing.get_origin(base) is tuple:
    texts.append(f"each {_declared(args[0])}")
  elif args and dataclasses.is_dataclass(args[1]):
    texts.append(f"name -> {args[1].__name__}")
  elif args:
    texts.append(f"{_declared(args[0])} -> {_declared(args[1])}")
  return "; ".join(texts)


def config_page() -> str:
  """The page about config fields: defaults, ranges and meanings."""
  parts = [f"{HEAD}\n# Config\n\nOverride any of them: "]
  parts.append("`--config.train.steps=200`.\n")
  sections: dict[type, str] = {}

  def visit(cls: type, path: str) -> None:
    sections[cls] = path
    for field in dataclasses.fields(cls):
      name = f"{path}.{field.name}".lstrip(".")
      if dataclasses.is_dataclass(field.default):
        visit(type(field.default), name)
    entries = {
      "data": (("sources", config.SourceConfig), ("inputs", config.InputConfig))
    }
    for name, entry in entries.get(path, ()):
      visit(entry, f"{path}.{name}.NAME")
    if not path:
      visit(config.TaskConfig, "tasks.NAME")

  visit(config.Config, "")
  for cls, path in sections.items():
    comments = field_comments(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    parts.append(
      f"\n## {path or 'top level'}\n\n{first_paragraph(cls.__doc__)}\n\n"
    )
    parts.append(
      markdown_table(
        ("field", "default", "may be", "meaning"),
        (
          (
            f"`{f.name}`",
            _default(f),
            _declared(hints[f.name]),
            comments.get(f.name, ""),
          )
          for f in dataclasses.fields(cls)
          if not dataclasses.is_dataclass(f.default)
        ),
      )
    )
  return "".join(parts)


def options_of(
  path: str, table: Mapping[str, type], header: str = "name"
) -> str:
  """A section about the options of entries of a table; "" without options."""
  rows = [
    (
      *(f"`{name}`", f"`{f.name}`", _default(f), _declared(hint)),
      field_comments(cls).get(f.name, ""),
    )
    for name, cls in table.items()
    for f in dataclasses.fields(cls)
    for hint in [typing.get_type_hints(cls, include_extras=True)[f.name]]
  ]
  if not rows:
    return ""
  head = f"\n## Options\n\n`{path}`:\n\n"
  return head + markdown_table(
    (header, "option", "default", "may be", "meaning"), rows
  )
