"""`mico-jax data sheet | build | convert | inspect | ... | tokenizer`."""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Iterator

from mico_jax.cli import common, data_build, data_index, data_sources
from mico_jax.config import ConfigError

MAX_SAMPLES = 200  # of a sheet, one row each
MAX_TEXTS = 10_000_000  # samples that train a tokenizer

DESCRIPTION = f"""\
sheet      draws samples as evaluation sees them: frames, depth, normals,
           spectrogram, captions, in one PNG
build      makes shards of a manifest, a folder of videos or tar files
index      writes beside files what is known of their samples, so that runs on
           any number of hosts open them at once
{data_sources.DESCRIPTION}
tokenizer  trains a SentencePiece model on a config's captions"""
EXAMPLES = f"""\
  mico-jax data sheet --config demo --out sheet.png
  mico-jax data build --manifest set/manifest.jsonl --split train --out packed
  mico-jax data index s3://bucket/set/x-0000.tar
{data_sources.EXAMPLES}
  mico-jax data tokenizer --config demo --out words.model --vocab-size 512"""


def details() -> str:
  """The kinds of sources, as they describe themselves."""
  from mico_jax.data.sources import SOURCES

  entries = {kind: source.summary() for kind, source in SOURCES.items()}
  return "\n".join(
    ["kinds of sources (data.sources.NAME.kind):", *common.entries(entries)]
  )


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.set_defaults(config=None)
  actions = parser.add_subparsers(
    dest="action", metavar="ACTION", required=True
  )
  sheet = actions.add_parser("sheet", help="draw samples to a PNG")
  common.add_config(sheet)
  sheet.add_argument("--out", required=True, metavar="FILE.png")
  sheet.add_argument(
    "--samples",
    type=common.at_most(MAX_SAMPLES),
    default=8,
    metavar="N",
    help=f"up to {MAX_SAMPLES} (default: 8)",
  )
  sheet.add_argument("--source", default="", help="default: the config's first")
  build = actions.add_parser(
    "build",
    help="raw material or a manifest to shards",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=data_build.DESCRIPTION,
  )
  data_build.add_arguments(build)
  data_sources.add_actions(actions)
  tokenizer = actions.add_parser(
    "tokenizer", help="train a SentencePiece model"
  )
  common.add_config(tokenizer)
  tokenizer.add_argument("--out", required=True, metavar="FILE.model")
  tokenizer.add_argument("--vocab-size", type=common.positive_int, default=512)
  tokenizer.add_argument(
    "--samples",
    type=common.at_most(MAX_TEXTS),
    default=20000,
    metavar="N",
    help="most samples read per source (default: 20000)",
  )
  index = data_index.add_arguments(actions)
  for sub in (sheet, build, index, tokenizer):
    common.add_json(sub)


def run(args: argparse.Namespace) -> int:
  """Runs the chosen action."""
  if args.action in data_sources.ACTIONS:
    return data_sources.run(args)
  actions = {
    "sheet": _sheet,
    "build": data_build.run,
    "index": data_index.run,
    "tokenizer": _tokenizer,
  }
  summary = actions[args.action](args)
  if args.json:
    common.print_json(summary)
  else:
    for name, value in summary.items():
      common.say(f"{name}: {value}")
  return 0


def _sheet(args: argparse.Namespace) -> dict[str, object]:
  from mico_jax.data.sheet import draw_sheet

  if pathlib.Path(args.out).suffix.lower() != ".png":
    raise ConfigError(f"--out {args.out!r} must end in .png.")
  config = common.load_config(args)
  path = draw_sheet(config, args.out, args.samples, source_name=args.source)
  return {"sheet": str(path), "samples": args.samples}


def _tokenizer(args: argparse.Namespace) -> dict[str, object]:
  from mico_jax.data.sources import open_sources
  from mico_jax.data.tokenizer import (
    SentencePieceTokenizer,
    train_sentencepiece,
  )
  from mico_jax.modalities import DecodeError

  config = common.load_config(args)
  sources = open_sources(config)

  def captions() -> Iterator[str]:
    for source in sources.values():
      for i in range(min(len(source), args.samples)):
        try:
          record = source.record(i)
        except DecodeError:
          continue
        yield from itertools.chain.from_iterable(record.captions.values())
        for pair in record.questions:
          yield from (pair[0], pair[1])

  try:
    model = train_sentencepiece(captions(), args.vocab_size)
  except ValueError as e:
    raise ConfigError(str(e)) from e
  path = pathlib.Path(args.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(model)
  tokenizer = SentencePieceTokenizer(model)
  return {
    "model": str(path),
    "vocab_size": tokenizer.info.vocab_size,
    "sha256": tokenizer.sha256,
  }
