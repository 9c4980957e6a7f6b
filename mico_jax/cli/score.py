"""`mico-jax score`."""

from __future__ import annotations

import argparse
import dataclasses

from mico_jax.cli import common, source_arguments
from mico_jax.config import ConfigError

DESCRIPTION = f"""\
Compares every text with every file: cosine similarity of the embeddings, and
the probability of the matching head that they belong together. Files that
cannot be used are named on stderr and left out, unless all are such.

{common.TYPES}
Samples of data sets are compared by --from KIND --path PATH."""
EXAMPLES = """\
  mico-jax score --checkpoint runs/demo --text "a man is skiing" \\
    --text "a hot day" photo.jpg clip.mp4 sound.flac depth:mm:d.png
  mico-jax score --checkpoint runs/demo --text "a cat" --from imagefolder \\
    --path photos"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_checkpoint(parser)
  parser.add_argument(
    "--text", action="append", required=True, help="a text; may be repeated"
  )
  parser.add_argument("files", nargs="*", metavar="FILE")
  source_arguments.add_kind(parser)
  source_arguments.add_fields(parser)
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints a table of similarities and matching probabilities."""
  from mico_jax.inference.scores import score_items
  from mico_jax.run.commands.entries import file_entries, source_entries

  common.check_there(common.parse_files(args.files))
  spec = None
  if args.kind or args.path:
    spec = source_arguments.spec_of(args)
  elif not args.files:
    raise ConfigError("name files, or give --from KIND and --path PATH.")
  model = common.load_model(args)
  known = common.context_keys(model)
  specs = common.parse_files(args.files, known)
  entries = file_entries(specs)
  items = [
    dataclasses.replace(e.item(), name=name)
    for e, name in zip(entries, args.files, strict=True)
  ]
  if spec is not None:
    samples = source_entries(spec, known)
    items += [
      dataclasses.replace(e.item(), name=f"{e.key}:{e.id}") for e in samples
    ]
    entries += samples
  keys = [entry.key for entry in entries]
  scores = score_items(model, args.text, keys, items, skip=True)
  rows = [
    (
      file,
      text,
      float(scores.similarity[i, j]),
      float(scores.matching[i, j]),
    )
    for i, file in enumerate(scores.files)
    for j, text in enumerate(scores.texts)
  ]
  common.note_failed([why for _, why in scores.failed], len(items))
  header = ("file", "text", "similarity", "matching")
  if args.json:
    failed = [{"file": file, "error": why} for file, why in scores.failed]
    common.print_json(
      [*(dict(zip(header, row, strict=True)) for row in rows), *failed]
    )
  else:
    common.say_page(common.table(rows, header))
  return 0
