"""`mico-jax plan`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mico_jax.cli import common
from mico_jax.config import ConfigError, stages_of

if TYPE_CHECKING:
  from mico_jax.plan.planner import Plan

DESCRIPTION = """\
Compiles every task's training step, the evaluation and the creation of the
state for TPUs or GPUs that need not be there, and says whether it fits, what it
costs and how long it takes. TPU slices need the extra `aot` (libtpu), GPUs the
extra `cuda`; no data is opened, nothing is allocated. Times are estimates from
the compiler's figures, not measurements."""
EXAMPLES = """\
  mico-jax plan --config mico_g14 --topology v5e:16x16
  mico-jax plan --config mico_b16 --topology v5p:4x4x4 --batch 4096 --json
  mico-jax plan --config mico_b16 --topology v5e:4x4 --task vast --batch max
  mico-jax plan --config mico_l14 --topology h100:8 --task vast27m
  mico-jax plan --config mico_l14 --topology v5e:8x8,v6e:8x8 --sweep"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_config(parser)
  parser.add_argument(
    "--topology",
    required=True,
    metavar="NAME",
    help="such as v5e:16x16 or h100:8; with --sweep several, with commas",
  )
  parser.add_argument(
    "--batch",
    default="",
    metavar="N",
    help="global rows of every task; max: search the largest that fits",
  )
  parser.add_argument(
    "--task", action="append", default=[], metavar="NAME", help="only this one"
  )
  parser.add_argument(
    "--steps-only",
    action="store_true",
    help="leave out evaluation and creation of the state",
  )
  parser.add_argument(
    "--sweep",
    action="store_true",
    help="compare topologies, meshes, remat and micro-batches, best first",
  )
  parser.add_argument(
    "--remat", default="", metavar="NAMES", help="policies of --sweep"
  )
  parser.add_argument(
    "--rules", default="", metavar="NAMES", help="sharding rules of --sweep"
  )
  parser.add_argument(
    "--micro-batches", default="", metavar="NS", help="counts of --sweep"
  )
  parser.add_argument(
    "--picture", default="", metavar="FILE", help="write the plan as PNG"
  )
  common.add_json(parser)


def _names(text: str, known: list[str], what: str) -> list[str]:
  """Names given with commas, or all of them.

  Raises:
    ConfigError: listing the known ones.
  """
  names = [n for n in text.split(",") if n] or known
  if unknown := [n for n in names if n not in known]:
    raise ConfigError(
      f"--{what} {','.join(unknown)}: known are {', '.join(known)}."
    )
  return names


def _rows(text: str) -> int:
  """The rows of a batch.

  Raises:
    ConfigError: for anything but a positive number.
  """
  if not text.isdecimal() or int(text) == 0:
    raise ConfigError(
      f"--batch {text}: expected a number, or (without --sweep) max."
    )
  return int(text)


def run(args: argparse.Namespace) -> int:
  """Prints the plan; status 1 if it does not fit."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before JAX looks for a device
  from mico_jax.plan import topology

  names = args.topology.split(",")
  # A misspelt name fails before anything else is done.
  places = [topology.parse(name) for name in names]
  if len(names) > 1 and not args.sweep:
    raise ConfigError(f"--topology {args.topology}: several need --sweep.")
  for place in places:
    if reason := place.missing():
      raise ConfigError(reason)
  config = common.load_config(args)
  if args.sweep:
    return _sweep(args, config, names)
  return _plan(args, config, names[0])


def _plan(args: argparse.Namespace, config, name: str) -> int:
  import dataclasses

  from mico_jax.plan import planner, report, search
  from mico_jax.plan.program import with_batch

  largest: dict[str, int] = {}
  batch = 0
  if args.batch == "max":
    for task in args.task or config.tasks:
      largest[task] = search.largest_batch(config, name, task, say=common.note)
      if not largest[task]:
        raise ConfigError(f"no batch of task {task!r} fits {name}.")
      config = with_batch(config, largest[task], task)
  elif args.batch:
    batch = _rows(args.batch)
  plans: dict[str, planner.Plan] = {}
  for stage in stages_of(config):
    part = stage.config.train
    part = dataclasses.replace(part, steps=stage.end - stage.start)
    plan = planner.make_plan(
      dataclasses.replace(stage.config, train=part),
      name,
      batch=batch,
      tasks=args.task,
      others=not args.steps_only and not plans,  # the same in all stages
      say=common.note,
    )
    plans[stage.name] = dataclasses.replace(plan, largest=largest)
  if args.json and config.stages:
    common.print_json({"stages": {k: p.as_dict() for k, p in plans.items()}})
  elif args.json:
    common.print_json(plans[""].as_dict())
  else:
    for stage, plan in plans.items():
      title = f"stage {stage or 'before the first'}\n" if config.stages else ""
      common.say_page(title + report.to_text(plan))
  if args.picture:
    _draw(args.picture, plans)
  return 0 if all(plan.fits for plan in plans.values()) else 1


def _draw(path: str, plans: Mapping[str, Plan]) -> None:
  """Draws each plan; those of stages into a file each."""
  from mico_jax.plan import picture

  stem, dot, ending = path.rpartition(".")
  for stage, plan in plans.items():
    place = f"{stem}-{stage}{dot}{ending}" if stage and dot else path
    picture.draw(plan, place)
    common.note(f"wrote {place}")


def _sweep(args: argparse.Namespace, config, names: list[str]) -> int:
  from mico_jax.layers.stack import REMAT
  from mico_jax.plan import report, search
  from mico_jax.plan.program import with_batch

  if args.picture:
    raise ConfigError("--picture draws one plan; leave it or --sweep out.")
  if len(args.task) > 1:
    raise ConfigError(
      f"--task {' --task '.join(args.task)}: --sweep compares by one task."
    )
  if args.task and args.task[0] not in config.tasks:
    raise ConfigError(
      f"--task {args.task[0]}: the config has {', '.join(config.tasks)}."
    )
  if args.batch == "max":
    raise ConfigError("--batch max: --sweep takes a number of rows.")
  if args.batch:
    config = with_batch(config, _rows(args.batch))
  counts = args.micro_batches or str(config.train.micro_batches)
  if not all(n.isdecimal() and n != "0" for n in counts.split(",")):
    raise ConfigError(
      f"--micro-batches {counts}: expected numbers with commas, such as 1,4."
    )
  choices = search.choices(
    _names(args.rules, list(search.MESHES), "rules"),
    _names(args.remat, list(REMAT), "remat"),
    [int(n) for n in counts.split(",")],
  )
  task = args.task[0] if args.task else ""
  plans = search.sweep(config, names, choices, task=task, say=common.note)
  if args.json:
    common.print_json([p.as_dict() for p in plans])
  else:
    common.say_page(report.sweep_text(plans))
  return 0 if any(p.fits for p in plans) else 1
