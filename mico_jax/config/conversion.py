"""Conversion of configs between dataclasses, dicts, `ConfigDict` and JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from mico_jax.config.fields import ConfigError, Declaration, Keys
from mico_jax.config.training import Config
from mico_jax.printing import did_you_mean, escaped, shown

if typing.TYPE_CHECKING:
  import ml_collections

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
  """Converts a config dataclass to nested dicts (tuples stay tuples)."""

  def convert(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
      return {
        f.name: convert(getattr(value, f.name))
        for f in dataclasses.fields(value)
      }
    if isinstance(value, Mapping):
      return {k: convert(v) for k, v in value.items()}
    return value

  return convert(config)


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
  """Converts a config dataclass to a `ConfigDict` (of a config file)."""
  import ml_collections

  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def to_json(config: Config) -> str:
  """Stable JSON text of a config, which checkpoints store and hash."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True)


# Expected values of fields without a declaration.
_EXPECTED = {bool: "True or False", int: "an integer", float: "a number"}


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
  """Types of the fields of a dataclass, with their declarations."""
  return typing.get_type_hints(cls, include_extras=True)


def _wrong(path: str, value: Any, expected: str) -> ConfigError:
  return ConfigError(
    f"{escaped(path) or 'config'}={shown(value)}: expected {expected}."
  )


def _has_type(value: Any, hint: Any) -> bool:
  """Whether a value has a plain type; True and 3.0 are no integers."""
  if hint is float:
    hint = (int, float)
  return isinstance(value, hint) and (
    hint is bool or not isinstance(value, bool)
  )


def _check(value: Any, hint: Any, path: str) -> Any:
  """Converts a value to the declared type, or raises ConfigError."""
  declared: tuple[Declaration, ...] = ()
  if typing.get_origin(hint) is Annotated:
    hint, *rest = typing.get_args(hint)
    declared = tuple(rest)
  if dataclasses.is_dataclass(hint):
    return _build(typing.cast(type, hint), value, path)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is Mapping:
    if not isinstance(value, Mapping):
      raise _wrong(path, value, "a mapping")
    checked: Any = {
      _check(k, args[0], f"{path}: key"): _check(v, args[1], f"{path}.{k}")
      for k, v in value.items()
    }
  elif origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise _wrong(path, value, "a tuple")
    checked = tuple(
      _check(v, args[0], f"{path}[{i}]") for i, v in enumerate(value)
    )
  else:
    listed = isinstance(value, (tuple, list))
    if listed and any(isinstance(rule, Keys) for rule in declared):
      value = ",".join(map(str, value))
    checked = value
    if hint is not Any and not _has_type(value, hint):
      expected = _EXPECTED.get(hint, "text")
      if declared:
        expected = declared[0].expected
      raise _wrong(path, value, expected)
  for rule in declared:
    if not rule.accepts(checked):
      raise _wrong(path, value, rule.expected)
  return float(value) if hint is float else checked


def _build(cls: type[T], values: Any, path: str) -> T:
  if dataclasses.is_dataclass(values):
    values = to_dict(values)
  if not isinstance(values, Mapping):
    raise _wrong(path, values, "a mapping")
  declared = _hints(cls)
  hints = {
    f.name: declared[f.name] for f in dataclasses.fields(typing.cast(Any, cls))
  }
  unknown = [k for k in values if k not in hints]
  if unknown:
    name = str(unknown[0])
    hint = did_you_mean(name, hints)
    raise ConfigError(
      f"unknown config key {shown(f'{path}.{name}'.lstrip('.'))}.{hint} "
      f"Known keys here: {', '.join(sorted(hints))}."
    )
  return cls(
    **{
      k: _check(v, hints[k], f"{path}.{k}".lstrip("."))
      for k, v in values.items()
    }
  )


def check(config: Any) -> None:
  """Checks every field of a config that was made in Python.

  Raises:
    ConfigError: naming the first field with a value out of its range.
  """
  _build(type(config), config, "")


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
  """Yields path, value and declared type of each field, also nested ones."""
  hints = _hints(type(config))
  for f in dataclasses.fields(config):
    name, value = f"{path}.{f.name}".lstrip("."), getattr(config, f.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, name)
      continue
    yield name, value, hints[f.name]
    if isinstance(value, Mapping):
      for entry_name, entry in value.items():
        if dataclasses.is_dataclass(entry):
          yield from leaves(entry, f"{name}.{entry_name}")


def from_dict(
  values: Mapping[str, Any], cls: type[T] = Config, *, where: str = ""
) -> T:
  """Builds a checked dataclass from nested dicts; missing keys take defaults.

  Also makes the options of an entry of a table (a data source, an objective, an
  evaluator) from the mapping that a config holds for it.

  Args:
    values: nested as the dataclass.
    cls: the dataclass.
    where: field of the config that holds `values`, such as
      "data.sources.train.options"; errors begin with it.

  Raises:
    ConfigError: naming the first unknown key, wrong type or value out of its
      range.
  """
  try:
    return _build(cls, values, "")
  except ConfigError as error:
    if not where:
      raise
    raise ConfigError(f"{where}: {error}") from None


def from_config_dict(values: ml_collections.ConfigDict) -> Config:
  """Converts the `ConfigDict` of a config file to a checked `Config`.

  Raises:
    ConfigError: as `from_dict`.
  """
  return from_dict(values.to_dict())
