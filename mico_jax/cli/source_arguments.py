"""Arguments that name a data source: --from KIND --path PATH, or --config."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

from mico_jax.cli import common
from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig

NAME = "data"  # of a source that no config names


def add_kind(parser: argparse.ArgumentParser, *, path: bool = True) -> None:
  """Adds --from and --path, and what they need beside --split and the like.

  Args:
    parser: of the command.
    path: whether to add --path; another argument names the data otherwise.
  """
  parser.add_argument(
    "--from",
    dest="kind",
    metavar="KIND",
    help="kind of the data: imagefolder, parquet, webdataset, ... (all kinds: "
    "mico-jax data --help)",
  )
  if path:
    parser.add_argument(
      "--path", metavar="PATH", help="of the data, as data.sources.NAME.path"
    )
  parser.add_argument(
    "--caption",
    action="append",
    default=[],
    metavar="KIND=FIELD",
    help="field that holds a kind of caption; may be repeated",
  )
  parser.add_argument(
    "--option",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="option of the kind, such as images=../val2017; JSON or a text",
  )
  parser.add_argument(
    "--where",
    action="append",
    default=[],
    metavar="FIELD=VALUE",
    help="only samples with this value; may be repeated",
  )


def add_fields(parser: argparse.ArgumentParser) -> None:
  """Adds --split, --field, --root and what is stated of samples."""
  parser.add_argument("--split", default="", help="default: all samples")
  parser.add_argument(
    "--field",
    action="append",
    default=[],
    metavar="KEY=FIELD",
    help="field that holds a modality; may be repeated",
  )
  parser.add_argument(
    "--root", default="", help="folder that paths may not leave"
  )
  parser.add_argument(
    "--depth-unit",
    choices=("metre", "millimetre", "relative"),
    default="",
    help="of depth maps: the same as --unit depth=UNIT",
  )
  add_stated(parser)


def add_stated(parser: argparse.ArgumentParser) -> None:
  """Adds --unit, --rate and --channels."""
  for flag, value, text in (
    ("--unit", "UNIT", "unit of a modality's values, such as depth=millimetre"),
    ("--rate", "HZ", "samples of a modality's series per second"),
    ("--channels", "A,B,C", "names of its channels, in their order"),
  ):
    parser.add_argument(
      flag,
      action="append",
      default=[],
      metavar=f"KEY={value}",
      help=f"{text}, where files do not say it; may be repeated",
    )


def stated_fields(args: argparse.Namespace) -> dict[str, Any]:
  """Fields of `SourceConfig` that --unit, --rate and --channels set.

  Raises:
    ConfigError: for other texts than NAME=VALUE, and rates that are no numbers.
  """
  rates = {}
  for key, text in pairs(args.rate, "--rate", parse=False).items():
    try:
      rates[key] = float(text)
    except ValueError:
      rates[key] = 0.0
    if not 0 < rates[key] < math.inf:
      raise ConfigError(f"--rate {key}={text}: no number of Hz above 0.")
  return {
    "units": pairs(args.unit, "--unit", parse=False),
    "rates": rates,
    "channels": pairs(args.channels, "--channels", parse=False),
  }


def add_source(parser: argparse.ArgumentParser) -> None:
  """Adds all arguments that name a source."""
  common.add_config(parser, required=False)
  parser.add_argument(
    "--source", default="", help="of --config; default: first"
  )
  add_kind(parser)
  add_fields(parser)


# Ending of a path -> kind of its data; a folder may be of several kinds.
_ENDINGS = {
  ".jsonl": "manifest",
  ".tar": "webdataset",
  ".array_record": "array_record",
  ".parquet": "parquet",
  ".csv": "csv",
  ".tsv": "csv",
}


def kind_of(path: str) -> str:
  """The kind of the data at a path, by its ending.

  Raises:
    ConfigError: for another ending, naming those that say it.
  """
  for ending, kind in _ENDINGS.items():
    if path.lower().endswith(ending):
      return kind
  raise ConfigError(
    f"--data {path}: the ending does not say what it is (known: "
    f"{', '.join(_ENDINGS)}); add --from KIND, such as --from imagefolder."
  )


def pairs(texts: Sequence[str], flag: str, *, parse: bool) -> dict[str, Any]:
  """The values of a repeated argument NAME=VALUE.

  Args:
    texts: as given.
    flag: of the argument, for messages.
    parse: whether values that are JSON are parsed.

  Raises:
    ConfigError: for other texts, and for a name given twice.
  """
  values: dict[str, Any] = {}
  for text in texts:
    name, sep, value = text.partition("=")
    if not sep or not name:
      raise ConfigError(f"{flag} {text}: write NAME=VALUE.")
    if name in values:
      raise ConfigError(f"{flag} {name} is given twice.")
    values[name] = value
    if parse:
      try:
        values[name] = json.loads(value)
      except (ValueError, RecursionError):
        values[name] = value
  return values


def spec_of(
  args: argparse.Namespace, kind: str = "", path: str = ""
) -> SourceConfig:
  """Config of the source that --from and --path name.

  Args:
    args: of the command.
    kind: instead of --from.
    path: instead of --path.

  Raises:
    ConfigError: if one of them is missing, or another argument is wrong.
  """
  kind, path = kind or args.kind, path or args.path
  if not kind or not path:
    raise ConfigError("give both --from KIND and --path PATH.")
  return SourceConfig(
    kind=kind,
    path=path,
    root=args.root,
    split=args.split,
    where=pairs(args.where, "--where", parse=True),
    fields=pairs(args.field, "--field", parse=False),
    captions=pairs(args.caption, "--caption", parse=False),
    depth_unit=args.depth_unit,
    **stated_fields(args),
    options=pairs(args.option, "--option", parse=True),
  )


def config_of(args: argparse.Namespace) -> tuple[Config, str]:
  """The config and name of the source that the arguments name.

  Raises:
    ConfigError: if they name none, or two.
  """
  if args.config and (args.kind or args.path):
    raise ConfigError("give --config, or --from and --path, not both.")
  if not args.config:
    spec = spec_of(args)
    return Config(data=DataConfig(sources={NAME: spec})), NAME
  config = common.load_config(args)
  names = list(config.data.sources)
  if not names:
    raise ConfigError("the config has no data.sources.")
  return config, args.source or names[0]
