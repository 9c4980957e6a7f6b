"""Selections over the parameter tree by path.

A path is the names of a leaf joined with "/", such as
"vision/blocks/attn/qkv/kernel"; patterns are regular expressions tried with
`re.search`. A pattern that matches nothing is a mistake in the config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from mico_jax.aliases import PyTree
from mico_jax.config import ConfigError


def path_name(path: Any) -> str:
  """The name "a/b/c" of a key path of `jax.tree_util`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def paths(tree: PyTree) -> list[str]:
  """Paths of all leaves."""
  return [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_paths(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
  """Maps `function(path, leaf)` over a tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(path_name(path), leaf), tree
  )


def check_patterns(
  patterns: Iterable[str], tree: PyTree, *, field: str
) -> None:
  """Checks that each pattern is a regex that matches some path.

  Raises:
    ConfigError: naming the pattern and the top keys of the tree.
  """
  names = paths(tree)
  for pattern in patterns:
    try:
      found = any(re.search(pattern, name) for name in names)
    except re.error as error:
      raise ConfigError(
        f"{field}: {pattern!r} is not a regular expression ({error})."
      ) from None
    if not found:
      tops = ", ".join(sorted({name.split("/")[0] for name in names}))
      raise ConfigError(
        f"{field}: {pattern!r} matches no parameter; paths look like "
        f"{names[0]!r} and start with one of {tops}. `mico-jax inspect` lists "
        "them."
      )


def matches(patterns: Iterable[str], path: str) -> bool:
  """Whether any pattern is found in the path."""
  return any(re.search(pattern, path) for pattern in patterns)


def first_match(table: Mapping[str, float], path: str, default: float) -> float:
  """The value of the first pattern found in the path."""
  for pattern, value in table.items():
    if re.search(pattern, path):
      return value
  return default


def is_stacked(path: str) -> bool:
  """Whether a leaf holds all layers of a tower along its axis 0."""
  return "/blocks/" in f"/{path}"
