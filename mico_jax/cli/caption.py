"""`mico-jax caption`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mico_jax.cli import common
from mico_jax.config import MAX_BEAMS, ConfigError

if TYPE_CHECKING:
  from mico_jax.modalities import DecodeError

DESCRIPTION = f"""\
Writes a caption for each file. Files that cannot be used are named on stderr
and left out, unless all are such.

{common.TYPES}"""
EXAMPLES = """\
  mico-jax caption --checkpoint runs/demo photo.jpg clip.mp4
  mico-jax caption --checkpoint runs/demo --beams 3 --json sound.flac
  mico-jax caption --checkpoint runs/demo --top-p 0.9 --seed 1 photo.jpg"""


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
  parser.add_argument(
    "--top-p",
    type=float,
    metavar="P",
    help="draw each token from the most probable ones whose probabilities sum "
    "to P (nucleus sampling), 0 draws none (default: the checkpoint's)",
  )
  parser.add_argument(
    "--temperature",
    type=float,
    metavar="T",
    help="divides the logits before a token is drawn (default: the "
    "checkpoint's)",
  )
  parser.add_argument(
    "--seed",
    type=int,
    metavar="N",
    help="of what is drawn for each place in the list of files (default: the "
    "checkpoint's)",
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Prints file and caption."""
  from mico_jax.inference.prepare import Item
  from mico_jax.modalities import DecodeError

  common.check_there(common.parse_files(args.files))
  model = common.load_model(args)
  specs = common.parse_files(args.files, common.context_keys(model))
  options = {
    "max_new_tokens": args.max_tokens,
    "num_beams": args.beams,
    "length_penalty": args.length_penalty,
    "top_p": args.top_p,
    "temperature": args.temperature,
    "seed": args.seed,
  }
  try:
    model.check_writing(**options)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  captions: dict[int, str | DecodeError] = {}
  for key in dict.fromkeys(spec.key for spec in specs):
    places = [i for i, spec in enumerate(specs) if spec.key == key]
    items = [
      Item(s.path, s.unit, args.files[i], True, s.rate, s.channels)
      for i in places
      for s in (specs[i],)
    ]

    def write(some: Sequence[tuple[int, Item]], key: str = key) -> list[str]:
      inputs: dict[str, Any] = {key: [item for _, item in some]}
      return model.caption(
        rows=[place for place, _ in some], **options, **inputs
      )

    numbered = list(zip(places, items, strict=True))
    captions.update(zip(places, _each(write, numbered), strict=True))
  good, failed = [], []
  for i, name in enumerate(args.files):
    text = captions[i]
    if isinstance(text, DecodeError):
      failed.append((name, text))
    else:
      good.append((name, text))
  if not good:
    raise failed[0][1]
  common.note_failed([str(error) for _, error in failed], len(args.files))
  if args.json:
    rows = [{"file": f, "caption": text} for f, text in good]
    rows += [{"file": f, "error": str(error)} for f, error in failed]
    common.print_json(rows)
  else:
    common.say_page(common.table(good))
  return 0


def _each(
  write: Callable[[Sequence[Any]], list[str]], items: Sequence[Any]
) -> list[str | DecodeError]:
  """The caption or error of each item; splits batches that hold a bad one."""
  from mico_jax.modalities import DecodeError

  try:
    return [*write(items)]
  except DecodeError as error:
    if len(items) == 1:
      return [error]
  half = len(items) // 2
  return _each(write, items[:half]) + _each(write, items[half:])
