"""`mico-jax data build`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mico_jax import json_text
from mico_jax.cli import common, data_protocol, source_arguments
from mico_jax.config import ConfigError, SourceConfig, parse_override

if TYPE_CHECKING:
  from mico_jax.data.build import BuildReport
  from mico_jax.data.build.inputs import Input
  from mico_jax.data.build.job import Job

DESCRIPTION = """\
Packs a manifest or a benchmark (--protocol) as it is, or takes a folder of
videos or tar shards through
stages: shots, clips, frames, sound, captions, depth. Ends with the source
config that reads the result. The same command goes on where it was interrupted;
what fails is named with its reason in <out>/*.status.parquet. `data build
--list` tells of stages and their options."""
NAMED = 20  # failed rows that are named on stderr
_INPUT = ("manifest", "videos", "tars")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this action's arguments."""
  raw = parser.add_mutually_exclusive_group()
  raw.add_argument("--manifest", metavar="FILE.jsonl")
  raw.add_argument("--videos", metavar="DIR", help="with all below it")
  raw.add_argument("--tars", metavar="PATTERN", help="such as 'in/*.tar'")
  raw.add_argument(
    "--protocol",
    metavar="NAME",
    default="",
    help="benchmark (all: mico-jax evaluate --list) whose official files lie "
    "in --from DIR; evaluate --protocol NAME --data OUT reads the shards. Or a "
    "set such as sysu_mm01 (all: --list) of which --out gets a manifest",
  )
  parser.add_argument(
    "--from",
    dest="folder",
    default="",
    metavar="DIR",
    help="protocol: the folder of your copy",
  )
  parser.add_argument(
    "--other-split",
    action="store_true",
    help="protocol: build a copy whose samples are not those published",
  )
  parser.add_argument("--list", action="store_true", help="stages and options")
  parser.add_argument("--out", metavar="DIR")
  parser.add_argument(
    "--stages", default="", metavar="A,B", help="in this order"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="STAGE.OPTION=VALUE",
    help="an option of a stage; may be repeated",
  )
  parser.add_argument(
    "--recipe",
    default="",
    metavar="FILE.json",
    help='{"stages": [...], "options": {"STAGE": {...}}}; the others add to it',
  )
  _add_input(parser)
  parser.add_argument(
    "--shards", type=common.positive_int, default=0, metavar="N",
    help="default: 1 of a manifest, 1 per 64 videos, 1 per tar file",
  )  # fmt: skip
  parser.add_argument(
    "--shard", default="0/1", metavar="I/N",
    help="only every N-th shard from I (from 0) on, for arrays of jobs",
  )  # fmt: skip
  parser.add_argument(
    "--format", default="array_record", metavar="NAME",
    help="array_record (default) or webdataset",
  )  # fmt: skip
  parser.add_argument(
    "--status", default="parquet", metavar="NAME",
    help="tables of what became of each sample: parquet (default) or jsonl",
  )  # fmt: skip
  parser.add_argument(
    "--require", default="", metavar="A,B",
    help="modalities and kinds of captions that a sample must have",
  )  # fmt: skip
  parser.add_argument(
    "--engine", default="local", metavar="NAME", help="local (default) or ray"
  )
  parser.add_argument(
    "--processes", type=common.positive_int, metavar="N",
    help="shards built at a time (default: as many as there are CPUs)",
  )  # fmt: skip
  parser.add_argument(
    "--gpus", type=float, default=0.0, metavar="N",
    help="ray: GPUs of a worker, or a share of one such as 0.25 (default: 0)",
  )  # fmt: skip
  parser.add_argument(
    "--timeout", type=float, default=600.0, metavar="SECONDS",
    help="that a stage may hang at a sample until its process is replaced; the "
    "second time the sample has failed (default: %(default)s)",
  )  # fmt: skip
  parser.add_argument(
    "--strict", action="store_true", help="fail on the first broken sample"
  )


def _add_input(parser: argparse.ArgumentParser) -> None:
  """Adds what is said of the raw material."""
  parser.add_argument(
    "--split",
    default="",
    help="default: all samples; protocol: a part to train on, such as train",
  )
  parser.add_argument(
    "--root", default="", help="manifest: folder its paths may not leave"
  )
  parser.add_argument(
    "--field", action="append", default=[], metavar="MODALITY=NAME",
    help="manifest: field that holds a modality's files",
  )  # fmt: skip
  parser.add_argument(
    "--drop", action="append", default=[], metavar="NAME",
    help="manifest: field whose files are left out",
  )  # fmt: skip
  parser.add_argument(
    "--depth-unit", default="", metavar="UNIT",
    help="manifest: metre, millimetre or relative",
  )  # fmt: skip
  source_arguments.add_stated(parser)
  parser.add_argument(
    "--metadata", default="", metavar="PATTERN",
    help="videos: list of clips and captions (csv tsv json jsonl parquet)",
  )  # fmt: skip
  parser.add_argument(
    "--layout", default="columns", metavar="NAME",
    help="of the list: columns (default), hdvila or vast",
  )  # fmt: skip
  parser.add_argument(
    "--column", action="append", default=[], metavar="ROLE=NAME",
    help="of the list: id stem file span start end, or a kind of caption",
  )  # fmt: skip
  parser.add_argument(
    "--sidecars", action="store_true",
    help="videos: captions (.txt) and fields (.json) lie beside each file",
  )  # fmt: skip
  parser.add_argument(
    "--key-dot", default="first", metavar="WHICH",
    help="tars: keys end at the first (default) or last dot",
  )  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Builds, and returns what is printed."""
  from mico_jax.data import build
  from mico_jax.run.monitor.progress import Progress

  if args.list:
    return _listed()
  if args.protocol:
    return data_protocol.run(args)
  if args.folder or args.other_split:
    raise ConfigError("--from and --other-split are for --protocol.")
  job = _job(args)
  bars: list[Progress] = []

  def progress(done: int, total: int) -> None:
    if not bars:
      bars.append(Progress(total, label="build"))
    bars[0].update(done, samples=done - bars[0].step)

  try:
    report = build.run(
      job,
      engine=args.engine,
      workers=args.processes or os.cpu_count() or 1,
      part=_part(args.shard),
      progress=progress,
    )
  finally:
    for bar in bars:
      bar.close()
  return _told(job, report)


def _told(job: Job, report: BuildReport) -> dict[str, Any]:
  """The result, with failed rows named on stderr."""
  from mico_jax.data.storage import short

  for name, reason in report.skipped[:NAMED]:
    common.note(f"skipped {short(name)}: {reason}")
  if len(report.skipped) > NAMED:
    common.note(
      f"and {len(report.skipped) - NAMED} more; the others stand in "
      f"{job.out}/*.status.{job.status}"
    )
  shown = (
    *("kind", "path", "split", "fields", "captions", "depth_unit"),
    *("units", "rates", "channels"),
  )
  source = {
    name: value
    for name, value in dataclasses.asdict(report.source).items()
    if name in shown and (value or name == "split")
  }
  return {
    "samples": report.count,
    "skipped": len(report.skipped),
    **({"skipped_by_kind": dict(report.kinds)} if report.kinds else {}),
    **({"without": dict(report.lacks)} if report.lacks else {}),
    **({"shards_left": report.left} if report.left else {}),
    "files": list(report.files),
    "source": source,
  }


def _part(text: str) -> tuple[int, int]:
  i, sep, n = text.partition("/")
  if not (sep and i.isdigit() and n.isdigit()):
    raise ConfigError(f"--shard {text!r}: expected I/N, such as 0/8.")
  return int(i), int(n)


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
  """NAME=VALUE texts as a mapping."""
  pairs = {}
  for text in texts:
    name, sep, value = text.partition("=")
    if not (name and sep and value):
      raise ConfigError(f"{option} {text!r}: expected NAME=VALUE.")
    if name in pairs:
      raise ConfigError(f"{option} {name}=... is said twice.")
    pairs[name] = value
  return pairs


def _job(args: argparse.Namespace) -> Job:
  from mico_jax.data.build.job import Job

  if not args.out:
    raise ConfigError("--out DIR: say where the shards are written.")
  stages, options = _recipe(args.recipe)
  stages += [name for name in args.stages.split(",") if name]
  for text in args.set:
    name, value = parse_override(text) if "=" in text else (text, None)
    stage, dot, option = name.partition(".")
    if value is None or not dot:
      raise ConfigError(f"--set {text!r}: expected STAGE.OPTION=VALUE.")
    options.setdefault(stage, {})[option] = value
  return Job(
    _input(args, bool(stages)),
    args.out,
    stages=tuple(stages),
    options=options,
    shards=args.shards,
    format=args.format,
    status=args.status,
    require=tuple(name for name in args.require.split(",") if name),
    strict=args.strict,
    timeout=args.timeout,
    gpus=args.gpus,
  )


def _recipe(path: str) -> tuple[list[str], dict[str, dict[str, Any]]]:
  """Stages and options of a file."""
  if not path:
    return [], {}
  try:
    recipe = json.loads(
      pathlib.Path(path).read_text(), object_pairs_hook=json_text.unique
    )
  except (OSError, ValueError) as error:
    raise ConfigError(f"--recipe {path}: {error}") from error
  good = isinstance(recipe, dict) and recipe.keys() <= {"stages", "options"}
  stages, options = (
    (recipe.get("stages", []), recipe.get("options", {})) if good else (0, 0)
  )
  if not isinstance(stages, list) or not isinstance(options, dict):
    raise ConfigError(
      f'--recipe {path}: expected {{"stages": [...], "options": {{...}}}}.'
    )
  if not all(isinstance(value, Mapping) for value in options.values()):
    raise ConfigError(
      f"--recipe {path}: the options of each stage are a mapping."
    )
  return [str(s) for s in stages], {k: dict(v) for k, v in options.items()}


# What only one kind of input reads, by its flag.
_READS = {
  "manifest": (
    *("root", "field", "drop", "depth_unit"),
    *("unit", "rate", "channels"),
  ),
  "videos": ("metadata", "layout", "sidecars"),
  "tars": ("key_dot",),
}


def _input(args: argparse.Namespace, staged: bool) -> Input:
  from mico_jax.data.build.inputs import ManifestInput, TarsInput, VideosInput

  kind = next((k for k in _INPUT if getattr(args, k)), "")
  if not kind:
    flags = ", ".join(f"--{k}" for k in _INPUT)
    raise ConfigError(f"say what to build of: one of {flags}.")
  defaults = {"layout": "columns", "key_dot": "first"}
  for other, names in _READS.items():
    for name in names:
      unset = ("", [], False, defaults.get(name))
      if other != kind and getattr(args, name) not in unset:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} is for --{other}, not for --{kind}.")
  columns = _pairs("--column", args.column)
  if kind == "manifest":
    source = SourceConfig(
      kind=kind,
      path=args.manifest,
      split=args.split,
      root=args.root,
      fields=_pairs("--field", args.field),
      captions=columns,
      depth_unit=args.depth_unit,
      **source_arguments.stated_fields(args),
    )
    return ManifestInput(source, drop=tuple(args.drop), open_files=staged)
  if kind == "tars":
    return TarsInput(
      args.tars, columns=columns, key_dot=args.key_dot, split=args.split
    )
  return VideosInput(
    args.videos,
    metadata=args.metadata,
    layout=args.layout,
    columns=columns,
    sidecars=args.sidecars,
    split=args.split,
  )


def _listed() -> dict[str, Any]:
  """Stages and sets with what they do, their options and defaults."""
  from mico_jax.data.build.sets import SETS
  from mico_jax.data.build.stages import STAGES

  defaults = lambda cls: {f.name: f.default for f in dataclasses.fields(cls)}
  stages = {
    name: {"does": stage.summary(), "options": defaults(stage.Options)}
    for name, stage in STAGES.items()
  }
  sets = {
    f"--protocol {name}": {"does": reader.title, "options": defaults(reader)}
    for name, reader in SETS.items()
  }
  return stages | sets
