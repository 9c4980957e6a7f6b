"""`mico-jax inspect`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common
from mico_jax.config import ConfigError, to_json

DESCRIPTION = """\
Shows what a checkpoint or a config holds: config, parameter table with counts,
versions, preprocessing. Reads no arrays and allocates none."""
EXAMPLES = """\
  mico-jax inspect --checkpoint runs/demo
  mico-jax inspect --config demo --config.model.vision.depth=12
  mico-jax inspect --checkpoint runs/demo --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--checkpoint", metavar="PATH", help="workdir or step folder"
  )
  what.add_argument(
    "--config", metavar="NAME", help="packaged config or .py file"
  )
  parser.add_argument(
    "--no-table", action="store_true", help="counts only, no parameter table"
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints config, parameters and the rest."""
  from mico_jax.run import inspect

  if args.checkpoint:
    if args.overrides:
      raise ConfigError("--config.x=y belongs to --config, not --checkpoint.")
    found = inspect.of_checkpoint(args.checkpoint)
  else:
    found = inspect.of_config(common.load_config(args))
  if args.json:
    common.print_json(found.as_dict())
    return 0
  print(to_json(found.config))
  if not args.no_table:
    print(found.overview())
  print(common.table([(k, f"{v:,}") for k, v in found.counts().items()]))
  for name, value in found.about.items():
    if isinstance(value, dict):
      print(f"{name}:")
      print(common.table([(f"  {k}", str(v)) for k, v in value.items()]))
    else:
      print(f"{name}: {value}")
  return 0
