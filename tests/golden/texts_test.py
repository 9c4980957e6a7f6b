"""Golden texts: parameter trees and resolved configs, read in review.

`pytest tests/golden/texts_test.py --update-golden` writes them anew. Parameter
names and shapes are the checkpoint format: a difference breaks old checkpoints.
"""

from __future__ import annotations

import json
import pathlib

import jax
import pytest

from mico_jax import config as configs
from mico_jax import models

TEXTS = pathlib.Path(__file__).parent / "texts"
CONFIGS = ("demo",)
PRESETS = ("mico_tiny", "mico_g14")


def parameter_tree(name):
  """One line per parameter: path, shape, dtype, logical axes."""
  model = models.build(models.PRESETS[name])
  leaves = jax.tree.leaves_with_path(model.abstract_params())
  is_axes = lambda x: isinstance(x, tuple)
  axes = jax.tree.leaves(model.logical_axes(), is_leaf=is_axes)
  lines = []
  for (path, leaf), names in zip(leaves, axes, strict=True):
    assert len(names) == leaf.ndim
    lines.append(
      f"{jax.tree_util.keystr(path, simple=True, separator='/')}  "
      f"{list(leaf.shape)}  {leaf.dtype}  ({', '.join(map(str, names))})"
    )
  return "\n".join(lines) + "\n"


def resolved_config(name):
  """Every field of a shipped config, defaults included."""
  values = configs.to_dict(configs.load(name))
  return json.dumps(values, indent=1, sort_keys=True) + "\n"


def compare(path, text, request):
  if request.config.getoption("--update-golden"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
  want = path.read_text(encoding="utf-8")
  assert text.splitlines() == want.splitlines(), (
    "see --update-golden in this file's first lines"
  )


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_tree(name, request):
  compare(TEXTS / f"{name}.txt", parameter_tree(name), request)


@pytest.mark.parametrize("name", CONFIGS)
def test_resolved_config(name, request):
  compare(TEXTS / f"config_{name}.json", resolved_config(name), request)
