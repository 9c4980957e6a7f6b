"""Export of checkpoints to the formats of other libraries.

`torch` writes the PyTorch folder and, where the official layout can express the
model, an official MiCo folder in `mico/`; `mico` that folder alone;
`safetensors` the weights alone; `timm` and `openclip` the encoder,
`transformers` the text tower in the names of those libraries; `stablehlo`
functions that need JAX alone.
"""

from __future__ import annotations

import importlib.util
import math
import pathlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

from mico_jax import extras
from mico_jax.checkpoint.manifest import flatten
from mico_jax.config import ConfigError
from mico_jax.interop.exporting import (
  export,
  official_folder,
  openclip_folder,
  stablehlo,
  timm_folder,
  torch_folder,
  transformers_text,
)
from mico_jax.interop.exporting.export import (
  SHARD_SIZE,
  ExportReport,
  OpenedCheckpoint,
  Options,
)
from mico_jax.interop.files import folders
from mico_jax.interop.importing import source_tensors
from mico_jax.interop.names import torch_modules
from mico_jax.printing import known_names

SMALL = 400_000_000  # parameters
ONE_FILE = ("timm", "openclip")  # clients that read no shards
# Target -> packages that run its output; that of other targets is not run here.
CLIENTS: dict[str, tuple[str, ...]] = {
  "torch": ("torch",),
  "timm": ("timm", "torch"),
  "openclip": ("open_clip", "timm", "transformers", "torch"),
  "transformers": ("transformers", "torch"),
  "stablehlo": (),
}


def _compare(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: Options,
) -> None:
  """Opens the folder with the target's library, or notes why not.

  Raises:
    ConfigError: if a comparison is required and a package cannot be loaded.
  """
  target = TARGETS[report.target]
  if target.compare is None:
    report.notes += target.notes
    return
  why = ""
  if options.compare is False:
    why = "--compare off"
  elif options.compare is None:
    leaves = flatten(source.model.abstract_params()).values()
    if sum(math.prod(leaf.shape) for leaf in leaves) > SMALL:
      why = f"more than {SMALL:,} parameters (--compare on)"
  why = why or _absent(report.target)
  if not why:
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the libraries
        report.compared = target.compare(source, folder)
    except ImportError as e:
      why = str(e)
      if options.compare:
        name = CLIENTS[report.target][0]
        raise ConfigError(f"--compare on: {name} cannot be loaded: {e}") from e
  if why:
    report.notes.append(f"outputs not compared: {why}")


def _absent(target: str) -> str:
  """The packages that a comparison lacks, and how to install them; "": none."""
  absent = [n for n in CLIENTS[target] if importlib.util.find_spec(n) is None]
  if not absent:
    return ""
  extra = "torch" if target == "torch" else "clients"
  return f"needs {', '.join(absent)}: {extras.install(extra)}"


def _torch(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: Options,
) -> None:
  torch_folder.write(source, folder, report, options)
  try:
    official_folder.write(source, folder / "mico", report)
  except (ConfigError, source_tensors.DroppedError) as e:
    shutil.rmtree(folder / "mico", ignore_errors=True)
    report.notes.append(f"no folder for the official code: {e}")


def _safetensors(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: Options,
) -> None:
  items = official_folder.original_items(source)
  if items is None:
    items = torch_modules.items(source.params, source.model)
    report.notes.append("names: parameter paths, layers unstacked")
  else:
    report.notes.append("names and dtypes: those of the imported file")
    absent = official_folder.left_out(source)
    if absent:
      report.notes.append(
        f"not of that file, so not written: {export.summarise(absent)}; --to "
        "torch writes everything"
      )
  export.write_tensors(report, "weights", folder, items, options)


Write = Callable[[OpenedCheckpoint, pathlib.Path, ExportReport, Options], None]


@dataclass(frozen=True)
class Target:
  """A format of exports.

  Attributes:
    write: writes a checkpoint to an existing folder.
    compare: differences of its outputs to ours; None: nothing runs it here.
    notes: of the report, if there is nothing to compare with.
  """

  write: Write
  compare: Callable[[OpenedCheckpoint, pathlib.Path], dict[str, float]] | None
  notes: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
  "torch": Target(_torch, torch_folder.compare),
  "mico": Target(
    official_folder.write,
    None,
    ("outputs not compared: only the official code reads it",),
  ),
  "safetensors": Target(_safetensors, None),
  "timm": Target(timm_folder.write, timm_folder.compare),
  "openclip": Target(openclip_folder.write, openclip_folder.compare),
  "openclip-vision": Target(
    openclip_folder.write_vision,
    None,
    ("outputs not compared: tensors alone, no model of its own",),
  ),
  "transformers": Target(transformers_text.write, transformers_text.compare),
  "stablehlo": Target(stablehlo.write, stablehlo.compare),
}


def check(target: str, options: Options) -> None:
  """Checks target and options before a checkpoint is opened.

  Raises:
    ConfigError: if the target is unknown, cannot be written in shards, or its
      outputs cannot be compared although they are to be.
  """
  if target not in TARGETS:
    raise ConfigError(
      f"cannot export to {target!r}; {known_names(target, TARGETS)}"
    )
  if target in ONE_FILE and options.max_shard_size != SHARD_SIZE:
    raise ConfigError(
      f"--max-shard-size: {target} reads one file of weights; leave it out."
    )
  if not options.compare:
    return
  if target not in CLIENTS:
    raise ConfigError(
      f"--compare on: what --to {target} writes cannot be run here, only "
      f"{', '.join(CLIENTS)} can; leave --compare out."
    )
  if absent := _absent(target):
    raise ConfigError(f"--compare on: {absent}, or leave --compare out.")


def run(
  source: OpenedCheckpoint,
  target: str,
  out: pathlib.Path,
  options: Options | None = None,
) -> ExportReport:
  """Writes an export; leaves nothing behind if it fails.

  Args:
    source: checkpoint to export.
    target: key of `TARGETS`.
    out: a new folder.
    options: of the export.

  Raises:
    ConfigError: if the target is unknown or cannot express the model, naming
      the reason, or outputs cannot be compared although they are to be.
  """
  options = options or Options()
  check(target, options)
  report = export.new_report(target, source)
  options = replace(options, place=folders.check_new(out))
  with folders.new_folder(out) as folder:
    TARGETS[target].write(source, folder, report, options)
    _compare(source, folder, report, options)
    report.save(folder)
  return report
