"""`mico-jax embed`."""

from __future__ import annotations

import argparse
import dataclasses

from mico_jax.cli import common
from mico_jax.cli import entries as entries_lib

DESCRIPTION = f"""\
Writes the embeddings of many files to one table. Files that cannot be read are
skipped, counted and listed beside the output. Killed and run again, it goes on
behind the last finished shard.

{common.TYPES}
A .jsonl file is a manifest: each of its samples gives one row per modality, as
those of any other data do (--from KIND --path PATH)."""
EXAMPLES = """\
  mico-jax embed --checkpoint runs/demo --out vectors.parquet *.jpg clip.mp4
  mico-jax embed --checkpoint runs/demo --out v.npy --modality audio set.jsonl
  mico-jax embed --checkpoint runs/demo --out v.npy --from webdataset \\
    --path 'shards/*.tar'
  find . -name '*.flac' | mico-jax embed --checkpoint runs/demo --out v.npz -"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_checkpoint(parser)
  parser.add_argument(
    "--out",
    required=True,
    metavar="FILE",
    help=".parquet (id, modality, path, source, index, embedding), or .npy / "
    ".npz with a .jsonl of the rows beside it",
  )
  entries_lib.add_arguments(parser)
  parser.add_argument(
    "--shard-size",
    type=common.positive_int,
    default=256,
    metavar="N",
    help="files per shard: what a kill can cost (default: 256)",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an existing output"
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Embeds, with progress on stderr and a summary on stdout."""
  from mico_jax.run.commands import embed as job
  from mico_jax.run.monitor.progress import Progress

  names = entries_lib.names_of(args)
  job.check_out(args.out, overwrite=args.overwrite, inputs=names)
  model = common.load_model(args)
  entries = entries_lib.entries_of(args, names, model)
  with Progress(len(entries), label="embed") as bar:
    report = job.embed_files(
      model,
      entries,
      args.out,
      fingerprint=model.fingerprint,
      shard_size=args.shard_size,
      overwrite=args.overwrite,
      progress=lambda done, total, new: bar.update(done, samples=new),
    )
  if args.json:
    common.print_json(dataclasses.asdict(report))
    return 0
  resumed = f", {report.resumed} of them before" if report.resumed else ""
  common.say(
    f"{report.items} items{resumed} -> {report.out} "
    f"({report.items_per_second:.1f} items/s)"
  )
  if report.failed:
    common.say(f"{report.failed} files skipped, listed in {report.errors}")
  return 0
