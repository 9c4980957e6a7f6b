"""Decoders and preprocessing of a PyTorch folder.

They are the files of `mico_jax.modalities` (NumPy and Pillow), copied with
relative imports, so that the exported folder reads every input as this package
does: orientation, transparency, units, channels, errors.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.resources
import re

from mico_jax import config as config_lib

PACKAGE = "mico_inputs"
FIRST = ("__init__.py", "items.py")  # files that the exported model imports
_SOURCE = "mico_jax.modalities"
_CONFIG = "mico_jax.config"
_TYPES = "jaxtyping"  # used in annotations and their aliases only


def files() -> dict[str, str]:
  """File name -> text of the package `mico_inputs`: `FIRST` and its imports.

  Raises:
    ValueError: if a decoder imports a part of this package that is not copied.
  """
  copied: dict[str, str] = {}
  types: set[str] = set()
  folder = importlib.resources.files(_SOURCE)
  names = {f.name for f in folder.iterdir() if f.name.endswith(".py")}
  todo = list(FIRST)
  while todo:
    name = todo.pop()
    if name in copied:
      continue
    text = (folder / name).read_text("utf-8")
    types |= check_imports(text, name)
    copied[name] = _relative(_without_types(text))
    todo += names & {f"{module}.py" for module in _sibling_imports(text)}
  texts = {name: copied[name] for name in sorted(copied)}
  return texts | {"config.py": _config(sorted(types))}


def _sibling_imports(text: str) -> set[str]:
  """Modules of `mico_jax.modalities` that a file imports, by their names."""
  modules = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == _SOURCE:
        modules |= {alias.name for alias in node.names}
      elif node.module.startswith(f"{_SOURCE}."):
        modules.add(node.module.removeprefix(f"{_SOURCE}."))
  return modules


def check_imports(text: str, name: str) -> set[str]:
  """The configuration types that a file imports.

  Raises:
    ValueError: if it imports a part of this package that is not copied.
  """
  types = set()
  for node in ast.walk(ast.parse(text)):
    sources = []
    if isinstance(node, ast.Import):
      sources = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      sources = [node.module or ""]
      if sources == [_CONFIG]:
        types |= {alias.name for alias in node.names}
        continue
      if f"{sources[0]}.".startswith(f"{_SOURCE}."):
        continue
    for source in sources:
      if source.partition(".")[0] == "mico_jax":
        raise ValueError(
          f"modalities/{name} imports {source}, which an exported folder does "
          f"not hold; write `from {_SOURCE} import` or `from {_CONFIG} import`."
        )
  return types


def _without_types(text: str) -> str:
  """A file's text whose aliases of array types are strings.

  Such an alias, `Frames = Float[np.ndarray, "T Y X"]`, is read in annotations
  only, and an exported folder runs where jaxtyping is not installed.
  """
  tree = ast.parse(text)
  types = {
    alias.name
    for node in tree.body
    if isinstance(node, ast.ImportFrom) and node.module == _TYPES
    for alias in node.names
  }
  for node in tree.body:
    if isinstance(node, ast.Assign) and types & {
      name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)
    }:
      value = ast.get_source_segment(text, node.value) or ""
      text = text.replace(f"= {value}", f"= {ast.unparse(node.value)!r}", 1)
  return text


def _relative(text: str) -> str:
  """A file's text with relative imports."""
  for source, target in (
    (f"{_SOURCE} import", ". import"),
    (f"{_SOURCE}.", "."),
    (f"{_CONFIG} import", ".config import"),
  ):
    pattern = rf"^(\s*)from {re.escape(source)}"
    text = re.sub(pattern, rf"\1from {target}", text, flags=re.M)
  return re.sub(
    rf"^from {_TYPES} import ([\w, ]+)$",
    r"from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
    rf"  from {_TYPES} import \1\n",
    text,
    flags=re.M,
  )


def _config(types: list[str]) -> str:
  """The text of config.py: some dataclasses with their defaults."""
  text = (
    '"""What the decoders are set by; preprocessing.json has the values."""'
  )
  text += "\n\nfrom dataclasses import dataclass\n"
  for name in types:
    kind = getattr(config_lib, name)
    summary = (kind.__doc__ or name).strip().partition("\n")[0]
    text += f'\n\n@dataclass(frozen=True)\nclass {name}:\n  """{summary}"""\n\n'
    for field in dataclasses.fields(kind):
      value = field.default
      text += f"  {field.name}: {type(value).__name__} = {value!r}\n"
  return text
