"""`mico-jax caption`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common
from mico_jax.config import MAX_BEAMS

DESCRIPTION = f"""\
Writes a caption for each file.

{common.TYPES}"""
EXAMPLES = """\
  mico-jax caption --checkpoint runs/demo photo.jpg clip.mp4
  mico-jax caption --checkpoint runs/demo --beams 3 --json sound.flac"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_checkpoint(parser)
  parser.add_argument("files", nargs="+", metavar="FILE")
  parser.add_argument(
    "--beams",
    type=common.at_most(MAX_BEAMS),
    metavar="N",
    help=f"beam search with N beams, 1 is greedy, at most {MAX_BEAMS} "
    "(default: the checkpoint's)",
  )
  parser.add_argument(
    "--max-tokens",
    type=common.positive_int,
    metavar="N",
    help="longest caption (default: the checkpoint's)",
  )
  parser.add_argument(
    "--length-penalty",
    type=float,
    metavar="X",
    help="exponent of the length in a beam's score (default: the checkpoint's)",
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints file and caption."""
  from mico_jax.inputs import Item

  common.parse_files(args.files)
  model = common.load_model(args)
  specs = common.parse_files(args.files, common.context_keys(model))
  captions: dict[int, str] = {}
  for key in dict.fromkeys(spec.key for spec in specs):
    rows = [i for i, spec in enumerate(specs) if spec.key == key]
    items = [
      Item(specs[i].path, specs[i].depth_unit, args.files[i], file=True)
      for i in rows
    ]
    texts = model.caption(
      max_new_tokens=args.max_tokens,
      num_beams=args.beams,
      length_penalty=args.length_penalty,
      **{key: items},
    )
    captions.update(zip(rows, texts, strict=True))
  found = [(name, captions[i]) for i, name in enumerate(args.files)]
  if args.json:
    common.print_json([{"file": f, "caption": c} for f, c in found])
  else:
    common.say_page(common.table(found))
  return 0
