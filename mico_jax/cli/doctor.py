"""`mico-jax doctor`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common

DESCRIPTION = """\
Shows what this installation has: versions, devices, optional packages, memory
and disk. Put its output into a bug report."""
EXAMPLES = """\
  mico-jax doctor
  mico-jax doctor --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints the report."""
  from mico_jax.run.doctor import report

  found = report()
  if args.json:
    common.print_json(found)
    return 0
  for title, entries in found.items():
    print(title)
    rows = [(f"  {k}", str(v)) for k, v in entries.items()]
    print(common.table(rows))
  return 0
