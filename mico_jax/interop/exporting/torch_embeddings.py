"""Custom embeddings of modalities in a PyTorch folder.

A modality's record names the PyTorch class of its embedding
(`CustomEmbedding.torch`); the file of that class is copied without an import.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from typing import Any

from mico_jax.config import ConfigError, ModelConfig
from mico_jax.modalities import CustomEmbedding
from mico_jax.models import custom_embedding

FOLDER = "embeddings"
_ALLOWED = {"torch", *sys.stdlib_module_names}


def described(embedding: CustomEmbedding) -> dict[str, Any]:
  """The entry of an embedding in config.json."""
  return {
    "class": embedding.torch.partition(":")[2],
    "frame": list(embedding.frame),
    "options": dict(embedding.options),
    "padded": embedding.valid is not None,
  }


def files(config: ModelConfig) -> dict[str, str]:
  """Name -> text of the file of each modality with a custom embedding.

  Raises:
    ConfigError: if a record names no such file, or one that imports other
      packages than PyTorch.
  """
  return {
    f"{FOLDER}/{key}.py": _source(key, embedding)
    for key, embedding in custom_embedding.custom_embeddings(config).items()
  }


def _source(key: str, embedding: CustomEmbedding) -> str:
  """The text of the file that holds the class `embedding.torch`."""
  named = f"{key}: embedding.torch={embedding.torch!r}"
  name, _, kind = embedding.torch.partition(":")
  try:
    spec = importlib.util.find_spec(name) if name and kind else None
  except (ImportError, ValueError):  # of a package above it
    spec = None
  text = getattr(spec and spec.loader, "get_source", lambda _: None)(name)
  if text is None:
    raise ConfigError(
      f"{named} is no class of a Python file, 'package.module:Class'; without "
      "one the model has no PyTorch form."
    )
  tree = ast.parse(text)
  imported = {
    source.partition(".")[0]
    for node in ast.walk(tree)
    for source in _imports(node)
  }
  if beyond := sorted(imported - _ALLOWED):
    raise ConfigError(
      f"{named} imports {', '.join(beyond)}; an exported folder has only that "
      "file, so it may import PyTorch and the standard library."
    )
  classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
  definition = next((n for n in classes if n.name == kind), None)
  if definition is None:
    raise ConfigError(f"{named}: that file has no class {kind}.")
  methods = {n.name for n in definition.body if isinstance(n, ast.FunctionDef)}
  if embedding.valid is not None and "valid" not in methods:
    raise ConfigError(
      f"{named} has no method valid(frames), but the record's tokens may be "
      "padding."
    )
  return text


def _imports(node: ast.AST) -> list[str]:
  """Modules that a statement imports."""
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    return ["this package" if node.level else node.module or ""]
  return []
