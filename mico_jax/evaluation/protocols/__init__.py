"""Protocols of public benchmarks, one TOML file each, and how they are loaded.

To add one, write `mico_jax/evaluation/protocols/<name>.toml` with the fields of
`mico_jax.evaluation.protocols.schema`; the command line, the reference page and
the tests find it by its name. A file elsewhere is named by its path.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.resources
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from typing import Any

from etils import epath

from mico_jax.config import ConfigError, from_dict
from mico_jax.evaluation.protocols.schema import (
  TASKS,
  BenchmarkProtocol,
  check,
)

_ENDING = ".toml"
_REQUIRED = ("title", "task", "group", "metric", "metrics", "copy", "split",
             "annotations")  # fmt: skip
_OF_FIGURE = ("metric", "value", "model", "setting", "source")

__all__ = [
  "TASKS",
  "BenchmarkProtocol",
  "load_protocol",
  "protocol_sha256",
  "protocols",
  "read_protocol",
]


@functools.cache
def _files() -> Mapping[str, Traversable]:
  folder = importlib.resources.files(__name__)
  return {
    entry.name.removesuffix(_ENDING): entry
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
    if entry.name.endswith(_ENDING)
  }


def protocols() -> tuple[str, ...]:
  """Names of the protocols, sorted."""
  return tuple(_files())


def _read(name: str) -> tuple[str, bytes]:
  """Where a protocol stands, and its content.

  Raises:
    ConfigError: for an unknown name or a file that cannot be read.
  """
  if name.endswith(_ENDING):
    try:
      return name, epath.Path(name).read_bytes()
    except OSError as error:
      raise ConfigError(
        f"--protocol {name}: cannot be read ({error.strerror or error})."
      ) from error
  files = _files()
  if name not in files:
    close = difflib.get_close_matches(
      name.lower()[:100], files, n=3, cutoff=0.5
    )
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(
      f"no protocol {name[:100]!r}.{hint} `mico-jax evaluate --list` shows all "
      f"{len(files)}; a file of your own ends in {_ENDING}."
    )
  return f"{name}{_ENDING}", files[name].read_bytes()


def _fields(data: bytes, where: str) -> dict[str, Any]:
  """The fields of a file, and of the protocol that it names as its base.

  Raises:
    ConfigError: for a file that is no TOML, or a base that has a base.
  """
  try:
    fields = tomllib.loads(data.decode())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise ConfigError(f"{where}: not TOML: {error}.") from error
  base = fields.pop("base", None)
  if base is None:
    return fields
  if not isinstance(base, str) or base not in _files():
    raise ConfigError(f"{where}: base={base!r} is no protocol.")
  under = tomllib.loads(_files()[base].read_text())
  if "base" in under:
    raise ConfigError(f"{where}: base={base!r} has a base itself.")
  return _over(under, fields)


def _over(
  under: Mapping[str, Any], fields: Mapping[str, Any]
) -> dict[str, Any]:
  """Fields over those of a base; tables are joined, except of named entries."""
  whole = ("metrics", "frames")
  # Figures are of metrics.
  lost = ("figures",) if "metrics" in fields else ()
  out = {name: value for name, value in under.items() if name not in lost}
  for name, value in fields.items():
    if isinstance(value, Mapping) and name in out and name not in whole:
      out[name] = _over(out[name], value)
    else:
      out[name] = value
  return out


def read_protocol(data: bytes, where: str) -> BenchmarkProtocol:
  """A protocol from the content of its file.

  Args:
    data: TOML; `base` names a protocol whose fields it takes over.
    where: name of the file, for messages.

  Raises:
    ConfigError: naming the file and the field that is wrong.
  """
  fields = _fields(data, where)
  _check_present(fields, _REQUIRED, where)
  for number, figure in enumerate(fields.get("figures", ())):
    if isinstance(figure, Mapping):
      _check_present(figure, _OF_FIGURE, f"{where}: figures[{number}]")
  try:
    protocol = from_dict(fields, BenchmarkProtocol)
    check(protocol)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from None
  return protocol


def _check_present(
  fields: Mapping[str, Any], names: Sequence[str], where: str
) -> None:
  missing = [name for name in names if name not in fields]
  if missing:
    raise ConfigError(f"{where}: {', '.join(missing)}: missing.")


def load_protocol(name: str) -> BenchmarkProtocol:
  """A protocol by its name, or by the path of its file.

  Raises:
    ConfigError: for an unknown name, with those that are alike; for a file that
      is wrong, naming the field.
  """
  where, data = _read(name)
  return read_protocol(data, where)


def protocol_sha256(name: str) -> str:
  """SHA-256 of what a protocol says, its base included."""
  where, data = _read(name)
  text = json.dumps(_fields(data, where), sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()
