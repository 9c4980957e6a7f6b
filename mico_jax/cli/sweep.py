"""`mico-jax sweep`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common
from mico_jax.config import ConfigError

DESCRIPTION = """\
Trains the runs that a config file's get_sweep() asks for, each an ordinary
workdir in a process of its own, and draws its panels: averages of the named
results with 95% intervals over seeds and items, losses beside, and power laws
that are fitted on the small sizes and must predict the largest.

The same command again goes on where it stopped: runs that have their result
are left alone, others resume. Writes sweep.json, sweep.txt and sweep.png."""
EXAMPLES = """\
  mico-jax sweep --config scaling --dry-run
  mico-jax sweep --config scaling --jobs 2
  mico-jax sweep --config scaling --panels data,model.64 --out runs/scaling
  mico-jax sweep --config scaling --launcher "srun --gres=gpu:1" --jobs 8
  mico-jax sweep --config scaling:PATH/grid_av/manifest.jsonl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_config(parser, required=False)
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="folder of the runs and of what they show (default: runs/NAME of the "
    "config)",
  )
  parser.add_argument(
    "--panels",
    metavar="NAMES",
    default="",
    help="panels, or points as PANEL.POINT, separated by commas (default: all)",
  )
  parser.add_argument(
    "--jobs",
    type=common.positive_int,
    default=1,
    metavar="N",
    help="runs at a time (default: 1)",
  )
  parser.add_argument(
    "--launcher",
    default="",
    metavar="COMMAND",
    help="put in front of the command of each run",
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="show the runs and train none"
  )
  parser.add_argument(
    "--run",
    dest="folder",  # `run` is the command itself
    metavar="DIR",
    help="train the one run that a sweep planned in this folder, as it does "
    "itself",
  )
  common.add_json(parser)


def _one(args: argparse.Namespace) -> int:
  """Trains a single run."""
  if args.config:
    raise ConfigError("--run takes its config from the folder; drop --config.")
  from mico_jax.cli.compiled import keep_step
  from mico_jax.parallel import distributed
  from mico_jax.parallel.backend import require_backend
  from mico_jax.run.sweep.worker import planned_config, work

  config = planned_config(args.folder)
  distributed.initialize_from_env()
  require_backend()
  keep_step(config, args.folder)
  with common.warnings_as_lines():
    return work(args.folder, command=args.command_line)


def run(args: argparse.Namespace) -> int:
  """Trains what is missing and shows all panels."""
  if args.folder:
    return _one(args)
  if not args.config:
    raise ConfigError("--config NAME is missing: it describes the sweep.")
  from mico_jax.run.sweep import plan as plan_lib
  from mico_jax.run.sweep import runner, table

  names = [name.strip() for name in args.panels.split(",") if name.strip()]
  plan = plan_lib.make_plan(args.config, names, overrides=args.overrides)
  first = next(iter(plan.runs.values()))
  out = args.out or f"runs/{first.config.name}"
  if args.dry_run:
    common.say_page(table.of_runs(plan, out))
    return 0
  plan_lib.check_runs(plan)
  outcome = runner.train(
    list(plan.runs.values()), out, jobs=args.jobs, launcher=args.launcher
  )
  for failure in outcome.failed:
    common.note(f"failed: {failure.name}, {failure.reason}; see {failure.log}")
  if outcome.stopped:
    common.note("stopped; the same command goes on from here.")
    return outcome.stopped
  from mico_jax.run.sweep.results import gather
  from mico_jax.run.sweep.written import write

  found = gather(plan, out, command=args.command_line)
  write(found, out)
  if args.json:
    common.print_json(found.as_dict())
  else:
    common.say_page(table.of_panels(found))
  return 1 if outcome.failed else 0
