"""`mico-jax inspect`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common
from mico_jax.config import ConfigError, to_json

DESCRIPTION = """\
Shows what a checkpoint or a config holds: a summary, the whole config, a table
of parameters with counts, versions, preprocessing. Reads no arrays and
allocates none."""
EXAMPLES = """\
  mico-jax inspect --checkpoint runs/demo
  mico-jax inspect --config demo --config.model.vision.depth=12
  mico-jax inspect --checkpoint runs/demo --json
  mico-jax inspect --config demo --sharding sharding.png --devices 8 \\
    --config.parallel.rules=fsdp --config.parallel.mesh={'fsdp':-1}"""

MOST_DEVICES = 1024  # stand-ins, each of which takes memory and time


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--checkpoint", metavar="PATH", help="workdir or step folder"
  )
  what.add_argument(
    "--config",
    metavar="NAME",
    help="packaged config or .py file, which is run as a program",
  )
  parser.add_argument(
    "--no-table", action="store_true", help="counts only, no parameter table"
  )
  parser.add_argument(
    "--sharding",
    metavar="PNG",
    help="print which device holds what part of parameters and optimizer "
    "state of the config's mesh, and draw it into this file",
  )
  parser.add_argument(
    "--devices",
    type=common.at_most(MOST_DEVICES),
    metavar="N",
    help="with --sharding: lay out for N devices instead of this machine's "
    f"(at most {MOST_DEVICES})",
  )
  common.add_json(parser)


def _sharding(args: argparse.Namespace) -> int:
  """Prints and draws the shardings of a config."""
  import jax

  config = common.load_config(args)
  if args.devices:
    # Stand-ins on the CPU: only their numbers and places matter.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
  from mico_jax.run.commands import sharding_view

  view = sharding_view.view(config)
  view.draw(args.sharding)
  if args.json:
    common.print_json(view.as_dict())
    return 0
  common.say_page(common.table(view.lines()))
  for name, rows in view.rows.items():
    common.say(f"task {name}: {rows} rows on a device")
  return 0


def run(args: argparse.Namespace) -> int:
  """Prints config, parameters and the rest."""
  if args.sharding:
    if not args.config:
      raise ConfigError("--sharding needs --config.")
    return _sharding(args)
  if args.devices:
    raise ConfigError("--devices belongs to --sharding.")
  from mico_jax.run.commands import describe

  if args.checkpoint:
    if args.overrides:
      raise ConfigError("--config.x=y belongs to --config, not --checkpoint.")
    description = describe.of_checkpoint(args.checkpoint)
  else:
    description = describe.of_config(common.load_config(args))
  if args.json:
    common.print_json(description.as_dict())
    return 0
  common.say_page(common.table(description.summary()))
  common.say("")
  common.say_page(to_json(description.config))
  if not args.no_table:
    common.say_page(description.overview())
  common.say_page(
    common.table([(k, f"{v:,}") for k, v in description.counts().items()])
  )
  for name, value in description.about.items():
    if isinstance(value, dict):
      common.say(f"{name}:")
      common.say_page(
        common.table([(f"  {k}", str(v)) for k, v in value.items()])
      )
    else:
      common.say(f"{name}: {value}")
  return 0
