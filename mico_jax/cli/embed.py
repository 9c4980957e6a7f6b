"""`mico-jax embed`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from mico_jax.cli import common, source_arguments
from mico_jax.config import ConfigError, SourceConfig

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
  parser.add_argument(
    "files",
    nargs="*",
    metavar="FILE",
    help="files, a manifest (.jsonl), or - for names on stdin, one a line",
  )
  parser.add_argument(
    "--modality",
    action="append",
    metavar="KEY",
    help="of a manifest or other data, only this modality; may be repeated",
  )
  source_arguments.add_kind(parser)
  source_arguments.add_fields(parser)
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


def _names(files: Sequence[str]) -> list[str]:
  if list(files) != ["-"]:
    return list(files)
  return [line.rstrip("\r\n") for line in sys.stdin if line.strip()]


def _source(args: argparse.Namespace, path: str) -> SourceConfig:
  """Config of a manifest."""
  return source_arguments.spec_of(args, kind="manifest", path=path)


def run(args: argparse.Namespace) -> int:
  """Embeds, with progress on stderr and a summary on stdout."""
  from mico_jax.modalities import MODALITIES
  from mico_jax.run.commands import embed as job
  from mico_jax.run.commands.entries import file_entries, source_entries
  from mico_jax.run.monitor.progress import Progress

  names = _names(args.files)
  spec = None
  if args.kind or args.path:
    spec = source_arguments.spec_of(args)
  elif not names:
    raise ConfigError("name files, or give --from KIND and --path PATH.")
  job.check_out(args.out, overwrite=args.overwrite, inputs=names)
  manifests = [n for n in names if n.endswith(".jsonl")]
  common.parse_files([n for n in names if n not in manifests])
  for key in args.modality or ():
    if key not in MODALITIES:
      raise ConfigError(
        f"--modality {key}: unknown; known: {', '.join(MODALITIES)}."
      )
  model = common.load_model(args)
  keys = args.modality or [
    k for k in model.modalities if MODALITIES[k].kind == "knowledge"
  ]
  entries = []
  for name in names:
    if name in manifests:
      entries += source_entries(_source(args, name), keys)
    else:
      specs = common.parse_files([name], model.modalities)
      entries += file_entries(specs, len(entries))
  if spec is not None:
    entries += source_entries(spec, keys)
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
