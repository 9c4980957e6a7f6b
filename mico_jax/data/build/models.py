"""Models that stages use, by name; each is loaded once per process.

A name is `KIND:REST` with a kind of the table `KINDS`:

    mico:runs/demo                     a checkpoint of this package
    hf:Salesforce/blip2-opt-2.7b       a pipeline of `transformers`
    onnx:omnidata_dpt_normal.onnx      a graph, through onnxruntime
    python:my_models.py:load           `load(options)` of any other code, in a
                                       file or in a module that imports

What a name gives is a function over a batch; the stage says of what. Entries
are named by text and imported where used: this room itself runs no model, and
works without these packages.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.data.build import watch

Batch = Callable[[Sequence[Any]], Sequence[Any]]

# Kind -> "module:function", called as function(rest, options) -> Batch; what
# must import for it.
KINDS: dict[str, tuple[str, str]] = {
  "mico": ("mico_jax.inference.captioner:load_captioner", "mico_jax"),
  "hf": ("mico_jax.data.build.hf:load_pipeline", "transformers"),
  "onnx": ("mico_jax.data.build.onnx_graph:load_graph", "onnxruntime"),
  "python": ("mico_jax.data.build.models:load_python", "mico_jax"),
}


def check_model(stage: str, name: str, kinds: Sequence[str]) -> None:
  """Checks the name of a model up front.

  Args:
    stage: that uses it, for messages.
    name: of the model.
    kinds: that the stage takes.

  Raises:
    ConfigError: for no name, another kind, or a package that is missing.
  """
  kind, _, rest = name.partition(":")
  if kind not in kinds or not rest:
    raise ConfigError(
      f"{stage}.model={name!r}: name the model as one of "
      f"{', '.join(f'{k}:...' for k in kinds)} (--set {stage}.model=...)."
    )
  package = KINDS[kind][1]
  try:
    importlib.import_module(package)
  except ImportError as error:
    raise ConfigError(
      f"{stage}.model={name!r} needs {package}: {error}; pip install {package}."
    ) from error
  if kind == "python":
    _python(rest)
  if kind == "onnx" and not os.path.isfile(rest):
    raise ConfigError(f"{stage}.model={name!r}: no such file.")


def model(name: str, options: Mapping[str, Any]) -> Batch:
  """The model of a name that `check_model` let pass.

  Args:
    name: of the model.
    options: plain JSON; what it means is the stage's to say.

  Raises:
    ConfigError: if it cannot be loaded.
  """
  return _loaded(name, json.dumps(options, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _loaded(name: str, options: str) -> Batch:
  kind, _, rest = name.partition(":")
  module, _, function = KINDS[kind][0].partition(":")
  try:
    with watch.pausing(f"loading {name}"):
      load = getattr(importlib.import_module(module), function)
      return load(rest, json.loads(options))
  except ConfigError:
    raise
  except Exception as error:  # a model that cannot be loaded is no bad sample
    text = " ".join(str(error).split())[:300]
    raise ConfigError(f"{name}: {type(error).__name__}: {text}") from error


def _python(rest: str) -> Any:
  """The function of "module:function" or "file.py:function".

  Raises:
    ConfigError: if there is none.
  """
  name, _, function = rest.rpartition(":")
  try:
    if not name.endswith(".py"):
      return getattr(importlib.import_module(name), function)
    spec = importlib.util.spec_from_file_location("build_model", name)
    if spec is None or spec.loader is None:
      raise ImportError(f"{name} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)
  except Exception as error:  # whatever the user's code raises
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise ConfigError(
      f"python:{rest}: {text}; expected python:MODULE:FUNCTION or "
      "python:FILE.py:FUNCTION."
    ) from error


def load_python(rest: str, options: Mapping[str, Any]) -> Batch:
  """`FUNCTION(options)` of a module of the user."""
  return _python(rest)(options)
