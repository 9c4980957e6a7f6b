"""`mico-jax bench`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mico_jax.cli import common
from mico_jax.config import ConfigError

DESCRIPTION = """\
Measures ours against named peers in the same run, in alternating turns.

  attention  the attention kernels: values and gradients
  block      projection, attention, output projection and residual
  loss       the contrastive loss over the global batch
  step       a whole vision tower: forward pass and training step
  data       the input of a run, see below

Without --aot on the device that is here: medians of the turns, their spread
(quartiles over the median), the error against float64 and the share of the
measured rate of a large matrix product. With --aot they are compiled for a TPU
slice that need not be there; the figures are then static cycles of the compiler
(per row and head, per row of a block, per device of a step), no run times.

data reads samples of a config's tasks on the CPU and prints three tables:
  stages    CPU milliseconds per sample of each stage (record: look-up in the
            index; read: bytes of the media; decode; transform; text; batch) and
            modality, one sample after the other; kilobytes are those read
  pipeline  samples and megabytes per second and CPU milliseconds per sample of
            the pipeline as a run has it, for one of --hosts hosts; with
            --step-ms also the share of the time that a step of that length
            waits for its batch (the first batch is not counted)
  pictures  JPEG to a cropped and flipped batch against WebDataset + DataLoader,
            Grain + Pillow and tf.data, those that are installed, in alternating
            turns of one process; pictures stored otherwise are encoded first"""
EXAMPLES = """\
  mico-jax bench attention --shapes vit_b --peers xla,torch
  mico-jax bench step --peer torch
  mico-jax bench attention --aot v5e:2x2
  mico-jax bench block --aot v6e:2x2 --json
  mico-jax bench loss --aot v5e:16x16 --batch 65536
  mico-jax bench step --aot v5e:16x16 --batch 32 --programs tower
  mico-jax bench data --config demo --samples 512 --step-ms 200
  mico-jax bench data --config my.py --hosts 8 --peers webdataset --json"""

WHAT = ("attention", "block", "loss", "step", "data")
TURNS = 7
SAMPLES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument("what", choices=WHAT)
  parser.add_argument(
    "--aot",
    metavar="SLICE",
    help="compile for this TPU slice, such as v5e:2x2 (needs mico-jax[aot])",
  )
  parser.add_argument(
    "--shapes", help="names, by commas; a wrong one lists them (default: all)"
  )
  parser.add_argument(
    "--peers",
    "--peer",
    dest="peers",
    help="by commas: xla, cudnn, flash, splash, tokamax, torch of attention; "
    "xla, torch of a block; plain, torch of the loss; torch of a step; "
    "webdataset, grain, tf.data of data (default: those installed)",
  )
  parser.add_argument(
    "--batch",
    type=common.positive_int,
    default=0,
    metavar="N",
    help="rows (default: by the shape); of one device with step --aot, else of "
    "all",
  )
  parser.add_argument(
    "--turns",
    type=common.positive_int,
    metavar="N",
    help=f"of each implementation (default: {TURNS}); not with --aot",
  )
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of attention and block (default: by the device); not with --aot",
  )
  parser.add_argument(
    "--remat",
    help="remat policy of a step (default: none; attention with --aot)",
  )
  parser.add_argument(
    "--programs",
    help="of step --aot, by commas: tower, task (default: both)",
  )
  parser.add_argument(
    "--compile",
    action="store_true",
    help="of step: PyTorch's side through torch.compile",
  )
  common.add_config(parser, required=False)
  parser.add_argument(
    "--samples",
    type=common.positive_int,
    metavar="N",
    help=f"of data: to read (default: {SAMPLES})",
  )
  parser.add_argument(
    "--step-ms",
    type=_milliseconds,
    metavar="MS",
    help="of data: time of a training step, for the share of waiting",
  )
  parser.add_argument(
    "--hosts",
    type=common.positive_int,
    metavar="N",
    help="of data: that share the global batch (default: 1)",
  )
  common.add_json(parser)


def _milliseconds(text: str) -> float:
  value = float(text)
  if not 0 < value <= 3_600_000:
    raise argparse.ArgumentTypeError(f"{text} must be in (0, 3600000]")
  return value


def _chosen(names: str | None, known: Sequence[str], option: str) -> list[str]:
  chosen = [x for x in (names or "").split(",") if x]
  if unknown := [x for x in chosen if x not in known]:
    raise ConfigError(
      f"{option} {','.join(unknown)} is unknown; known: {', '.join(known)}."
    )
  return chosen


def _shapes(args: argparse.Namespace) -> list[str]:
  """The chosen problems, or all of them."""
  from mico_jax.benchmarks.shapes import SHAPES

  if args.what == "attention":
    known: Sequence[str] = tuple(SHAPES)
  elif args.what == "block":
    known = tuple(name for name, shape in SHAPES.items() if shape.packed)
  elif args.what == "loss":
    from mico_jax.benchmarks.loss import FORMS as known
  else:
    from mico_jax.benchmarks.step import TOWERS

    known = tuple(TOWERS)
  chosen = _chosen(args.shapes, known, "--shapes")
  if not chosen and args.what == "step":
    return ["vit_g14" if args.aot else "vit_b16"]
  return chosen or list(known)


def _aot(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
  """Records of compiled programs."""
  import jax

  from mico_jax import aot

  if reason := aot.missing():
    raise ConfigError(f"--aot: {reason}")
  # Nothing is run, and what is compiled is in bfloat16.
  useless = {"--turns": args.turns, "--dtype": args.dtype}
  if unused := [option for option, value in useless.items() if value]:
    raise ConfigError(
      f"--aot: {', '.join(unused)} would change nothing; leave it out."
    )
  jax.config.update("jax_platforms", "cpu")
  try:
    aot.devices(args.aot)
  except ValueError as error:
    raise ConfigError(f"--aot: {error}") from None
  shapes = _shapes(args)
  if args.what == "attention":
    from mico_jax.benchmarks import attention

    peers = _chosen(args.peers, attention.PEERS, "--peers")
    return attention.run(
      args.aot, shapes, peers=peers or attention.PEERS, batch=args.batch
    )
  if args.what == "block":
    from mico_jax.benchmarks import block

    return block.run(args.aot, shapes, batch=args.batch)
  if args.what == "loss":
    from mico_jax.benchmarks import loss

    return loss.run_aot(args.aot, shapes, batch=args.batch or 65536)
  from mico_jax.benchmarks import step_aot

  programs = _chosen(args.programs, step_aot.PROGRAMS, "--programs")
  return step_aot.run(
    args.aot,
    shapes,
    programs=programs or step_aot.PROGRAMS,
    batch=args.batch or 32,
    remat=args.remat or "attention",
  )


def _here(args: argparse.Namespace) -> Iterable[dict[str, Any]]:
  """Records of runs on the device that is here."""
  from mico_jax.benchmarks import timing
  from mico_jax.parallel.backend import require_backend

  require_backend()

  known: Mapping[str, tuple[str, ...]] = {
    "attention": ("xla", "cudnn", "flash", "splash", "tokamax", "torch"),
    "block": ("xla", "torch"),
    "loss": ("plain", "torch"),
    "step": ("torch",),
  }
  peers = _chosen(args.peers, known[args.what], "--peers")
  if "torch" in peers:
    from mico_jax.benchmarks import torch_peers

    if reason := torch_peers.missing(towers=args.what == "step"):
      raise ConfigError(f"--peers torch: {reason}")
  shapes = _shapes(args)
  common.note(timing.machine())
  turns = args.turns or TURNS
  options: dict[str, Any] = {"batch": args.batch, "turns": turns}
  if args.what == "attention":
    from mico_jax.benchmarks import attention_time

    return attention_time.run(
      shapes, peers=peers or ["xla"], dtype=args.dtype or "", **options
    )
  if args.what == "block":
    from mico_jax.benchmarks import block_time

    return block_time.run(
      shapes, peers=peers or ["xla"], dtype=args.dtype or "", **options
    )
  if args.what == "loss":
    from mico_jax.benchmarks import loss

    return loss.run(shapes, peers=peers or ["plain"], **options)
  from mico_jax.benchmarks import step

  return step.run(
    shapes,
    peers=peers,
    remat=args.remat or "none",
    compiled=args.compile,
    **options,
  )


def _data(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
  """Tables of the input of a run."""
  useless = ("aot", "shapes", "batch", "dtype", "remat", "programs", "compile")
  _refuse(args, useless, "data")
  if args.config is None:
    raise ConfigError("bench data needs --config NAME, such as --config demo.")
  from mico_jax.benchmarks import data, data_peers
  from mico_jax.run.setup import resolve

  peers = _chosen(args.peers, tuple(data_peers.PEERS), "--peers")
  for peer in peers:
    if packages := data_peers.missing(peer):
      raise ConfigError(f"--peers {peer}: not installed: {packages}.")
  return data.run(
    resolve(common.load_config(args)),
    samples=args.samples or SAMPLES,
    peers=peers or tuple(data_peers.PEERS),
    turns=args.turns or TURNS,
    hosts=args.hosts or 1,
    step_ms=args.step_ms or 0.0,
  )


def _refuse(
  args: argparse.Namespace, options: Sequence[str], what: str
) -> None:
  """Refuses options that would change nothing."""
  useless = [f"--{o.replace('_', '-')}" for o in options if getattr(args, o)]
  if useless:
    raise ConfigError(
      f"bench {what}: {', '.join(useless)} would change nothing; leave it out."
    )


def _text(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  return "" if value is None else str(value)


def _print(records: Sequence[Mapping[str, Any]]) -> None:
  """A table of what all records say, then what one record lists."""
  columns = dict.fromkeys(
    key
    for record in records
    for key, value in record.items()
    if not isinstance(value, Mapping)
  )
  rows = [[_text(record.get(key)) for key in columns] for record in records]
  common.say_page(common.table(rows, tuple(columns)))
  for record in records:
    for key, value in record.items():
      if isinstance(value, Mapping):
        lines = [(name, _text(x)) for name, x in value.items()]
        common.say(f"{record.get('program', '')} {key}".strip())
        common.say_page(common.table(lines, ("line", "value")))


def run(args: argparse.Namespace) -> int:
  """Prints one line per shape, implementation and direction."""
  if args.what == "data":
    tables = _data(args)
    if args.json:
      common.print_json(tables)
      return 0
    for name, rows in tables.items():
      common.say(name)
      if rows:
        _print(rows)
      else:
        common.say("the sources have no pictures.")
    return 0
  _refuse(args, ("config", "samples", "step_ms", "hosts"), args.what)
  records = []
  for record in _aot(args) if args.aot else _here(args):
    records.append(record)
    name = record.get("implementation") or record.get("program")
    common.note(f"{record['shape']}: {name}")
  if args.json:
    common.print_json(records)
  else:
    _print(records)
  return 0
