"""Arguments, tables and warnings that the subcommands share."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mico_jax import config as config_lib
from mico_jax import json_text
from mico_jax.config import Config, ConfigError
from mico_jax.printing import escaped, escaped_json, escaped_page

if TYPE_CHECKING:
  from mico_jax.inference.omni_model import OmniModel
  from mico_jax.modalities import FileSpec

TYPES = """\
File types follow the extension (.jpg .png .webp image, .mp4 .webm video, .flac
.wav .ogg audio); prefix other kinds: depth:mm:FILE, depth:m:FILE,
depth:relative:FILE, normal:FILE, image:FILE; sensors with what their files do
not say: thermal:kelvin:FILE, imu:g,deg/s@50:FILE (UNIT@RATE in Hz);
molecules by themselves: graph:smiles:CCO."""


def say(line: str) -> None:
  """One line of results on stdout, with names of files made fit to print."""
  print(escaped(line))


def say_page(text: str) -> None:
  """Several lines of results on stdout; see `table` for names in them."""
  print(escaped_page(text))


def note(line: str) -> None:
  """One line on stderr, prefixed with the name of the program."""
  print(f"mico-jax: {escaped(line)}", file=sys.stderr, flush=True)


def note_failed(reasons: Sequence[str], of: int) -> None:
  """Names the files that were left out, and their number, if there are any."""
  for reason in reasons:
    note(f"skipped: {reason}")
  if reasons:
    note(f"{len(reasons)} of {of} files skipped.")


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds --json."""
  parser.add_argument(
    "--json", action="store_true", help="print results as JSON"
  )


def add_config(
  parser: argparse.ArgumentParser, *, required: bool = True
) -> None:
  """Adds --config; `--config.a.b=value` is taken out before parsing."""
  parser.add_argument(
    "--config",
    required=required,
    metavar="NAME",
    help="packaged config (demo, ...) or path of a .py file, which is run as a "
    "program: use none that you do not trust; NAME:ARG passes an argument; "
    "override keys with --config.train.steps=200",
  )


def add_checkpoint(
  parser: argparse.ArgumentParser,
  *,
  batch_size: bool = True,
  required: bool = True,
) -> None:
  """Adds --checkpoint and how it is loaded."""
  parser.add_argument(
    "--checkpoint",
    required=required,
    metavar="PATH",
    help="workdir of a run, one of its checkpoints/STEP folders, packaged "
    "weights (omniworld-tiny), or hf://owner/name",
  )
  parser.add_argument(
    "--check",
    choices=("full", "fast", "off"),
    default="full",
    help="full: hashes and self-check; fast: hashes only (default: full)",
  )
  parser.add_argument(
    "--not-strict",
    action="store_true",
    help="go on with a warning where the checkpoint does not verify",
  )
  if not batch_size:
    parser.set_defaults(batch_size=32)
    return
  parser.add_argument(
    "--batch-size",
    type=positive_int,
    default=32,
    metavar="N",
    help="inputs per compiled call (default: 32)",
  )


def positive_int(text: str) -> int:
  """An integer of at least one, for argparse."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f"{text} must be at least 1")
  return value


def at_most(most: int) -> Callable[[str], int]:
  """A type for argparse: an integer from 1 to `most`."""

  def integer(text: str) -> int:
    value = positive_int(text)
    if value > most:
      raise argparse.ArgumentTypeError(f"{text} must be at most {most}")
    return value

  integer.__name__ = "integer"  # argparse shows it
  return integer


def load_config(args: argparse.Namespace) -> Config:
  """The config of --config with its overrides."""
  return config_lib.load(args.config, args.overrides)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
  """Shows warnings as single lines on stderr."""

  def show(message: Any, *_: Any, **__: Any) -> None:
    note(f"warning: {message}")

  with warnings.catch_warnings():
    warnings.simplefilter("default")
    warnings.showwarning = show
    yield


def load_model(args: argparse.Namespace) -> OmniModel:
  """The model of --checkpoint; its compiled programs are kept."""
  from mico_jax.cli.compiled import keep_inference
  from mico_jax.inference.omni_model import load
  from mico_jax.parallel.backend import require_backend

  require_backend()
  keep_inference()
  if sys.stderr.isatty():
    note(f"loading {args.checkpoint} ...")
  with warnings_as_lines():
    return load(
      args.checkpoint,
      check=args.check,
      strict=not args.not_strict,
      batch_size=args.batch_size,
    )


def context_keys(model: OmniModel) -> list[str]:
  """Modalities that a text can be compared with or written about."""
  return [key for key in model.modalities if key != "text"]


def parse_files(
  texts: Sequence[str], keys: Sequence[str] = ()
) -> list[FileSpec]:
  """Files with their modality.

  Args:
    texts: as given on the command line.
    keys: modalities the checkpoint takes; empty: any.

  Raises:
    ConfigError: for an unknown type, or one the checkpoint does not take.
  """
  from mico_jax.modalities import file_spec

  specs = []
  for text in texts:
    try:
      spec = file_spec(text)
    except ValueError as e:
      raise ConfigError(str(e)) from e
    if keys and spec.key not in keys:
      raise ConfigError(
        f"{text!r} is {spec.key}; expected one of {', '.join(keys)}."
      )
    specs.append(spec)
  return specs


def check_there(specs: Sequence[FileSpec]) -> None:
  """Checks that there is a file to use, before a model is loaded.

  Some that are missing are left out later and named; if all are, that is known
  at once.

  Raises:
    ConfigError: if all files are local and missing.
  """
  missing = [
    spec.path
    for spec in specs
    if "://" not in spec.path and not os.path.exists(spec.path)
  ]
  if specs and len(missing) == len(specs):
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise ConfigError(
      f"{', '.join(missing[:3])}{more}: No such file or directory (in "
      f"{os.getcwd()})."
    )


def print_compared(compared: Mapping[str, float]) -> None:
  """A table of how far the outputs of two sides are apart, if any."""
  from mico_jax.interop.exporting import export

  if compared:
    rows = [
      (name, f"{gap:.1e}", f"{export.TOLERANCE:.0e}")
      for name, gap in compared.items()
    ]
    header = ("output", "largest difference", "limit")
    say_page(f"\n{table(rows, header)}")


def print_json(value: Any) -> None:
  """One JSON document on stdout; see `mico_jax.json_text`."""
  print(escaped_json(json_text.dumps(value, indent=1, ensure_ascii=False)))


def table(rows: Sequence[Sequence[Any]], header: Sequence[str] = ()) -> str:
  """Aligned columns; numbers to the right, the rest to the left."""
  cells = [[_cell(c) for c in row] for row in rows]
  numeric = [
    all(isinstance(row[i], (int, float)) for row in rows)
    for i in range(len(rows[0]) if rows else 0)
  ]
  lines = [list(header), *cells] if header else cells
  if not lines:
    return ""
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  numeric = numeric or [False] * len(widths)
  return "\n".join(
    "  ".join(
      c.rjust(w) if right else c.ljust(w)
      for c, w, right in zip(line, widths, numeric, strict=True)
    ).rstrip()
    for line in lines
  )


def _cell(value: Any) -> str:
  return f"{value:.4f}" if isinstance(value, float) else escaped(str(value))


def entries(table: Mapping[str, str]) -> list[str]:
  """Lines of a help that lists names with a text each."""
  wide = max(16, *map(len, table))
  return [
    line
    for name, text in table.items()
    for line in textwrap.wrap(
      text,
      78,
      initial_indent=f"  {name:<{wide}} ",
      subsequent_indent=" " * (wide + 3),
      break_on_hyphens=False,
    )
  ]
