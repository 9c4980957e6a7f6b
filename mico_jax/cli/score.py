"""`mico-jax score`."""

from __future__ import annotations

import argparse
import sys

from mico_jax.cli import common

DESCRIPTION = f"""\
Compares every text with every file: cosine similarity of the embeddings, and
the probability of the matching head that they belong together. A file that
cannot be read is named on stderr, the others are scored; it is an error if none
can be.

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
  scores = model.score(args.text, args.files, skip_broken=True)
  for _, reason in scores.skipped:
    print(f"mico-jax: skipped {reason}", file=sys.stderr)
  if args.json:
    common.print_json(
      [
        {
          "file": file,
          "text": text,
          "similarity": float(scores.similarity[i, j]),
          "matching": float(scores.matching[i, j]),
        }
        for i, file in enumerate(scores.files)
        for j, text in enumerate(scores.texts)
      ]
      + [{"file": file, "error": reason} for file, reason in scores.skipped]
    )
    return 0
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
  print(common.table(rows, ("file", "text", "similarity", "matching")))
  return 0
