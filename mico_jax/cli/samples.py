"""`mico-jax samples`."""

from __future__ import annotations

import argparse

from mico_jax.cli import common

DESCRIPTION = """\
Writes example files: scenes of OmniWorld as pictures (.png), clips (.mp4),
sounds (.flac), depth maps (.npy, float32 metres) and maps of normals (.png),
with a manifest that lists them and their captions. Nothing is downloaded, and
the same command gives the same files."""
EXAMPLES = """\
  mico-jax samples --out samples
  mico-jax index   --checkpoint runs/demo --out idx samples
  mico-jax score   --checkpoint runs/demo --text "a large red cube" \\
    samples/image-0.png samples/audio-0.flac depth:m:samples/depth-0.npy
  mico-jax evaluate --checkpoint runs/demo --data samples/manifest.jsonl \\
    --unit depth=metre"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  parser.add_argument(
    "--out", required=True, metavar="DIR", help="folder of the files"
  )
  parser.add_argument(
    "--count",
    type=common.positive_int,
    default=8,
    metavar="N",
    help="number of scenes (default: 8)",
  )
  parser.add_argument(
    "--size",
    type=int,
    choices=range(32, 225),
    default=64,
    metavar="N",
    help="rows and columns of pictures, 32 to 224 (default: 64)",
  )
  parser.add_argument(
    "--split",
    choices=("train", "test"),
    default="test",
    help="of OmniWorld (default: test)",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the files, with progress on stderr."""
  from mico_jax.run.commands.samples import write_samples
  from mico_jax.run.monitor.progress import Progress

  with Progress(args.count, label="samples") as bar:
    path = write_samples(
      args.out,
      count=args.count,
      size=args.size,
      split=args.split,
      progress=lambda done, total: bar.update(done),
    )
  common.say(f"{args.count} scenes in {args.out}, listed in {path}")
  return 0
