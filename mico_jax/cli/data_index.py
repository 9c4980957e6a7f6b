"""`mico-jax data index`: what is known of samples, written beside the data."""

from __future__ import annotations

import argparse
from typing import Any

from mico_jax.cli import common
from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig

# Ending of a file -> kind of source.
_KINDS = {
  ".jsonl": "manifest",
  ".tar": "webdataset",
  ".array_record": "array_record",
}


DAYS = 90.0  # an index that was not used for so long may go


def add_arguments(actions: Any) -> argparse.ArgumentParser:
  """Adds the action to those of `mico-jax data`."""
  parser = actions.add_parser(
    "index", help="index files, so that opening them takes no time"
  )
  common.add_config(parser, required=False)
  parser.add_argument(
    "files",
    nargs="*",
    metavar="FILE",
    help="manifests (.jsonl), tar shards or ArrayRecord files, local or remote",
  )
  parser.add_argument(
    "--prune",
    action="store_true",
    help="remove from the user's cache the indexes of local files that are gone"
    " or changed, and all that no run opened for --days",
  )
  parser.add_argument(
    "--days", type=float, default=DAYS, help="see --prune (default: %(default)g)"
  )
  return parser


def run(args: argparse.Namespace) -> dict[str, object]:
  """Indexes the sources of a config, or the files."""
  from mico_jax.data.index.prune import prune
  from mico_jax.data.sources import open_source

  if args.prune and not args.files and not args.config:
    return {"pruned": prune(args.days)._asdict()}
  config = _config(args)
  told = []
  for name in config.data.sources:
    source: Any = open_source(config, name)
    write = getattr(source, "write_index", list)
    describe = getattr(source, "presence", dict)
    told.append(
      {
        "source": name,
        "samples": len(source),
        "sha256": source.sha256,
        "indexed": write(),
        **describe(),
      }
    )
  if args.prune:
    return {"sources": told, "pruned": prune(args.days)._asdict()}
  return {"sources": told}


def _config(args: argparse.Namespace) -> Config:
  if bool(args.files) == bool(args.config):
    raise ConfigError(
      "data index: name files, or --config, and not both; or --prune."
    )
  if args.config:
    return common.load_config(args)
  sources = {}
  for file in args.files:
    kind = next((k for e, k in _KINDS.items() if file.endswith(e)), None)
    if kind is None:
      raise ConfigError(
        f"data index {file!r}: expected a name that ends in "
        f"{', '.join(_KINDS)}."
      )
    sources[file] = SourceConfig(kind=kind, path=file, split="")
  return Config(data=DataConfig(sources=sources))
