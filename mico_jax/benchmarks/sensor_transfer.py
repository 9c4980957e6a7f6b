r"""Does omni-modal pretraining help a sensor that it never saw?

    python -m mico_jax.benchmarks.sensor_transfer --init runs/demo \
      perception/imu_basicmotions:PATH/manifest.jsonl

Each set is a config that takes a manifest and, behind a comma, "validation". It
is trained from scratch and from the tower of the checkpoint: whole, by low-rank
deltas, and frozen (`mico_jax.benchmarks.sensor_transfer_plan`).

The learning rate of each arm is the one of `--rates` that is best on the
validation part of the training samples; the test samples are measured once, by
several seeds. Both are sweeps in one folder (`mico_jax.run.sweep`): the same
command goes on where it stopped.

What it does not show: a set may be so easy that all arms solve it, and arms
that need more steps than a set has are cut short. Wider towers may behave
otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mico_jax.benchmarks import sensor_transfer_table as table_lib
from mico_jax.benchmarks.sensor_transfer_plan import (
  ARMS,
  BASE,
  RATES,
  Settings,
  choosing,
  chosen_rates,
  measuring,
)
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.checkpoint.restore import open_checkpoint
from mico_jax.config import ConfigError
from mico_jax.run.monitor.progress import say
from mico_jax.run.sweep import plan as plan_lib
from mico_jax.run.sweep import runner, table
from mico_jax.run.sweep.plan import SweepConfig
from mico_jax.run.sweep.results import Found, gather


def run_sweep(
  sweep: SweepConfig, out: str, *, jobs: int, start: runner.Start | None = None
) -> tuple[plan_lib.Plan, Found]:
  """Trains what is missing and reads all results.

  Raises:
    ConfigError: if a run failed.
    KeyboardInterrupt: if a signal stopped it.
  """
  plan = plan_lib.plan_of(sweep)
  if start is None:
    plan_lib.check_runs(plan)
  runs = list(plan.runs.values())
  outcome = runner.train(runs, out, jobs=jobs, start=start)
  if outcome.stopped:
    raise KeyboardInterrupt("stopped; the same command goes on from here.")
  if outcome.failed:
    first = outcome.failed[0]
    raise ConfigError(
      f"{len(outcome.failed)} of {len(runs)} runs failed; the first, "
      f"{first.name}: {first.reason} (see {first.log})"
    )
  return plan, gather(plan, out)


def compare(
  settings: Settings,
  out: str,
  *,
  jobs: int = 1,
  start: runner.Start | None = None,
  command: str = "",
) -> table_lib.Comparison:
  """Chooses the rates, trains all arms, and compares them.

  Args:
    settings: what is compared.
    out: folder of all runs.
    jobs: processes at a time.
    start: starts the process of a run; None: as a sweep does.
    command: stored with what is found.

  Raises:
    ConfigError: for sets that do not fit, and runs that fail.
  """
  say("choosing learning rates on validation parts")
  _, tried = run_sweep(choosing(settings), out, jobs=jobs, start=start)
  rates = chosen_rates(tried, settings)
  for name, chosen in rates.items():
    told = ", ".join(f"{arm} {rate:g}" for arm, rate in chosen.items())
    say(f"{name}: {told}")
  plan, found = run_sweep(
    measuring(settings, rates), out, jobs=jobs, start=start
  )
  about = {arm: ARMS[arm].about for arm in settings.arms}
  return table_lib.compared(
    plan, found, tried, out, rates=rates, about=about, command=command
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m mico_jax.benchmarks.sensor_transfer",
    description="Whether a pretrained tower helps a sensor it never saw.",
  )
  parser.add_argument(
    "sets", nargs="+", metavar="CONFIG:MANIFEST", help="such as perception/..."
  )
  parser.add_argument(
    "--init", required=True, metavar="CKPT", help="the pretrained checkpoint"
  )
  parser.add_argument("--out", default="runs/sensor_transfer", metavar="DIR")
  parser.add_argument(
    "--steps", type=int, default=0, help="of each run (default: the set's own)"
  )
  parser.add_argument(
    "--arms",
    default=",".join(ARMS),
    help=f"by commas, {BASE} among them (default: all: {', '.join(ARMS)})",
  )
  parser.add_argument(
    "--rates",
    default=",".join(f"{rate:g}" for rate in RATES),
    help="learning rates to choose from, by commas (default: %(default)s)",
  )
  parser.add_argument(
    "--seeds", type=int, default=3, metavar="N", help="seeds 0 to N - 1"
  )
  parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
  parser.add_argument(
    "--dry-run", action="store_true", help="show the runs that choose the rates"
  )
  return parser


def settings_of(args: argparse.Namespace) -> Settings:
  """What the arguments ask for.

  Raises:
    ConfigError: for an unknown arm, rates that are no numbers, or sets without
      a manifest.
  """
  asked = [name.strip() for name in args.arms.split(",") if name.strip()]
  arms = tuple(plan_lib.chosen(ARMS, asked, "arm"))
  if BASE not in arms:
    raise ConfigError(f"--arms {args.arms}: add {BASE}, as all are compared.")
  try:
    rates = tuple(float(rate) for rate in args.rates.split(","))
  except ValueError:
    raise ConfigError(f"--rates {args.rates}: expected numbers.") from None
  for name in args.sets:
    if ":" not in name:
      raise ConfigError(f"{name}: write {name}:PATH/manifest.jsonl.")
  if args.seeds < 1 or args.jobs < 1 or args.steps < 0:
    raise ConfigError(
      "--seeds and --jobs must be 1 or more, --steps 0 or more."
    )
  like = open_checkpoint(args.init, arrays=False).config
  return Settings(
    init=args.init,
    like=like,
    sets=tuple(args.sets),
    arms=arms,
    rates=rates,
    seeds=tuple(range(args.seeds)),
    steps=args.steps,
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Compares the arms on each set."""
  args = _parser().parse_args(argv)
  words = sys.argv[1:] if argv is None else argv
  command = f"python -m mico_jax.benchmarks.sensor_transfer {' '.join(words)}"
  try:
    settings = settings_of(args)
    if args.dry_run:
      plan = plan_lib.plan_of(choosing(settings))
      print(table.of_runs(plan, args.out))
      more = len(settings.sets) * len(settings.arms) * len(settings.seeds)
      print(f"then {more} runs with the rates that they choose")
      return 0
    done = compare(settings, args.out, jobs=args.jobs, command=command)
  except (ConfigError, CheckpointError) as error:
    say(f"error: {error}")
    return 2
  except KeyboardInterrupt as stop:
    say(str(stop) or "stopped")
    return 130
  table_lib.write(done, args.out)
  print(done.text())
  return 0


if __name__ == "__main__":
  sys.exit(main())
