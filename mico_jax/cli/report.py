"""`mico-jax report`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common

DESCRIPTION = """\
Makes one page of one or several evaluations: results side by side with their
intervals, coverage and published figures, curves of the runs, and single
queries with pictures, spectrograms, sounds and scores. The page is one HTML
file that loads nothing from anywhere. With a name that ends in .png it is the
picture of one run, report.png as training draws it at its end."""
EXAMPLES = """\
  mico-jax report runs/demo --out report.html
  mico-jax report runs/demo --out runs/demo/report.png
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
    help="HTML file to write, or a PNG of one run",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the page or the picture."""
  if args.out.lower().endswith(".png"):
    return _draw(args.results, args.out)
  from mico_jax.run.commands.result_page import write_page

  common.say(write_page(args.results, args.out))
  return 0


def _draw(results: list[str], out: str) -> int:
  """Draws the picture of one run.

  Raises:
    ConfigError: for several folders, or one of no run.
  """
  from mico_jax.config import ConfigError
  from mico_jax.run.monitor.report import write_report

  if len(results) > 1:
    raise ConfigError(
      f"--out {out}: a picture shows one run, got {len(results)}; take an HTML "
      "file for several."
    )
  try:
    common.say(str(write_report(results[0], out)))
  except ValueError as error:
    raise ConfigError(f"{results[0]}: {error}") from None
  return 0
