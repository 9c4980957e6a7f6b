"""`mico-jax trace`."""

from __future__ import annotations

import argparse
import dataclasses
import os

from mico_jax.cli import common

DESCRIPTION = """\
Lists the samples that a step of a run trained on, with the substitutes of
broken ones. Needs only the workdir's config and the data: no checkpoint."""
EXAMPLES = """\
  mico-jax trace --workdir runs/demo --step 120
  mico-jax trace --workdir runs/demo --step 120 --show --out step120.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument("--workdir", required=True, metavar="DIR")
  parser.add_argument("--step", required=True, type=int, metavar="N")
  parser.add_argument(
    "--show",
    action="store_true",
    help="draw the samples to a PNG, without augmentation",
  )
  parser.add_argument(
    "--out",
    metavar="FILE",
    help="of --show (default: WORKDIR/trace-STEP.png)",
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints one line per row of the global batch."""
  from mico_jax.run.commands.sample_trace import trace_step

  picture = None
  if args.show:
    name = f"trace-{args.step}.png"
    picture = args.out or os.path.join(args.workdir, name)
  trace = trace_step(args.workdir, args.step, picture=picture)
  if args.json:
    common.print_json(dataclasses.asdict(trace))
  else:
    common.say(f"step {trace.step}: task {trace.task}")
    rows = [
      (
        r.row,
        r.source,
        r.epoch,
        r.asked,
        r.id,
        f"{r.substituted} ({r.source}[{r.index}])" if r.substituted else "",
        r.reason,
      )
      for r in trace.rows
    ]
    header = (
      *("row", "source", "epoch", "index", "id", "used instead", "reason"),
    )
    common.say_page(common.table(rows, header))
  if picture:
    common.note(f"drawn to {picture}")
  return 0
