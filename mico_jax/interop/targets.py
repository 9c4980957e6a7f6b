"""The forms a checkpoint can be exported to.

`torch` is the PyTorch folder and, where the original layout can express the
model, a MiCo folder in `mico/`; `mico` is that folder alone; `safetensors` the
weights alone; `timm` and `openclip` the encoder, `transformers` the text tower
in the names of those libraries; `stablehlo` functions that JAX alone runs.
"""

from __future__ import annotations

import importlib.util
import math
import pathlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from mico_jax.checkpoint.manifest import flatten
from mico_jax.config import ConfigError
from mico_jax.interop import (
  clip,
  export,
  layout,
  originals,
  released,
  sharded,
  stablehlo,
  torch,
  tower_names,
)
from mico_jax.interop.export import Report, Source

SMALL = 400_000_000  # parameters
COMPARED = ("torch", "stablehlo")  # targets whose outputs are computed here


@dataclass(frozen=True)
class Options:
  """What a target may use.

  Attributes:
    max_shard_size: bytes of tensors per file.
    compare: run the other side (of `COMPARED`), or fail; None: where it can be
      run here, for models of up to `SMALL` parameters, as both sides are held
      at once.
  """

  max_shard_size: int = 5 * 10**9
  compare: bool | None = None


def _compared(source: Source, report: Report, options: Options) -> bool:
  """Whether to run both sides."""
  if options.compare is not None:
    return options.compare
  leaves = flatten(source.model.abstract_params()).values()
  small = sum(math.prod(leaf.shape) for leaf in leaves) <= SMALL
  if not small:
    report.notes.append(
      f"outputs not compared: more than {SMALL:,} parameters (--compare on)"
    )
  return small


def _torch(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  torch.write(source, folder, report, max_shard_size=options.max_shard_size)
  try:
    released.write(source, folder / "mico", report)
  except (ConfigError, originals.DroppedError) as e:
    shutil.rmtree(folder / "mico", ignore_errors=True)
    report.notes.append(f"no folder for the original code: {e}")
  if not _compared(source, report, options):
    return
  try:
    report.compared = torch.compare(source, folder)
  except ImportError as e:
    if options.compare:
      raise ConfigError(f"--compare on: torch cannot be loaded: {e}") from e
    report.notes.append(f"outputs not compared: {e}")


def _mico(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  del options
  released.write(source, folder, report)


def _safetensors(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  items = released.original_items(source)
  if items is None:
    items = layout.items(source.params, source.model)
    report.notes.append("names: parameter paths, layers unstacked")
  else:
    report.notes.append("names and dtypes: those of the imported file")
    absent = released.left_out(source)
    if absent:
      report.notes.append(
        f"not of that file, so not written: {export.summarise(absent)}; --to "
        "torch writes everything"
      )
  written = sharded.write(
    folder,
    items,
    max_shard_size=options.max_shard_size,
    metadata={"format": "pt"},
  )
  report.add("weights", written)


def _vision(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  vision, form = source.config.model.vision, report.target
  written = sharded.write(
    folder,
    tower_names.vision_items(source.params, vision, form),
    max_shard_size=options.max_shard_size,
    metadata={"format": "pt"},
  )
  report.add("encoder", written)
  absent = tower_names.left_out(source.params, vision, form)
  if absent:
    report.notes.append(
      f"{form} has no place for {export.summarise(absent)}: not written"
    )
  preprocessing = torch.preprocessing(source.config, source.tokenizer)
  image = preprocessing["inputs"].get("image", {})
  quick = "_quickgelu" if vision.mlp == "quick_gelu" else ""
  pixels = {k: image[k] for k in ("mean", "std") if k in image}
  about = {
    # The first two as timm's own repositories have them.
    "architecture": f"{vision.encoder}_patch{vision.patch_size}{quick}",
    "pretrained_cfg": {
      "input_size": [3, vision.image_size, vision.image_size],
      **pixels,
    },
    "model": tower_names.timm_model(vision),
    "preprocessing": image,
  }
  export.write_json(folder / "config.json", about)
  files = ["config.json"]
  if form == "openclip" and vision.pre_norm:
    files.append(clip.CONFIG)
    settings = tower_names.openclip_config(vision)
    settings |= {"preprocess_cfg": pixels} if pixels else {}
    export.write_json(folder / clip.CONFIG, settings)
  for name in files:
    report.add_file("encoder", folder / name, name)


def _transformers(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  written = sharded.write(
    folder,
    tower_names.text_items(source.params, source.config),
    max_shard_size=options.max_shard_size,
    metadata={"format": "pt"},
  )
  report.add("text tower", written)
  config = tower_names.text_config(source.config, source.tokenizer.info.pad)
  export.write_json(folder / "config.json", config)
  files = source.tokenizer.files()
  export.write_files(folder, files)
  for name in ("config.json", *files):
    report.add_file("text tower", folder / name, name)


def _stablehlo(
  source: Source, folder: pathlib.Path, report: Report, options: Options
) -> None:
  stablehlo.write(source, folder, report, max_shard_size=options.max_shard_size)
  if _compared(source, report, options):
    report.compared = stablehlo.compare(source, folder)


Target = Callable[[Source, pathlib.Path, Report, Options], None]
TARGETS: dict[str, Target] = {
  "torch": _torch,
  "mico": _mico,
  "safetensors": _safetensors,
  "timm": _vision,
  "openclip": _vision,
  "transformers": _transformers,
  "stablehlo": _stablehlo,
}


def check(target: str, options: Options) -> None:
  """Checks what needs no checkpoint.

  Raises:
    ConfigError: if the target is unknown, or its outputs are to be compared and
      cannot be.
  """
  if target not in TARGETS:
    raise ConfigError(
      f"cannot export to {target!r}; known: {', '.join(TARGETS)}."
    )
  if not options.compare:
    return
  if target not in COMPARED:
    raise ConfigError(
      f"--compare on: what --to {target} writes cannot be run here, only "
      f"{' and '.join(COMPARED)} can; leave --compare out."
    )
  if target == "torch" and importlib.util.find_spec("torch") is None:
    raise ConfigError(
      "--compare on: running the exported model needs torch: pip install "
      "'mico-jax[torch]', or leave --compare out."
    )


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
      what is in the way, or outputs are to be compared and cannot be.
  """
  options = options or Options()
  check(target, options)
  report = export.new_report(target, source)
  with sharded.new_folder(out) as folder:
    TARGETS[target](source, folder, report, options)
    report.save(folder)
  return report
