"""`mico-jax doctor`."""

from __future__ import annotations

import argparse
import os
import sys

from mico_jax.cli import common
from mico_jax.config import ConfigError

DESCRIPTION = """\
Shows what this installation has: versions, devices, optional packages, memory
and disk. Put its output into a bug report. With --pod, called on every host of
a run (launch/tpu_pod.sh doctor), it checks that all are there, have the same
versions and reach each other, and names those that do not. Status 2 if JAX has
no device to compute on."""
EXAMPLES = """\
  mico-jax doctor
  mico-jax doctor --json
  MICO_JAX_COORDINATOR=auto mico-jax doctor --pod --hosts 64"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "--pod", action="store_true", help="check all hosts of a run instead"
  )
  parser.add_argument(
    "--hosts",
    type=int,
    default=0,
    metavar="N",
    help="with --pod: processes that must be there (default: as the "
    "environment says)",
  )
  parser.add_argument(
    "--limit",
    type=float,
    default=60.0,
    metavar="S",
    help="with --pod: seconds for everything (default 60)",
  )
  common.add_json(parser)


def _pod(args: argparse.Namespace) -> int:
  """Prints what is wrong with the pod; ends with 1 if anything is."""
  from mico_jax.parallel.place import find_place
  from mico_jax.run.cluster import pod

  report = pod.check(find_place(hosts=args.hosts), limit=args.limit)
  if args.json:
    common.print_json(report)
  else:
    common.say(
      f"{report['seen']} of {report['expected']} hosts in "
      f"{report['seconds']} s: {', '.join(report['hosts'])}"
    )
    for line in report["problems"]:
      common.say(line)
    if not report["problems"]:
      common.say("versions are equal; a collective over all devices works")
  sys.stdout.flush()
  if report["problems"]:
    os._exit(1)  # leaving JAX in order would wait for the missing host
  return 0


def run(args: argparse.Namespace) -> int:
  """Prints the report."""
  if args.pod:
    return _pod(args)
  from mico_jax.run.commands import doctor

  report = doctor.report()
  if args.json:
    common.print_json(report)
  else:
    for title, entries in report.items():
      common.say(title)
      rows = [(f"  {k}", str(v)) for k, v in entries.items()]
      common.say_page(common.table(rows))
  if problem := report["devices"].get(doctor.PROBLEM):
    raise ConfigError(problem)
  return 0
