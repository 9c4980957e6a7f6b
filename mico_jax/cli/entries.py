"""Files, folders, manifests and other data named on a command line."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mico_jax.cli import common, source_arguments
from mico_jax.config import ConfigError
from mico_jax.printing import known_names

if TYPE_CHECKING:
  from mico_jax.inference.omni_model import OmniModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the names, --modality and how other data are read."""
  parser.add_argument(
    "files",
    nargs="*",
    metavar="FILE",
    help="files, folders (all files of known types below them), a manifest "
    "(.jsonl), or - for names on stdin, one a line",
  )
  parser.add_argument(
    "--modality",
    action="append",
    metavar="KEY",
    help="of a manifest or other data, only this modality; may be repeated",
  )
  source_arguments.add_kind(parser)
  source_arguments.add_fields(parser)


def names_of(args: argparse.Namespace) -> list[str]:
  """The names of a command, checked before a model is loaded.

  Raises:
    ConfigError: if there is nothing, for unknown types or modalities, and if
      all files are missing.
  """
  from mico_jax.modalities import MODALITIES

  names = list(args.files)
  if names == ["-"]:
    names = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
  if not (args.kind or args.path or names):
    raise ConfigError("name files, or give --from KIND and --path PATH.")
  if args.kind or args.path:
    source_arguments.spec_of(args)
  names = [file for name in names for file in _expanded(name)]
  files = [name for name in names if not name.endswith(".jsonl")]
  specs = common.parse_files(files)
  if len(files) == len(names) and not (args.kind or args.path):
    common.check_there(specs)
  for key in args.modality or ():
    if key not in MODALITIES:
      raise ConfigError(
        f"--modality {key}: unknown; {known_names(key, MODALITIES)}"
      )
  return names


def _expanded(name: str) -> list[str]:
  """A name, or the files of known types below a folder of that name.

  Texts beside pictures are their captions as a rule, and no items.
  """
  from mico_jax.modalities import MODALITIES, file_spec

  if not os.path.isdir(name):
    return [name]
  files, others = [], 0
  for file in sorted(pathlib.Path(name).rglob("*")):
    if not file.is_file():
      continue
    try:
      known = MODALITIES[file_spec(str(file)).key].kind == "knowledge"
    except ValueError:
      known = False
    if known:
      files.append(str(file))
    others += not known
  if not files:
    raise ConfigError(f"{name}: no file of a known type in this folder.")
  if others:
    common.note(f"{name}: {others} files of other types are left out.")
  return files


def entries_of(
  args: argparse.Namespace, names: Sequence[str], model: OmniModel
) -> list[Any]:
  """The items that a command works on.

  Args:
    args: of the command.
    names: of `names_of`.
    model: that embeds them.
  """
  from mico_jax.modalities import MODALITIES
  from mico_jax.run.commands.entries import file_entries, source_entries

  keys = args.modality or [
    k for k in model.modalities if MODALITIES[k].kind == "knowledge"
  ]
  entries: list[Any] = []
  for name in names:
    if name.endswith(".jsonl"):
      spec = source_arguments.spec_of(args, kind="manifest", path=name)
      entries += source_entries(spec, keys)
    else:
      specs = common.parse_files([name], model.modalities)
      entries += file_entries(specs, len(entries))
  if args.kind or args.path:
    entries += source_entries(source_arguments.spec_of(args), keys)
  return entries
