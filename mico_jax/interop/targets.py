"""The forms a checkpoint can be exported to.

`torch` is the PyTorch folder and, where the original layout can express the
model, a MiCo folder in `mico/`; `mico` is that folder alone; `safetensors` the
weights alone.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

from mico_jax.config import ConfigError
from mico_jax.interop import export, layout, released, sharded, torch
from mico_jax.interop.export import Report, Source


@dataclass(frozen=True)
class Options:
  """What a target may use.

  Attributes:
    max_shard_size: bytes of tensors per file.
    compare: run the other side where it can be run here.
  """

  max_shard_size: int = 5 * 10**9
  compare: bool = True


def _torch(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  torch.write(source, folder, report, max_shard_size=options.max_shard_size)
  try:
    released.write(source, folder / "mico", report)
  except (ConfigError, ImportError) as e:
    report.notes.append(f"no folder for the original code: {e}")
  if not options.compare:
    return
  try:
    report.compared = torch.compare(source, folder)
  except ImportError as e:
    report.notes.append(f"outputs not compared: {e}")


def _mico(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  del options
  try:
    released.write(source, folder, report)
  except ImportError as e:
    raise ConfigError(
      f"{e}: a .pt file needs PyTorch; pip install 'mico-jax[torch]'."
    ) from e


def _safetensors(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  items = released.original_items(source)
  if items is None:
    items = layout.items(source.params, source.model)
    report.notes.append("names: parameter paths, layers unstacked")
  else:
    report.notes.append("names and dtypes: those of the imported file")
  written = sharded.write(
    folder,
    items,
    max_shard_size=options.max_shard_size,
    metadata={"format": "pt"},
  )
  report.add("weights", written)


Target = Callable[[Source, pathlib.Path, Report, Options], None]
TARGETS: dict[str, Target] = {
  "torch": _torch,
  "mico": _mico,
  "safetensors": _safetensors,
}


def run(
  source: Source,
  target: str,
  out: pathlib.Path,
  options: Options | None = None,
) -> Report:
  """Writes an export; nothing is left behind if it fails.

  Args:
    source: what to export.
    target: key of `TARGETS`.
    out: a new folder.
    options: of the export.

  Raises:
    ConfigError: if the target is unknown or cannot express the model, naming
      what is in the way.
  """
  if target not in TARGETS:
    raise ConfigError(
      f"cannot export to {target!r}; known: {', '.join(TARGETS)}."
    )
  report = export.new_report(target, source)
  with sharded.new_folder(out) as folder:
    TARGETS[target](source, folder, report, options or Options())
    report.save(folder)
  return report
