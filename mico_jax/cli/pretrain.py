"""`mico-jax pretrain`."""

from __future__ import annotations

import argparse
import dataclasses

from mico_jax.cli import common, compiled
from mico_jax.config import ConfigError

DESCRIPTION = """\
Trains a model. The run lives in a workdir: the same command again resumes it
at the newest checkpoint that verifies; Ctrl-C or SIGTERM saves first."""
EXAMPLES = """\
  mico-jax pretrain --config demo
  mico-jax pretrain --config demo --workdir runs/short --config.train.steps=200
  mico-jax pretrain --config demo --init runs/demo --workdir runs/tuned"""


def details() -> str:
  """The transforms, as they describe themselves."""
  from mico_jax.modalities.transforms import TRANSFORMS

  entries = {name: kind.summary() for name, kind in TRANSFORMS.items()}
  return "\n".join(
    [
      "transforms of training samples (--config.tasks.NAME.augment="
      "\"{'flip': {}}\"):",
      *common.entries(entries),
    ]
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_config(parser)
  parser.add_argument(
    "--workdir",
    metavar="DIR",
    help="folder of the run (default: runs/NAME of the config)",
  )
  parser.add_argument(
    "--init",
    metavar="CKPT",
    help="start from the parameters of this workdir or checkpoint (a path, "
    "packaged weights or hf://owner/name); position and frame tables are "
    "resized, new heads listed",
  )
  parser.add_argument(
    "--profile-steps",
    metavar="A,B",
    help="write a profiler trace of steps A to B into the workdir",
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Trains and prints the final results."""
  if args.profile_steps:
    first, sep, last = args.profile_steps.partition(",")
    if not sep or not (first.isdigit() and last.isdigit()):
      raise ConfigError(f"--profile-steps {args.profile_steps}: write A,B.")
    if int(first) > int(last):
      raise ConfigError(
        f"--profile-steps {args.profile_steps}: ends before it begins."
      )
    args.overrides.append(f"train.profile_steps=({first}, {last})")
  config = common.load_config(args)
  from mico_jax.data.input_checks import check_inputs
  from mico_jax.parallel import distributed
  from mico_jax.parallel.backend import require_backend
  from mico_jax.run.checks import check_values

  # Names of tables and transforms are looked up before a device is asked for.
  check_values(config)
  check_inputs(config)
  workdir = args.workdir or f"runs/{config.name}"
  distributed.initialize_from_env()  # set by launch/*.sh
  require_backend()
  compiled.keep_step(config, workdir)
  from mico_jax.run.pretrain import pretrain

  with common.warnings_as_lines():
    summary = pretrain(
      config, workdir, init=args.init, command=args.command_line
    )
  if args.json:
    from mico_jax.evaluation import to_rows

    common.print_json(
      {
        "workdir": summary.workdir,
        "step": summary.step,
        "metrics": dict(summary.metrics),
        "results": to_rows(summary.results),
        "seconds": dataclasses.asdict(summary.clock),
        "recompiles": summary.recompiles,
      }
    )
  elif summary.results:
    from mico_jax.evaluation import table

    common.say_page(table(summary.results))
  else:
    common.say(
      f"{summary.workdir}: step {summary.step} of {config.train.steps}"
    )
  return summary.exit_code
