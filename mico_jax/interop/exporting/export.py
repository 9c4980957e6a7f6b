"""The opened checkpoint, the report and the files of every export.

An export opens a checkpoint and writes a folder with `export_report.json`:
every tensor with bytes and SHA-256, every file, and, where the target's library
is installed, the differences between its outputs and ours on the inputs of the
checkpoint's self-check.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import restore, selfcheck
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config
from mico_jax.data.tokenizer import Tokenizer, tokenizer_from_files
from mico_jax.inference.self_check import (
  LOGITS,
  SelfCheck,
  model_params,
  self_check,
)
from mico_jax.interop.files import safetensors_writer
from mico_jax.interop.files.tensors import Item, Written
from mico_jax.models import MiCo, build
from mico_jax.parallel.backend import require_backend

REPORT = "export_report.json"
SHARD_SIZE = 5 * 10**9  # bytes
TOLERANCE = 1e-5  # of float32 outputs on the self-check inputs
RAW = "raw/"  # prefix of outputs that include the target's own preprocessing


@dataclasses.dataclass
class OpenedCheckpoint:
  """An opened checkpoint, ready to be written in another form.

  Attributes:
    checkpoint: as restored.
    params: of the model alone, low-rank deltas merged, host arrays.
    tokenizer: of the checkpoint.
    model: of its config.
  """

  checkpoint: restore.Checkpoint
  params: Mapping[str, Any]
  tokenizer: Tokenizer
  model: MiCo

  @property
  def config(self) -> Config:
    """Config of the run that made the checkpoint."""
    return self.checkpoint.config

  def self_check(self) -> dict[str, np.ndarray]:
    """Inputs and our outputs; computed where the stored ones do not apply.

    The stored outputs are those of the weights that are loaded by default.
    """
    stored = self.checkpoint.self_check()
    wanted = self.checkpoint.manifest.get("self_check_of")
    if stored is not None and wanted == self.checkpoint.source:
      return stored
    check = SelfCheck(self.config, self.tokenizer)
    if stored is None:
      return check(self.params)
    inputs = selfcheck.inputs(stored)
    arrays = {f"{selfcheck.INPUT}{k}": v for k, v in inputs.items()}
    return {**arrays, **check.outputs(self.params, inputs)}


def open_source(
  path: str | pathlib.Path,
  *,
  weights: str = "ema",
  check: restore.Check = "fast",
  strict: bool = True,
) -> OpenedCheckpoint:
  """Opens a checkpoint for export.

  Warns where it continues in spite of a problem: when the newest step is broken
  and an older one is taken and, with `strict=False`, about all that does not
  verify.

  Args:
    path: workdir or step folder.
    weights: "ema" (averaged, where the checkpoint has them) or "raw".
    check: "full": content hashes and the self-check's outputs; "fast": hashes
      only; "off": neither.
    strict: see `restore.open_checkpoint`.

  Raises:
    ValueError: for other `weights`.
    CheckpointError: if it cannot be read or does not verify.
    ConfigError: if JAX has no device to compute on.
  """
  if weights not in ("ema", "raw"):
    raise ValueError(f"{weights=} must be ema or raw.")
  require_backend()
  ema = weights == "ema"
  checkpoint = restore.open_checkpoint(
    path, strict=strict, ema=ema, arrays=False
  )
  # The original tensors of an import can be read without the parameters.
  imported = "import" in checkpoint.manifest
  runs = check == "full" and checkpoint.self_check() is not None
  if not imported:  # A run may have to go back to an older step.
    checkpoint = restore.open_checkpoint(
      path, check=check, strict=strict, ema=ema
    )
  elif runs:
    checkpoint = restore.read_params(checkpoint, check=check, strict=strict)
  _warn(checkpoint, checkpoint.warnings)
  try:
    tokenizer = tokenizer_from_files(checkpoint.tokenizer_files())
  except ValueError as e:
    raise CheckpointError(f"{checkpoint.folder}: {e}") from e
  if check == "full":
    problems = self_check(
      checkpoint,
      tokenizer,
      strict=strict,
      otherwise="--not-strict exports them all the same",
    )
    _warn(checkpoint, problems)
  config = checkpoint.config
  if imported and not runs:
    params = Lazy(lambda: _late_params(checkpoint, check, strict))
  else:
    params = model_params(checkpoint.params, config)
  return OpenedCheckpoint(checkpoint, params, tokenizer, build(config.model))


def _late_params(
  checkpoint: restore.Checkpoint, check: restore.Check, strict: bool
) -> Mapping[str, Any]:
  """The parameters of a checkpoint that was opened without them."""
  whole = restore.read_params(checkpoint, check=check, strict=strict)
  _warn(whole, whole.warnings[len(checkpoint.warnings) :])
  return model_params(whole.params, checkpoint.config)


def _warn(checkpoint: restore.Checkpoint, lines: Sequence[str]) -> None:
  for line in lines:
    warnings.warn(f"{checkpoint.folder}: {line}", UserWarning, stacklevel=3)


class Lazy(Mapping[str, Any]):
  """A mapping that is made at its first use."""

  def __init__(self, make: Callable[[], Mapping[str, Any]]):
    self._make = make

  @functools.cached_property
  def _made(self) -> Mapping[str, Any]:
    return self._make()

  def __getitem__(self, key: str) -> Any:
    return self._made[key]

  def __iter__(self) -> Iterator[str]:
    return iter(self._made)

  def __len__(self) -> int:
    return len(self._made)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of an export.

  Attributes:
    max_shard_size: bytes of tensors per file.
    compare: whether to compare outputs with those of the target's library, or
      fail; None: where it is installed, for models whose copy fits in memory.
    place: final path of the folder; None: where it is written.
  """

  max_shard_size: int = SHARD_SIZE
  compare: bool | None = None
  place: pathlib.Path | None = None


DEFAULTS = Options()


@dataclasses.dataclass
class ExportReport:
  """The result of an export.

  Attributes:
    target: key of `exporter.TARGETS`.
    source: {"checkpoint", "step", "weights", "fingerprint"}.
    files: {"part", "name", "bytes", "sha256", "tensors"}; tensors: how many.
    tensors: {"name", "dtype", "shape", "bytes", "sha256"}.
    compared: name of an output -> largest absolute difference to ours; empty
      where the target's library is not installed.
    notes: what was left out and why, one line each.
  """

  target: str
  source: Mapping[str, Any]
  files: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  tensors: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  compared: dict[str, float] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)

  def as_dict(self) -> dict[str, Any]:
    """The content of export_report.json."""
    return dataclasses.asdict(self)

  def add(self, part: str, written: Written, prefix: str = "") -> None:
    """Adds files with tensors of one part, in the subfolder `prefix`."""
    for file in written.files:
      self.files.append({"part": part, **file, "name": prefix + file["name"]})
    self.tensors += [{"part": part, **one} for one in written.tensors]

  def add_file(self, part: str, path: pathlib.Path, name: str) -> None:
    """Adds a file without tensors."""
    data = path.read_bytes()
    self.files.append(
      {
        "part": part,
        "name": name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "tensors": 0,
      }
    )

  def rows(self) -> list[tuple[Any, ...]]:
    """Rows of the printed table: file, tensors, bytes, hash."""
    return [
      (f["name"], f["tensors"], f["bytes"], f["sha256"][:16])
      for f in self.files
    ]

  def failures(self) -> list[str]:
    """Outputs beyond the tolerance, one line each."""
    return failures(self.compared)

  def save(self, folder: pathlib.Path) -> None:
    """Writes the report beside the export."""
    text = json.dumps(self.as_dict(), indent=1) + "\n"
    (folder / REPORT).write_text(text)


def failures(compared: Mapping[str, float]) -> list[str]:
  """Compared outputs beyond the tolerance, one line each."""
  return [
    f"{name} differs by {value:.2g} (limit {TOLERANCE:.0e})"
    for name, value in compared.items()
    if not value <= TOLERANCE
  ]


def new_report(target: str, source: OpenedCheckpoint) -> ExportReport:
  """An empty report about a checkpoint.

  Parameters of objectives, such as heads of classes, are in no export.
  """
  checkpoint = source.checkpoint
  paths = checkpoint.manifest["items"]["params"]
  heads = {
    "/".join(p.split("/")[:3]) for p in paths if p.startswith("objective/")
  }
  notes = [
    f"left out: {', '.join(sorted(heads))}, which serve training and "
    "`mico-jax evaluate` alone."
  ]
  return ExportReport(
    target,
    {
      "checkpoint": str(checkpoint.folder),
      "step": checkpoint.step,
      "weights": "ema" if checkpoint.source == "ema" else "raw",
      "fingerprint": manifest_lib.fingerprint(checkpoint.folder),
    },
    notes=notes if heads else [],
  )


def differences(
  stored: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """Largest absolute difference of every stored output.

  That of logits, which are unbounded, is relative to the largest one above 1.
  """
  gaps = {}
  for name, want in stored.items():
    if not name.startswith(selfcheck.OUTPUT):
      continue
    got = np.asarray(outputs[name])
    label = name.removeprefix(selfcheck.OUTPUT)
    if got.shape != want.shape:
      gaps[label] = float("inf")
    else:
      gap = np.abs(got.astype("f8") - want.astype("f8"))
      scale = np.max(np.abs(want), initial=1.0) if label == LOGITS else 1.0
      gaps[label] = float(np.max(gap, initial=0.0) / scale)
  return gaps


def write_tensors(
  report: ExportReport,
  part: str,
  folder: pathlib.Path,
  items: Iterable[Item],
  options: Options | None = None,
  *,
  name: str = safetensors_writer.WEIGHTS,
  prefix: str = "",
) -> None:
  """Writes tensors for PyTorch and adds them to the report.

  Args:
    report: gets the files and tensors of `part`.
    part: of the export that they belong to.
    folder: an existing folder.
    items: in the order of the file.
    options: of the export; None: one file, for libraries that read no shards.
    name: of the file, if it is one.
    prefix: of the subfolder in the export, such as "decoder/".
  """
  written = safetensors_writer.write(
    folder,
    items,
    max_shard_size=options.max_shard_size if options else 2**63,
    metadata={"format": "pt"},
    name=name,
  )
  report.add(part, written, prefix)


def write_document(
  report: ExportReport,
  part: str,
  folder: pathlib.Path,
  name: str,
  value: Any,
  prefix: str = "",
) -> None:
  """Writes a JSON file and adds it to the report; arguments as above."""
  write_json(folder / name, value)
  report.add_file(part, folder / name, prefix + name)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file."""
  path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_files(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
  """Writes several small files."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, data in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def summarise(names: Sequence[str]) -> str:
  """The first six names, and how many more there are."""
  more = f" and {len(names) - 6} more" if len(names) > 6 else ""
  return ", ".join(names[:6]) + more
