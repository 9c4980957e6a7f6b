"""`mico-jax evaluate`."""

from __future__ import annotations

import argparse
import json

from mico_jax.cli import common

DESCRIPTION = """\
Measures a checkpoint with the evaluation suite of its config. Every number
carries its split, prompts, preprocessing, coverage and a 95% interval.

What is measured, and on which data, may be changed with
--config.evaluation.KEY=VALUE and --config.data.sources.NAME.KEY=VALUE."""
EXAMPLES = """\
  mico-jax evaluate --checkpoint runs/demo
  mico-jax evaluate --checkpoint runs/demo --config.evaluation.size=1000 \\
    --config.evaluation.rerank=20 --out runs/demo/evaluation
  mico-jax evaluate --checkpoint runs/demo --json"""


def details() -> str:
  """The suites and evaluators, as they describe themselves."""
  from mico_jax.evaluation import EVALUATORS, SUITES

  suites = {name: ", ".join(s.evaluators) for name, s in SUITES.items()}
  evaluators = {name: e.summary() for name, e in EVALUATORS.items()}
  return "\n".join(
    [
      "suites (--config.evaluation.suite=NAME):",
      *common.entries(suites),
      "",
      "evaluators (--config.evaluation.suite=NAME,NAME):",
      *common.entries(evaluators),
    ]
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_checkpoint(parser, batch_size=False)
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="also write evaluation.json, .txt and a bar chart .png there, and "
    "single queries (examples.json) for `mico-jax report`",
  )
  parser.add_argument(
    "--cheap",
    action="store_true",
    help="only the evaluators that take part during training",
  )
  common.add_json(parser)
  parser.set_defaults(config=None)


def run(args: argparse.Namespace) -> int:
  """Prints a table of results."""
  from mico_jax.run.commands.evaluate import evaluate_model

  model = common.load_model(args)
  from mico_jax.evaluation import Examples, table, to_json, write

  common.note("evaluating ...")
  examples = Examples() if args.out else None
  results = evaluate_model(
    model,
    args.overrides,
    command=args.command_line,
    cheap=args.cheap,
    examples=examples,
  )
  if args.out:
    for path in write(results, args.out, examples=examples):
      common.note(f"written: {path}")
  if args.json:
    common.print_json(json.loads(to_json(results)))
  else:
    common.say_page(table(results))
  return 0
