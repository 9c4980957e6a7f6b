"""Configs as dataclasses, dicts, `ConfigDict` and JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mico_jax.config.training import Config

if typing.TYPE_CHECKING:
  import ml_collections

T = TypeVar("T")


class ConfigError(ValueError):
  """A user's mistake in a config or on the command line."""


def to_dict(config: Any) -> dict[str, Any]:
  """A plain nested dict of a config dataclass (tuples stay tuples)."""

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
  """The `ConfigDict` that config files edit."""
  import ml_collections

  return ml_collections.ConfigDict(to_dict(config), convert_dict=True)


def to_json(config: Config) -> str:
  """Stable JSON text of a config: what checkpoints store and hash."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True)


def _check(value: Any, hint: Any, path: str) -> Any:
  """Returns `value` as the type `hint` asks for, or raises ConfigError."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is Any:
    return value
  if origin in (types.UnionType, typing.Union):
    if value is None and type(None) in args:
      return None
    return _check(value, next(a for a in args if a is not type(None)), path)
  if dataclasses.is_dataclass(hint):
    return _build(typing.cast(type, hint), value, path)
  if origin is Mapping:
    if not isinstance(value, Mapping):
      raise ConfigError(f"{path}: expected a mapping, got {value!r}.")
    return {str(k): _check(v, args[1], f"{path}.{k}") for k, v in value.items()}
  if origin is tuple:
    if isinstance(value, str) or not isinstance(value, Sequence):
      raise ConfigError(f"{path}: expected a tuple, got {value!r}.")
    return tuple(
      _check(v, args[0], f"{path}[{i}]") for i, v in enumerate(value)
    )
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (
    isinstance(value, bool) and hint is not bool
  ):
    raise ConfigError(
      f"{path}: expected {hint.__name__}, got {value!r} "
      f"({type(value).__name__})."
    )
  return value


def _build(cls: type[T], values: Any, path: str) -> T:
  if dataclasses.is_dataclass(values):
    values = to_dict(values)
  if not isinstance(values, Mapping):
    raise ConfigError(
      f"{path or 'config'}: expected a mapping, got {values!r}."
    )
  hints = typing.get_type_hints(cls)
  unknown = [k for k in values if k not in hints]
  if unknown:
    key = str(unknown[0])
    close = difflib.get_close_matches(key, hints, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
      f"unknown config key {f'{path}.{key}'.lstrip('.')!r}.{hint} "
      f"Known keys here: {', '.join(sorted(hints))}."
    )
  return cls(
    **{
      k: _check(v, hints[k], f"{path}.{k}".lstrip("."))
      for k, v in values.items()
    }
  )


def from_dict(values: Mapping[str, Any], cls: type[T] = Config) -> T:
  """Builds a checked dataclass from nested dicts; missing keys take defaults.

  Raises:
    ConfigError: naming the first unknown key or wrong type.
  """
  return _build(cls, values, "")


def from_config_dict(values: ml_collections.ConfigDict) -> Config:
  """Turns the `ConfigDict` of a config file into a checked `Config`."""
  return from_dict(values.to_dict())
