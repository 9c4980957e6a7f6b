"""`mico-jax data build --protocol`: shards of a benchmark's official files."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from mico_jax.cli import common
from mico_jax.config import ConfigError

# Arguments of `data build` that say how other material is taken apart.
_OTHERS = {
  "stages": "", "set": [], "recipe": "", "shard": "0/1", "status": "parquet",
  "require": "", "engine": "local", "processes": None, "split": "", "root": "",
  "field": [], "drop": [], "depth_unit": "", "metadata": "",
  "layout": "columns", "column": [], "sidecars": False, "key_dot": "first",
  "unit": [], "rate": [], "channels": [],
}  # fmt: skip


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Builds, and returns what is printed."""
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

  protocol = load_protocol(args.protocol)
  for name, default in _OTHERS.items():
    if getattr(args, name) != default:
      raise ConfigError(
        f"--{name.replace('_', '-')}: a protocol says it, or packs files as "
        "they are; leave it out."
      )
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
  return {
    "samples": report.samples,
    "without_media": report.bare,
    "could_not_be_read": dict(report.reasons),
    "shards": len(report.files),
    "protocol": written,
    "evaluate": f"mico-jax evaluate --protocol {args.protocol} --data "
    f"{args.out} --checkpoint PATH",
  }
