"""`mico-jax report`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common

DESCRIPTION = """\
Makes one page of one or several evaluations: results side by side with their
intervals, coverage and published figures, curves of the runs, and single
queries with pictures, spectrograms, sounds and scores. The page is one HTML
file that loads nothing from anywhere."""
EXAMPLES = """\
  mico-jax report runs/demo --out report.html
  mico-jax evaluate --checkpoint runs/demo --out results/demo
  mico-jax report results/demo results/b/evaluation.json --out report.html"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "results",
    nargs="+",
    metavar="RESULTS",
    help="folders of `evaluate --out` or workdirs of runs, or their "
    "evaluation.json",
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help="HTML file to write",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the page."""
  from mico_jax.run.commands.result_page import write_page

  common.say(write_page(args.results, args.out))
  return 0
