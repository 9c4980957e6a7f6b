"""`mico-jax data index`: what is known of samples, written beside the data."""

from __future__ import annotations

import argparse
from typing import Any

from mico_jax.cli import common
from mico_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  SourceConfig,
  stages_of,
)

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
    "index",
    help="index files, so that opening them takes no time",
    description="Reads once what opening the sources needs, and keeps it: "
    "places and ids of samples beside the data, what --config selects (split, "
    "where, "
    "require) and sorts (data.text_buckets) in the user's cache. With "
    "data.num_workers, texts are measured by so many processes.",
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
    "--days",
    type=float,
    default=DAYS,
    help="see --prune (default: %(default)g)",
  )
  return parser


def run(args: argparse.Namespace) -> dict[str, object]:
  """Indexes the sources of a config, or the files."""
  from mico_jax.data.index.prune import prune
  from mico_jax.data.sources import open_source

  if args.prune and not args.files and not args.config:
    return {"pruned": prune(args.days)._asdict()}
  config = _config(args)
  told, sources = [], {}
  for name in config.data.sources:
    source: Any = open_source(config, name)
    sources[name] = source
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
  found: dict[str, object] = {"sources": told}
  if config.data.text_buckets:
    found["text_buckets"] = _text_buckets(config, sources)
  if args.prune:
    found["pruned"] = prune(args.days)._asdict()
  return found


def _text_buckets(config: Config, sources: Any) -> dict[str, dict[str, Any]]:
  """Sorts the samples of each task by the length of their texts, and counts.

  Args:
    config: of the run.
    sources: its sources, open.
  """
  import numpy as np

  from mico_jax.data.text_classes import text_classes
  from mico_jax.data.tokenizer import make_tokenizer
  from mico_jax.run.setup import training_captions

  captions = training_captions(config, sources)
  tokenizer = make_tokenizer(config.data.tokenizer, captions)
  found: dict[str, dict[str, Any]] = {}
  for stage in stages_of(config):
    lengths = text_classes(stage.config, tokenizer, sources)
    for task, part in lengths.items():
      limits = (*part.limits, "longer")
      found[task] = {
        name: dict(zip(limits, np.diff(ends, prepend=0).tolist(), strict=True))
        for name, ends in part.ends.items()
      }
  return found


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
