"""`mico-jax evaluate`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mico_jax import files
from mico_jax.cli import common, source_arguments
from mico_jax.config import ConfigError, SourceConfig

if TYPE_CHECKING:
  from mico_jax.evaluation.protocols import BenchmarkProtocol

DESCRIPTION = """\
Measures a checkpoint: with the evaluation suite of its config, on other data
(--data), or on a public benchmark as its protocol says (--protocol, with --data
naming your copy of its official files, or the shards that `mico-jax data build
--protocol` made of them). Every number carries its split, prompts,
preprocessing, coverage and a 95% interval.

What is measured, and on which data, may be changed with
--config.evaluation.KEY=VALUE and --config.data.sources.NAME.KEY=VALUE; how
texts are written with --config.generation.KEY=VALUE (num_beams, top_p, ...);
which frames are taken with --config.data.inputs.MODALITY.KEY=VALUE (frames,
sampling, fps, stride). What differs from a protocol is listed, and its metrics
are renamed."""
EXAMPLES = """\
  mico-jax evaluate --checkpoint runs/demo
  mico-jax evaluate --checkpoint runs/demo --config.evaluation.size=1000 \\
    --config.evaluation.rerank=20 --out runs/demo/evaluation
  mico-jax evaluate --checkpoint runs/demo --data manifest.jsonl --split test
  mico-jax evaluate --checkpoint runs/demo --config.generation.num_beams=3
  mico-jax evaluate --list
  mico-jax evaluate --protocol msrvtt_1ka
  mico-jax evaluate --protocol msrvtt_1ka --data DIR --checkpoint runs/demo"""


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
  common.add_checkpoint(parser, batch_size=False, required=False)
  parser.add_argument(
    "--list", action="store_true", help="show the protocols of benchmarks"
  )
  parser.add_argument(
    "--protocol",
    default="",
    metavar="NAME",
    help="benchmark (all: --list), or a .toml file; alone: how to get its "
    "files",
  )
  parser.add_argument(
    "--data",
    default="",
    metavar="PATH",
    help="other data: a manifest .jsonl, .tar, .array_record, .parquet or "
    ".csv, anything with --from KIND, or the name of a source of the "
    "checkpoint; with --protocol: the folder of your copy",
  )
  parser.add_argument(
    "--other-split",
    action="store_true",
    help="measure a copy whose samples are not the protocol's; metrics are "
    "renamed",
  )
  source_arguments.add_kind(parser, path=False)
  source_arguments.add_fields(parser)
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="also write evaluation.json, .txt and a bar chart .png there, or "
    "NAME.json and .txt of a protocol, and single queries (examples.json, "
    "NAME.examples.json) for `mico-jax report`",
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
  if args.list:
    _refuse(args, ("protocol", "data", "out"), "is not for --list")
    return _list(args)
  if args.protocol:
    return _protocol(args)
  if not args.checkpoint:
    raise ConfigError("--checkpoint PATH: say what is measured.")
  if args.other_split:
    raise ConfigError("--other-split is for --protocol.")
  data, overrides = _data(args)
  from mico_jax.run.commands.evaluate import evaluate_model

  model = common.load_model(args)
  from mico_jax.evaluation import Examples, table, to_json, write

  common.note("evaluating ...")
  examples = Examples() if args.out else None
  results = evaluate_model(
    model,
    overrides,
    command=args.command_line,
    cheap=args.cheap,
    data=data,
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


_OF_DATA = (
  *("kind", "field", "where", "option", "caption", "root", "depth_unit"),
  *("unit", "rate", "channels"),
)


def _data(
  args: argparse.Namespace,
) -> tuple[SourceConfig | str | None, list[str]]:
  """What --data names, and the overrides.

  A name that is no path is one of the checkpoint's sources.
  """
  overrides = list(args.overrides)
  if not args.data:
    _refuse(args, (*_OF_DATA, "split"), "is for --data PATH")
    return None, overrides
  if args.kind or files.exists(args.data) or not args.data.isidentifier():
    kind = args.kind or source_arguments.kind_of(args.data)
    return source_arguments.spec_of(args, kind, args.data), overrides
  _refuse(args, _OF_DATA, f"is for data by a path, and {args.data} is a name")
  if args.split:
    overrides.append(f"data.sources.{args.data}.split={args.split}")
  return args.data, overrides


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
  """Refuses arguments that would have no effect."""
  for name in names:
    if getattr(args, name):
      flag = "from" if name == "kind" else name.replace("_", "-")
      raise ConfigError(f"--{flag} {why}.")


def _list(args: argparse.Namespace) -> int:
  from mico_jax.evaluation.protocols import load_protocol, protocols
  from mico_jax.evaluation.protocols.report import listed

  rows = listed([(name, load_protocol(name)) for name in protocols()])
  if args.json:
    common.print_json({"protocols": rows})
  else:
    cells = [list(map(str, row.values())) for row in rows]
    common.say_page(common.table(cells, list(rows[0])))
  return 0


def note_steps(name: str, protocol: BenchmarkProtocol) -> None:
  """Says on stderr how the files of a protocol are had, and how they lie."""
  common.note(f"{name}: {protocol.title}; from {protocol.copy.source}")
  for number, step in enumerate(protocol.copy.steps, start=1):
    common.note(f"  {number}. {step}")
  common.note("expected in the folder of --data:")
  for line in protocol.copy.layout:
    common.note(f"  {line}")


def _protocol(args: argparse.Namespace) -> int:
  from mico_jax.evaluation.protocols import load_protocol, report
  from mico_jax.evaluation.protocols.user_copy import MissingCopy
  from mico_jax.run.commands.benchmark import evaluate_protocol

  protocol = load_protocol(args.protocol)
  _refuse(args, (*_OF_DATA, "split", "cheap"), "is said by a protocol")
  if not args.data:
    note_steps(args.protocol, protocol)
    raise ConfigError("--data DIR: name the folder with these files.")
  if not args.checkpoint:
    raise ConfigError("--checkpoint PATH: say what is measured.")
  if not files.is_folder(args.data):
    note_steps(args.protocol, protocol)
    raise ConfigError(f"--data {args.data}: there is no such folder.")
  model = common.load_model(args)
  from mico_jax.evaluation import Examples

  common.note("evaluating ...")
  examples = Examples() if args.out else None
  try:
    found = evaluate_protocol(
      model,
      args.protocol,
      args.data,
      args.overrides,
      other_split=args.other_split,
      command=args.command_line,
      examples=examples,
    )
  except MissingCopy:
    note_steps(args.protocol, protocol)
    raise
  if args.out:
    for path in report.write(found, args.out, examples):
      common.note(f"written: {path}")
  if args.json:
    common.print_json(json.loads(report.to_json(found)))
  else:
    common.say_page(report.table(found))
  return 0
