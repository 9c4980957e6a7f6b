"""`mico-jax search`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common
from mico_jax.config import ConfigError

DESCRIPTION = f"""\
Finds the items of an index that are most similar to a text, to files, or to
their sum. Every item is compared, so nothing is missed.

{common.TYPES}"""
EXAMPLES = """\
  mico-jax search --index idx --text "a dog barks"
  mico-jax search --index idx sound.flac --modality image -k 5
  mico-jax search --index idx --text "at night" photo.jpg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "--index", required=True, metavar="DIR", help="made by `mico-jax index`"
  )
  common.add_checkpoint(parser, required=False)
  parser.add_argument(
    "files", nargs="*", metavar="FILE", help="of the query; they are added up"
  )
  parser.add_argument("--text", metavar="TEXT", help="of the query")
  parser.add_argument(
    "-k",
    type=common.positive_int,
    default=10,
    metavar="N",
    help="items to find (default: 10)",
  )
  parser.add_argument(
    "--modality", default="", metavar="KEY", help="only items of this modality"
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints the hits, best first."""
  from mico_jax.inference.index import Index
  from mico_jax.modalities import DecodeError
  from mico_jax.run.commands.entries import file_entries

  if args.text is None and not args.files:
    raise ConfigError("give --text, or files, to search with.")
  specs = common.parse_files(args.files)
  common.check_there(specs)
  entries = file_entries(specs)
  keys = [entry.key for entry in entries]
  if len(set(keys)) < len(keys):
    raise ConfigError(
      f"several files of one modality ({', '.join(keys)}); give one of each."
    )
  index = Index.open(args.index)
  args.checkpoint = args.checkpoint or index.checkpoint
  model = common.load_model(args)
  common.parse_files(args.files, model.modalities)
  query = {entry.key: [entry.item()] for entry in entries}
  try:
    (hits,) = model.search(
      index, args.text, k=args.k, modality=args.modality, **query
    )
  except DecodeError:
    raise
  except ValueError as error:  # another checkpoint, an unknown modality
    raise ConfigError(str(error)) from error
  if args.json:
    common.print_json({"hits": [hit._asdict() for hit in hits]})
    return 0
  rows = [(f"{h.score:.3f}", h.modality, h.path, h.source) for h in hits]
  common.say_page(
    common.table(rows, header=("score", "modality", "path", "source"))
  )
  return 0
