"""`mico-jax index`."""

from __future__ import annotations

import argparse
import dataclasses

from mico_jax.cli import common
from mico_jax.cli import entries as entries_lib
from mico_jax.config import ConfigError

DESCRIPTION = f"""\
Makes an index of embeddings to search: OUT/emb/emb_N.npy (float32) and
OUT/metadata/metadata_N.parquet, which FAISS and the users of clip-retrieval
read as they are. Run again, it adds files that are new and embeds those again
that have changed; killed, it goes on behind the last finished shard. Files that
cannot be read are skipped, counted and listed.

{common.TYPES}
A folder stands for all files of known types below it."""
EXAMPLES = """\
  mico-jax index --checkpoint runs/demo --out idx photos/ clips/*.mp4
  mico-jax index --checkpoint runs/demo --out idx --from webdataset \\
    --path 'shards/*.tar'
  mico-jax index --out idx --remove photos/old.jpg
  mico-jax index --out idx --prune
  mico-jax search --index idx --text "a red cube" """


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's arguments."""
  common.add_checkpoint(parser, required=False)
  parser.add_argument(
    "--out", required=True, metavar="DIR", help="folder of the index"
  )
  entries_lib.add_arguments(parser)
  parser.add_argument(
    "--remove", action="store_true", help="remove the rows of these files"
  )
  parser.add_argument(
    "--prune",
    action="store_true",
    help="remove the rows of files that are not there any more",
  )
  parser.add_argument(
    "--shard-size",
    type=common.positive_int,
    default=256,
    metavar="N",
    help="files per shard: what a kill can cost (default: 256)",
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> int:
  """Changes the index, with progress on stderr and a summary on stdout."""
  from mico_jax.run.commands import index as job
  from mico_jax.run.monitor.progress import Progress

  if args.remove or args.prune:
    if args.remove and not args.files:
      raise ConfigError("--remove: name the files whose rows go.")
    if args.prune and args.files and not args.remove:
      raise ConfigError("--prune takes no files; add them in another command.")
    report = job.remove_from_index(args.out, args.files, missing=args.prune)
  else:
    if not args.checkpoint:
      raise ConfigError("give --checkpoint, which embeds the files.")
    names = entries_lib.names_of(args)
    model = common.load_model(args)
    entries = entries_lib.entries_of(args, names, model)
    with Progress(len(entries), label="index") as bar:
      report = job.update_index(
        model,
        entries,
        args.out,
        checkpoint=args.checkpoint,
        shard_size=args.shard_size,
        progress=lambda done, total, new: bar.update(done, samples=new),
      )
  if args.json:
    common.print_json(dataclasses.asdict(report))
    return 0
  counts = dataclasses.asdict(report)
  changes = [
    f"{counts[name]} {name}"
    for name in ("added", "updated", "removed", "unchanged")
    if counts[name]
  ]
  common.say(f"{report.items} items in {report.out}: {', '.join(changes)}")
  if report.failed:
    common.say(f"{report.failed} files skipped, listed in {report.errors}")
  return 0
