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
import tomllib
from collections.abc import Mapping
from importlib.resources.abc import Traversable

from etils import epath

from mico_jax.config import ConfigError, from_dict
from mico_jax.evaluation.protocols.schema import (
  TASKS,
  BenchmarkProtocol,
  check,
)

_ENDING = ".toml"

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
    close = difflib.get_close_matches(name.lower()[:100], files, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(
      f"no protocol {name[:100]!r}.{hint} `mico-jax evaluate --list` shows all "
      f"{len(files)}; a file of your own ends in {_ENDING}."
    )
  return f"{name}{_ENDING}", files[name].read_bytes()


def read_protocol(data: bytes, where: str) -> BenchmarkProtocol:
  """A protocol from the content of its file.

  Args:
    data: TOML.
    where: name of the file, for messages.

  Raises:
    ConfigError: naming the file and the field that is wrong.
  """
  try:
    fields = tomllib.loads(data.decode())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise ConfigError(f"{where}: not TOML: {error}.") from error
  required = ("title", "task", "group", "metric", "metrics", "copy", "split",
              "annotations")  # fmt: skip
  missing = [name for name in required if name not in fields]
  if missing:
    raise ConfigError(f"{where}: {', '.join(missing)}: missing.")
  for number, figure in enumerate(fields.get("figures", ())):
    lacks = {"metric", "value", "model", "setting", "source"} - set(figure)
    if lacks:
      raise ConfigError(
        f"{where}: figures[{number}].{', '.join(sorted(lacks))}: missing."
      )
  try:
    protocol = from_dict(fields, BenchmarkProtocol)
    check(protocol)
  except ConfigError as error:
    raise ConfigError(f"{where}: {error}") from None
  return protocol


def load_protocol(name: str) -> BenchmarkProtocol:
  """A protocol by its name, or by the path of its file.

  Raises:
    ConfigError: for an unknown name, with those that are alike; for a file that
      is wrong, naming the field.
  """
  where, data = _read(name)
  return read_protocol(data, where)


def protocol_sha256(name: str) -> str:
  """SHA-256 of the file of a protocol."""
  return hashlib.sha256(_read(name)[1]).hexdigest()
