"""`mico-jax score`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common

DESCRIPTION = f"""\
Compares every text with every file: cosine similarity of the embeddings, and
the probability of the matching head that they belong together. Files that
cannot be used are named on stderr and left out, unless all are such.

{common.TYPES}"""
EXAMPLES = """\
  mico-jax score --checkpoint runs/demo --text "a man is skiing" \\
    --text "a hot day" photo.jpg clip.mp4 sound.flac depth:mm:d.png"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_checkpoint(parser)
  parser.add_argument(
    "--text", action="append", required=True, help="a text; may be repeated"
  )
  parser.add_argument("files", nargs="+", metavar="FILE")
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints a table of similarities and matching probabilities."""
  common.parse_files(args.files)
  model = common.load_model(args)
  common.parse_files(args.files, common.context_keys(model))
  scores = model.score(args.text, args.files, skip=True)
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
  common.note_failed([why for _, why in scores.failed], len(args.files))
  header = ("file", "text", "similarity", "matching")
  if args.json:
    failed = [{"file": file, "error": why} for file, why in scores.failed]
    common.print_json(
      [*(dict(zip(header, row, strict=True)) for row in rows), *failed]
    )
  else:
    common.say_page(common.table(rows, header))
  return 0
