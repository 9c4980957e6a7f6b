"""Import of foreign weights as a checkpoint.

    import_checkpoint("mico", "MiCo-g/", "ckpts/mico-g")

writes a step folder that `mico_jax.load` opens and `pretrain --init` starts
from. Tensors are read one by one; the folder gets its final name when it is
complete, and an error leaves nothing behind. Tensors that no parameter holds
exactly (a text tower that the model lacks, buffers, tables before resizing) are
kept in `extra/model.safetensors`, so that an export can reproduce the imported
file byte for byte. `import_report.json` lists every tensor and its destination.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import restore, streamed
from mico_jax.checkpoint.described import Extras
from mico_jax.config import Config, ConfigError, ModelConfig
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.inference.prepare import Preparer
from mico_jax.inference.self_check import SMALL, make_self_check, model_params
from mico_jax.interop.exporting import export, torch_folder
from mico_jax.interop.files import folders, safetensors_writer
from mico_jax.interop.files.tensors import Item, WeightsError, record
from mico_jax.interop.importing import convert, formats, hub, run_config
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.interop.importing.source import ForeignWeights
from mico_jax.interop.names import mico_vision
from mico_jax.interop.names.weight_map import Entry
from mico_jax.models import MiCo, build
from mico_jax.models.resize import resize_frames, resize_table
from mico_jax.parallel.backend import require_backend
from mico_jax.printing import known_names

Table = Callable[[ModelConfig], Sequence[Entry]]
REPORT = "import_report.json"
EXTRA = "extra"


def resizers(positions: str) -> Mapping[str, convert.Resizer]:
  """Resizing functions of the position and frame tables, by path pattern.

  Args:
    positions: interpolation of the position table, "bilinear" or "bicubic".
  """
  return {
    r"^vision/pos_embed$": lambda table, shape: resize_table(
      table, shape[0], method=positions
    ),
    r"^frame_embed/": lambda table, shape: resize_frames(table, shape[0]),
  }


@dataclasses.dataclass
class ImportReport:
  """The result of an import.

  Attributes:
    format: key of `FORMATS`.
    source: the imported file.
    checkpoint: the folder written.
    tensors: one record per tensor of the source: name, dtype, shape, bytes,
      sha256, and the place it went to.
    tensors_sha256: hash over all names, dtypes, shapes and hashes.
    parameters: number of scalar parameters of the model.
    bytes: size of the source's tensors.
    resized: names of tables that were resized.
    tied: name of a copy -> name of the equal tensor that it is tied to.
    extra: names of tensors kept beside the parameters.
    new: freshly initialised parameters, which the source lacks.
    taken: parameters taken from the checkpoint `onto`.
    outputs: the first numbers of each output of the self-check.
    compared: output -> largest difference between this model and the same
      weights in PyTorch, on the self-check's inputs; empty without torch.
    guesses: assumptions about what no file states, one line each.
    notes: one line each; includes the guesses.
  """

  format: str
  source: str
  checkpoint: str
  tensors: list[dict[str, Any]]
  tensors_sha256: str
  parameters: int
  bytes: int
  resized: list[str]
  tied: dict[str, str]
  extra: list[str]
  new: list[str]
  taken: list[str]
  outputs: dict[str, list[float]]
  compared: dict[str, float]
  guesses: list[str]
  notes: list[str]

  def as_dict(self) -> dict[str, Any]:
    """The content of import_report.json."""
    return dataclasses.asdict(self)


def tensors_hash(records: Sequence[Mapping[str, Any]]) -> str:
  """SHA-256 over names, dtypes, shapes and content hashes, sorted by name."""
  lines = sorted(
    f"{r['name']}\0{r['dtype']}\0{list(r['shape'])}\0{r['sha256']}\n"
    for r in records
  )
  return hashlib.sha256("".join(lines).encode()).hexdigest()


def import_checkpoint(
  form: str,
  path: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  vocabulary: str | pathlib.Path | None = None,
  onto: str | pathlib.Path | None = None,
  overrides: Sequence[str] = (),
  self_check: bool | None = None,
  keep_extra: bool = True,
) -> ImportReport:
  """Reads foreign weights and writes a checkpoint.

  Args:
    form: key of `FORMATS`.
    path: file or folder, or "hf://owner/name".
    out: local folder to write; must not exist, or be empty.
    vocabulary: vocab.txt or tokenizer.json of the text tower; None: the one
      beside the weights.
    onto: checkpoint that provides everything the weights lack, config and
      tokenizer included, low-rank deltas merged; None: fresh initial values.
    overrides: changes of the config, such as "model.vision.image_size=384".
    self_check: whether to compute and store a self-check, and to compare it
      with PyTorch where that is installed; None: for models of up to
      `SMALL` parameters.
    keep_extra: whether to keep tensors that no parameter holds.

  Raises:
    WeightsError: if the weights cannot be used, naming what is wrong.
    ConfigError: if the arguments cannot be used.
  """
  if form not in FORMATS:
    raise ConfigError(f"unknown form {form!r}; {known_names(form, FORMATS)}")
  folders.check_new(pathlib.Path(out))
  require_backend()
  place = hub.local(str(path))
  if not place.exists():
    raise WeightsError(f"{path}: no such file or folder.")
  job = _prepare(form, place, vocabulary, onto, overrides)
  with folders.new_folder(pathlib.Path(out)) as folder:
    report = _write(job, folder, str(out), self_check, keep_extra)
    text = json.dumps(report.as_dict(), indent=1) + "\n"
    (folder / REPORT).write_text(text, encoding="utf-8")
  return report


@dataclasses.dataclass
class _Import:
  """Foreign weights mapped to the parameters of a model, not yet read."""

  format: str
  source: ForeignWeights
  config: Config
  tokenizer: Tokenizer
  model: MiCo
  plan: convert.Conversion
  tied: dict[str, str]
  leaves: dict[str, streamed.Leaf]
  taken: list[str]
  new: list[str]
  guesses: list[str]
  notes: list[str]


def _prepare(
  form: str,
  place: pathlib.Path,
  vocabulary: str | pathlib.Path | None,
  onto: str | pathlib.Path | None,
  overrides: Sequence[str],
) -> _Import:
  """Maps the weights of a local path; arguments as of `import_checkpoint`."""
  form = formats.settle(form, place)
  source = FORMATS[form].read(place)
  base = None if onto is None else restore.open_checkpoint(onto)
  config, shortened = run_config.fit_lengths(
    run_config.run_config(source, base, overrides, vocabulary)
  )
  tokenizer = run_config.tokenizer(source, config, vocabulary, base)
  run_config.check_vocabulary(config, tokenizer)
  model = build(config.model)
  plan, tied, replaced = _plan(source, FORMATS[form].table, model)
  guesses = [
    f"{text}; give --config.{path} if it is wrong"
    for path, text in source.guesses.items()
    if not any(override.startswith(path) for override in overrides)
  ]
  notes = [*source.notes, *guesses, *shortened, *_notes(plan, replaced)]
  if run_config.is_fresh(source, base):
    notes.append(run_config.text_note(config))
  notes += [] if base is None else [f"{onto}: {x}" for x in base.warnings]
  leaves, taken, new = _complete(plan, model, base)
  return _Import(
    form, source, config, tokenizer, model, plan, tied, leaves, taken, new,
    guesses, notes,
  )  # fmt: skip


def _write(
  job: _Import,
  folder: pathlib.Path,
  checkpoint: str,
  self_check: bool | None,
  keep_extra: bool,
) -> ImportReport:
  """Writes a step folder, whose final path is `checkpoint`."""
  plan, source, notes = job.plan, job.source, job.notes
  count = sum(leaf.size for leaf in job.leaves.values())
  checked = count <= SMALL if self_check is None else self_check
  if not checked:
    notes.append("no self-check was computed (see --self-check)")
  origin = {
    "format": job.format,
    "file": source.file.name,
    "new": job.new,
    "tied": job.tied,
    **_write_extra(folder, plan, keep_extra),
  }
  streamed.write_step(
    folder,
    job.leaves,
    config=job.config,
    extras=_extras(job, checked),
    more={"import": origin},
  )
  records = _records(plan, job.tied, source)
  compared = _compared(folder, notes) if checked else {}
  return ImportReport(
    format=job.format,
    source=str(source.file),
    checkpoint=checkpoint,
    tensors=records,
    tensors_sha256=tensors_hash(records),
    parameters=count,
    bytes=sum(r["bytes"] for r in records),
    resized=plan.resized,
    tied=job.tied,
    extra=sorted(plan.extra) if keep_extra else [],
    new=job.new,
    taken=job.taken,
    outputs=_outputs(folder),
    compared=compared,
    guesses=job.guesses,
    notes=notes,
  )


def _plan(
  source: ForeignWeights, table: Table, model: MiCo
) -> tuple[convert.Conversion, dict[str, str], list[str]]:
  """The conversion, tied copies, and names replaced by a differing copy.

  Raises:
    WeightsError: if the weights do not fit the model, or were trained with
      other rotary positions.
  """
  if source.holds("vision"):
    try:  # No parameter holds these tables, so nothing else compares them.
      mico_vision.check_rotary_buffers(source.tensors, model.config.vision)
    except (ValueError, IndexError) as error:
      raise WeightsError(f"{source.file}: {error}") from error
  shapes = {
    tuple(path.split("/")): leaf
    for path, leaf in manifest_lib.flatten(model.abstract_params()).items()
  }
  tied: dict[str, str] = {}
  copies = {
    source.tensors[name].name: source.tensors[name]
    for name in source.ties
    if name in source.tensors
  }
  tensors, replaced = convert.settle_ties(source.tensors, source.ties, tied)
  entries = [
    entry for entry in table(model.config) if source.holds(entry.path[0])
  ]
  plan = convert.plan(
    tensors,
    entries,
    shapes,
    ignored=source.ignored,
    optional=source.optional,
    resizers=resizers(source.positions),
    hint=source.hint,
  )
  for name, other in tied.items():
    plan.records[name] = record(copies[name], place=f"equals {other}")
  for tensor in replaced.values():
    plan.keep(tensor, "a tied copy with other values takes its place")
  return plan, tied, list(replaced)


def _notes(plan: convert.Conversion, replaced: Sequence[str]) -> Iterator[str]:
  for name in dict.fromkeys(plan.resized):
    yield f"{name}: brought to the size of the config"
  for name in replaced:
    yield f"{name}: its tied copy differs and wins, as in PyTorch"


def _complete(
  plan: convert.Conversion, model: MiCo, base: restore.Checkpoint | None
) -> tuple[dict[str, streamed.Leaf], list[str], list[str]]:
  """All parameters of the model, the paths of the base's, of the fresh ones."""
  leaves, taken, new = dict(plan.leaves), [], []
  donors: dict[str, Any] = {}
  if base is not None:
    donors = manifest_lib.flatten(model_params(base.params, base.config))
    # Parameters that were fresh in the base's import are initialised anew.
    for path in base.manifest.get("import", {}).get("new", ()):
      donors.pop(path, None)
  shapes = manifest_lib.flatten(model.abstract_params())
  for path, like in shapes.items():
    if path in leaves:
      continue
    if path not in donors:
      new.append(path)
      continue
    value = np.asarray(donors[path], np.float32)
    if value.shape != tuple(like.shape):
      new.append(path)  # Such as projections of an encoder of another width.
      continue
    taken.append(path)
    leaves[path] = _leaf(value)
  if new:
    wanted = set(new)

    def fresh(key: Any) -> dict[str, Any]:
      flat = manifest_lib.flatten(model.init(key))
      return {path: flat[path] for path in flat if path in wanted}

    values = jax.jit(fresh)(jax.random.key(0))
    leaves |= {path: _leaf(np.asarray(v)) for path, v in values.items()}
  return leaves, taken, new


def _leaf(value: np.ndarray) -> streamed.Leaf:
  return streamed.Leaf(value.shape, value.dtype, lambda: value)


def _extras(job: _Import, self_check: bool) -> Extras:
  """Tokenizer, preprocessing and self-check to store."""
  config, tokenizer = job.config, job.tokenizer
  return Extras(
    logical_axes=job.model.logical_axes(),
    tokenizer_files=tokenizer.files(),
    tokenizer_info={
      **dataclasses.asdict(tokenizer.info),
      "sha256": tokenizer.sha256,
    },
    preprocessing=Preparer(config, tokenizer).describe(),
    self_check=make_self_check(config, tokenizer) if self_check else None,
  )


def _write_extra(
  folder: pathlib.Path, plan: convert.Conversion, keep: bool
) -> dict[str, Any]:
  """Writes tensors that no parameter holds; returns their manifest entry."""
  if not keep or not plan.extra:
    return {}
  place = folder / EXTRA
  place.mkdir()
  items = [
    Item(name, one.shape, one.dtype, one.load)
    for name, one in plan.extra.items()
  ]
  written = safetensors_writer.write(place, items, max_shard_size=sys.maxsize)
  hashes = {one["name"]: one["sha256"] for one in written.tensors}
  for name, sha256 in hashes.items():
    plan.records[name]["sha256"] = sha256
  (file,) = written.files
  about = {"file": f"{EXTRA}/{file['name']}", "sha256": file["sha256"]}
  return {"extra": {**about, "tensors": hashes}}


def _records(
  plan: convert.Conversion, tied: Mapping[str, str], source: ForeignWeights
) -> list[dict[str, Any]]:
  """One record per tensor of the source, each with its hash."""
  by_file = {tensor.name: tensor for tensor in source.tensors.values()}
  for name, entry in plan.records.items():
    if name in tied:
      entry["sha256"] = plan.records[tied[name]].get("sha256", "")
  for name, entry in plan.records.items():
    if not entry.get("sha256"):
      entry["sha256"] = convert.digest(by_file[name].load())
  return [plan.records[name] for name in by_file]


def _compared(folder: pathlib.Path, notes: list[str]) -> dict[str, float]:
  """Differences to the same weights in PyTorch, where torch is installed."""
  if importlib.util.find_spec("torch") is None:
    notes.append("outputs not compared with PyTorch: torch is not installed")
    return {}
  try:
    source = export.open_source(folder, check="off")
    with tempfile.TemporaryDirectory() as scratch:
      place = pathlib.Path(scratch)
      torch_folder.write(source, place, export.ExportReport("torch", {}))
      return torch_folder.compare(source, place)
  # The import is complete without a comparison if the model has no PyTorch
  # form, torch cannot be loaded, or disk or memory lack room for a second copy.
  # Any other error means that one of the two sides is wrong, so it is raised.
  except (ConfigError, ImportError, OSError, MemoryError) as error:
    text = " ".join(str(error).split())[:160]
    notes.append(
      f"outputs not compared with PyTorch: {type(error).__name__}: {text}"
    )
    return {}


def _outputs(folder: pathlib.Path) -> dict[str, list[float]]:
  """The first numbers of each output of the self-check."""
  path = folder / "manifest" / manifest_lib.SELF_CHECK
  if not path.is_file():
    return {}
  arrays = manifest_lib.unpack_arrays(path.read_bytes())
  return {
    name: [float(x) for x in np.asarray(value).reshape(-1)[:4]]
    for name, value in sorted(arrays.items())
    if name.startswith("output/")
  }
