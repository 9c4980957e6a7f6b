"""Loading of config files and packaged configs, and overrides of fields."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import os
import pathlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mico_jax.config.conversion import from_config_dict, from_dict, to_dict
from mico_jax.config.fields import ConfigError
from mico_jax.config.training import Config
from mico_jax.printing import did_you_mean


def config_dirs() -> list[pathlib.Path]:
  """Folders of named configs: that of the package and that of a checkout."""
  here = pathlib.Path(__file__).resolve().parents[1]
  folders = [here / "configs", here.parent / "configs"]
  return [d for d in folders if d.is_dir()]


def find(name: str) -> pathlib.Path:
  """Path of a config.

  Args:
    name: path of a .py file, or a packaged name such as "demo".

  Raises:
    ConfigError: listing the packaged names if there is no such config.
  """
  path = pathlib.Path(name)
  if path.suffix == ".py":
    if not path.is_file():
      raise ConfigError(f"no config file {name!r}.")
    return path
  for folder in config_dirs():
    if (folder / f"{name}.py").is_file():
      return folder / f"{name}.py"
  known = sorted(
    str(p.relative_to(d).with_suffix(""))
    for d in config_dirs()
    for p in d.rglob("*.py")
    if p.stem not in ("__init__", "base")
  )
  raise ConfigError(
    f"no config {name!r}.{did_you_mean(name, known)} Packaged configs: "
    f"{', '.join(known)}; or give the path of a .py file."
  )


def parse_override(text: str) -> tuple[str, Any]:
  """Splits "train.steps=200" into path and value (a Python literal or text).

  Raises:
    ConfigError: for a text without "=".
  """
  path, sep, raw = text.partition("=")
  if not sep:
    raise ConfigError(f"--config.{text}: write --config.{text}=VALUE.")
  try:
    return path, ast.literal_eval(raw)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return path, {"true": True, "false": False}.get(raw.lower(), raw)


def override(config: Config, overrides: Sequence[str]) -> Config:
  """Applies "a.b.c=value" overrides to a config.

  Raises:
    ConfigError: for an unknown key or a value of the wrong type.
  """
  values = to_dict(config)
  for text in overrides:
    path, value = parse_override(text)
    *parents, leaf = path.split(".")
    node = values
    for i, part in enumerate(parents):
      if not isinstance(node.get(part), dict):
        known, near = ", ".join(sorted(node)), did_you_mean(part, node)
        raise ConfigError(
          f"unknown config key {'.'.join(parents[: i + 1])!r}.{near} "
          f"Known keys here: {known}."
        )
      node = node[part]
    node[leaf] = value
  return from_dict(values)


def _function(path: pathlib.Path, name: str) -> Callable[..., Any]:
  """A function of a config file.

  Raises:
    ConfigError: if the file cannot be run or has no such function.
  """
  spec = importlib.util.spec_from_file_location(
    f"mico_jax_config_{path.stem}", path
  )
  if spec is None or spec.loader is None:
    raise ConfigError(f"cannot read config file {str(path)!r}.")
  module = importlib.util.module_from_spec(spec)
  with _named(path):
    spec.loader.exec_module(module)
  found = getattr(module, name, None)
  if not callable(found):
    raise ConfigError(f"{path}: has no function {name}().")
  return found


@contextlib.contextmanager
def _named(path: pathlib.Path) -> Iterator[None]:
  """Turns errors in the code of a config file into ConfigError with its line.

  Raises:
    ConfigError: for all errors but Ctrl-C.
  """
  try:
    yield
  except ConfigError:
    raise
  except SyntaxError as error:
    raise ConfigError(f"{path}, line {error.lineno}: {error.msg}.") from error
  except (Exception, SystemExit) as error:
    calls = traceback.extract_tb(error.__traceback__)
    file = os.path.abspath(path)
    lines = [c.lineno for c in calls if os.path.abspath(c.filename) == file]
    where = f", line {lines[-1]}" if lines else ""
    text = " ".join(str(error).split())[:300]
    kind = "" if isinstance(error, ImportError) else type(error).__name__
    reason = ": ".join(filter(None, (kind, text)))
    raise ConfigError(f"{path}{where}: {reason}.") from error


def call(
  name: str, function: str, *, arg: str | None = None
) -> tuple[pathlib.Path, Any]:
  """Calls a function of a config file or packaged config.

  Args:
    name: path of a .py file or packaged name; "name:arg" passes `arg`.
    function: such as "get_config".
    arg: argument of the function; overrides the one in `name`.

  Returns:
    The file, and what the function gave.

  Raises:
    ConfigError: for a missing file or function, and errors in its code.
  """
  base, sep, suffix = name.partition(":")
  if sep and arg is None:
    arg = suffix
  path = find(base)
  found = _function(path, function)
  with _named(path):
    takes = inspect.signature(found).parameters
    if arg is not None and not takes:
      raise ConfigError(f"{name!r}: {function} of {path} takes no argument.")
    return path, found() if arg is None else found(arg)


def load(
  name: str, overrides: Sequence[str] = (), *, arg: str | None = None
) -> Config:
  """Loads a config file or packaged config and applies overrides.

  Args:
    name: path of a .py file or packaged name; "name:arg" passes `arg` to its
      `get_config`.
    overrides: texts of the form "train.steps=200".
    arg: argument of `get_config`; overrides the one in `name`.

  Raises:
    ConfigError: for a missing file, an unknown key or a wrong type.
  """
  path, values = call(name, "get_config", arg=arg)
  if not hasattr(values, "to_dict"):
    raise ConfigError(
      f"{path}: get_config() must return a ConfigDict, such as "
      f"mico_jax.config.to_config_dict(Config()); got {type(values).__name__}."
    )
  return override(from_config_dict(values), overrides)
