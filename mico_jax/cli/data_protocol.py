"""`mico-jax data build --protocol`: what is made of a set's official files.

Of a benchmark, shards of its split, or of a part to train on; of a set of
`mico_jax.data.build.sets`, a manifest with its splits.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mico_jax.cli import common
from mico_jax.config import ConfigError, from_dict, parse_override

if TYPE_CHECKING:
  from mico_jax.data.build.sets import OfficialSet

_FORMAT = "array_record"  # of shards, unless told

# Arguments of `data build` that say how other material is taken apart.
_OTHERS = {
  "stages": "", "recipe": "", "shard": "0/1", "status": "parquet",
  "require": "", "engine": "local", "processes": None, "root": "", "field": [],
  "drop": [], "depth_unit": "", "metadata": "",
  "layout": "columns", "column": [], "sidecars": False, "key_dot": "first",
  "unit": [], "rate": [], "channels": [],
}  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Builds, and returns what is printed."""
  from mico_jax.data.build.sets import SETS

  if args.protocol in SETS:
    return _manifest(args, SETS[args.protocol])
  return _shards(args)


def _refuse(args: argparse.Namespace, others: Mapping[str, Any]) -> None:
  """Refuses arguments that a protocol says itself."""
  for name, default in others.items():
    if getattr(args, name) != default:
      raise ConfigError(
        f"--{name.replace('_', '-')}: a protocol says it, or packs files as "
        "they are; leave it out."
      )


def _manifest(
  args: argparse.Namespace, reader: type[OfficialSet]
) -> dict[str, Any]:
  """The manifest of a set's official files."""
  from mico_jax.data.build.sets.manifest import build
  from mico_jax.run.monitor.progress import Progress

  name = args.protocol
  _refuse(args, {**_OTHERS, "split": "", "shards": 0, "format": _FORMAT})
  if not args.folder:
    common.note(f"{name}: {reader.title}; from {reader.source}")
    for number, step in enumerate(reader.steps, start=1):
      common.note(f"  {number}. {step}")
    common.note("expected in the folder of --from:")
    for line in reader.layout:
      common.note(f"  {line}")
    common.note(f"chosen: {reader.note}")
    raise ConfigError("--from DIR: name the folder with these files.")
  options = {}
  for text in args.set:
    option, value = parse_override(text) if "=" in text else (text, None)
    if value is None or not option.startswith(f"{name}."):
      raise ConfigError(f"--set {text!r}: expected {name}.OPTION=VALUE.")
    options[option.removeprefix(f"{name}.")] = value
  out, bars = args.out or args.folder, []

  def progress(done: int, total: int) -> None:
    if total and not bars:
      bars.append(Progress(total, label="build"))
    if bars:
      bars[0].update(done, samples=done - bars[0].step)

  try:
    report = build(
      *(name, from_dict(options, reader, where="--set"), args.folder, out),
      other_split=args.other_split,
      progress=progress,
    )
  finally:
    for bar in bars:
      bar.close()
  command = f"mico-jax pretrain --config perception/{name}:{out}"
  if report.outside:  # whoever starts the run allows it
    for source in ("train", "test"):
      root = os.path.abspath(args.folder)
      command += f" --config.data.sources.{source}.root={root}"
  return {
    "samples": dict(report.samples),
    "manifest": report.manifest,
    "train": command,
  }


def _shards(args: argparse.Namespace) -> dict[str, Any]:
  """The shards of a benchmark."""
  from mico_jax.cli.evaluate import note_steps
  from mico_jax.data.convert import convert
  from mico_jax.evaluation.protocols import load_protocol
  from mico_jax.evaluation.protocols.user_copy import (
    MissingCopy,
    each_file_once,
    open_copy,
    write_shards_note,
  )
  from mico_jax.run.monitor.progress import Progress

  _refuse(args, {**_OTHERS, "set": []})
  protocol = load_protocol(args.protocol)
  part = None
  if args.split and args.split != protocol.split.name:
    part = protocol = protocol.of_part(args.split)
  if not args.folder or not args.out:
    note_steps(args.protocol, protocol)
    raise ConfigError("--from DIR --out DIR: name your copy, and the shards.")
  try:
    copy = open_copy(
      protocol, args.protocol, args.folder, other_split=args.other_split
    )
  except MissingCopy:
    note_steps(args.protocol, protocol)
    raise
  count = len(copy.source)
  bar = Progress(count, label="build")
  done_before = [0]

  def progress(done: int, _: int) -> None:
    if done > done_before[0]:
      bar.update(done, samples=done - done_before[0])
      done_before[0] = done

  try:
    source, shared = each_file_once(copy, args.format)
    report = convert(
      source,
      copy.spec,
      args.out,
      to=args.format,
      shard_samples=-(-count // args.shards) if args.shards else 1000,
      strict=args.strict,
      progress=progress,
    )
  finally:
    bar.close()
  if report.samples != count:
    name, kind, reason = report.errors[0]
    raise ConfigError(
      f"{count - report.samples} of {count} samples could not be written, so "
      f"the shards are not the split; the first: {name}: {kind}: {reason}"
    )
  spec = dataclasses.replace(
    report.source, fields={**report.source.fields, **shared}
  )
  written = write_shards_note(args.out, args.protocol, protocol, copy, spec)
  for name, kind, reason in report.errors:
    common.note(f"{name}: {kind}: {reason}")
  measured = {
    "evaluate": f"mico-jax evaluate --protocol {args.protocol} --data "
    f"{args.out} --checkpoint PATH",
  }
  return {
    "samples": report.samples,
    "without_media": report.bare,
    "could_not_be_read": dict(report.reasons),
    "shards": len(report.files),
    "protocol": written,
    **(measured if part is None else {}),
  }
