"""The checkpoints of one run: save, keep, restore the newest that verifies.

`<workdir>/checkpoints/<step>/{params,opt_state,ema,data,config,manifest}`.
Saves are asynchronous and atomic: each process copies its shards to the host
before `save` returns; hashing, writing and the self-check (of the parameters as
they were written, read by process 0) happen behind training, and
the step folder takes its final name only when everything is on disk. A save
that fails therefore never touches a former checkpoint. For what may pass it is
repeated, by `wait` with the same state, by the next `save` with a newer one;
any other error is raised by the next `save`, `wait` or `close`. Old steps go
when the new one has been read back (see `checkpoint.retention`).

`checkpoints/` goes through `etils.epath`; the arrays themselves through Orbax,
which reads and writes local folders and gs://; see `checkpoint.mirror` for
other stores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from mico_jax import config as config_lib
from mico_jax import failures, files
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import mirror, retention, sharded, storage
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config, ConfigError

CHECKPOINTS = "checkpoints"
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of Orbax's folders
# Of a save whose failure does not look as if it may pass: what Orbax makes of a
# fault may be "already exists" or "not found".
REPEATS = 5

# Keys that may change between the parts of one run: none of them alters which
# samples a step sees or what it computes.
_FREE_KEYS = re.compile(
  r"^(name|generation|evaluation\..*|parallel\..*"
  r"|train\.(log_every|checkpoint_every|keep|keep_best|eval_every"
  r"|nonfinite_patience|collapse_patience|profile_steps|tensorboard|wandb"
  r"|watchdog_s|compilation_cache)"
  r"|data\.(num_threads|num_workers|prefetch|timeout|max_bad_fraction"
  r"|cache_gb))(:|\.|$)"
)
# Filled in when a run starts: the same if either side is still empty.
_FILLED_KEYS = ("count", "sha256")


@dataclass(frozen=True)
class Restored:
  """What `Manager.restore` found.

  Attributes:
    step: step of the checkpoint.
    state: the train state, on devices.
    data: the data item, `{"step": ...}` at least.
    skipped: newer steps that do not verify, with the reason.
    notes: differences of versions and topology to the run that saved; with
      any, the continued run is correct but may not be bit-identical.
  """

  step: int
  state: Any
  data: Mapping[str, Any]
  skipped: tuple[tuple[int, str], ...] = ()
  notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extras:
  """What a checkpoint holds beside the state; the same for every save.

  Attributes:
    logical_axes: tree of axis-name tuples, in the form of the parameters.
    tokenizer_files: {file name: content}.
    tokenizer_info: special ids and sizes, JSON types only.
    preprocessing: {modality: mode name} for train and eval, and constants.
    originals: path -> original name and dtype of imported parameters.
    topology: mesh, processes, devices; `topology()` by default.
    self_check: host parameters -> arrays of the self-check.
  """

  logical_axes: Mapping[str, Any] | None = None
  tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
  tokenizer_info: Mapping[str, Any] = field(default_factory=dict)
  preprocessing: Mapping[str, Any] = field(default_factory=dict)
  originals: Mapping[str, Any] = field(default_factory=dict)
  topology: Mapping[str, Any] = field(default_factory=dict)
  self_check: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None


def topology() -> dict[str, Any]:
  """Processes, devices and backend of this run."""
  return {
    "backend": jax.default_backend(),
    "device_kind": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
  }


def list_steps(folder: epath.PathLike) -> list[int]:
  """Finished steps below a `checkpoints` folder, ascending."""
  root = epath.Path(folder)
  return sorted(
    int(name)
    for name in files.names(root)
    if name.isdigit() and mirror.is_finished(root / name)
  )


def claim_workdir(workdir: epath.PathLike, config: Config) -> bool:
  """Binds a workdir to a config, or checks that it is bound to this one.

  The config is stored as `<workdir>/config.json`. Keys that change neither
  data nor arithmetic (logging, threads, evaluation, mesh) may differ.

  Returns:
    True if the workdir was already bound (a run to resume).

  Raises:
    ConfigError: naming the first keys that differ.
  """
  path = epath.Path(workdir) / "config.json"
  try:
    text: str | None = files.read_text(path)
  except FileNotFoundError:
    text = None
  if text is not None:
    try:
      stored = json.loads(text)
    except ValueError:
      raise ConfigError(
        f"{path} is not valid JSON; restore it or use another --workdir."
      ) from None
    wanted = json.loads(config_lib.to_json(config))
    lines = [
      line
      for line in manifest_lib.differences(_filled(stored, wanted), wanted)
      if not _FREE_KEYS.match(line)
    ]
    if lines:
      more = f" ({len(lines) - 3} more)" if len(lines) > 3 else ""
      raise ConfigError(
        f"workdir {str(workdir)!r} belongs to another config: "
        f"{'; '.join(lines[:3])}{more}. Use another --workdir (and --init to "
        "start from its parameters), or the former config."
      )
    return True
  if jax.process_index() == 0:
    files.make_folder(path.parent)
    files.write_text(path, config_lib.to_json(config))
  return False


def _filled(stored: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
  """`stored` with the sources' counts and hashes as in `wanted` if unset."""
  new = wanted.get("data", {}).get("sources", {})
  for name, source in stored.get("data", {}).get("sources", {}).items():
    for key in _FILLED_KEYS:
      if name in new and not (source.get(key) and new[name].get(key)):
        source[key] = new[name].get(key)
  return stored


def _counters(state: Any) -> dict[str, int]:
  """The scalar fields of a train state: steps done, steps skipped."""
  return {
    field.name: int(np.asarray(getattr(state, field.name)))
    for field in dataclasses.fields(state)
    if field.name not in manifest_lib.ARRAY_ITEMS
  }


@dataclass
class _Saving:
  """A save: what it was asked for, and how it ends."""

  step: int
  state: Any
  data: Mapping[str, Any] | None
  metrics: Mapping[str, float] | None
  done: Future[None] | None = None
  error: Exception = field(default_factory=Exception)

  def alive(self) -> bool:
    """Whether no later step has taken the memory of the state."""
    leaves = [
      getattr(self.state, name.name) for name in dataclasses.fields(self.state)
    ]
    return not any(
      isinstance(x, jax.Array) and x.is_deleted()
      for x in jax.tree.leaves(leaves)
    )


class Manager:
  """Saves, keeps and restores the checkpoints of one workdir."""

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    config: Config,
    extras: Extras | None = None,
  ):
    """Opens `<workdir>/checkpoints`.

    Args:
      workdir: folder of the run; created when the first save needs it.
      config: of the run; `train.keep` newest checkpoints are kept, and the
        best one by the metric `train.keep_best`.
      extras: tokenizer, axes, self-check and so on, stored with each save.

    Raises:
      ConfigError: for several processes and a store that Orbax does not write.
    """
    self.folder = storage.absolute(workdir) / CHECKPOINTS
    self._local = self.folder  # where Orbax writes
    if not mirror.is_native(self.folder):
      if jax.process_count() > 1:
        raise ConfigError(
          f"{self.folder}: several processes cannot save there together; use "
          "a --workdir on gs:// or in a folder that all hosts see."
        )
      self._scratch = tempfile.TemporaryDirectory(prefix="mico_jax_")
      self._local = epath.Path(self._scratch.name)
    self.config = config
    self.extras = extras or Extras()
    self._checkpointer = storage.make_checkpointer()
    self._behind = ThreadPoolExecutor(max_workers=1)  # beside training
    self._saving: _Saving | None = None
    self._verified = retention.Verified(
      self._check, lambda step: files.stamp(self.folder / str(step))
    )

  # ---------------------------------------------------------------- saving
  def save(
    self,
    step: int,
    state: Any,
    *,
    data: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
  ) -> bool:
    """Starts saving a step; returns once its arrays are copied to the host.

    If the former save failed and may be repeated, this one takes its place and
    returns when it is complete.

    Args:
      step: the number of finished optimizer steps.
      state: a dataclass with `params`, `opt_state`, `ema` (or None); its other
        fields are scalar counters.
      data: JSON-able state of the data beside the step.
      metrics: for `train.keep_best`, stored in the manifest.

    Returns:
      False if that step is already saved.

    Raises:
      CheckpointError: if this save could not start or the former one failed.
      TransientError: likewise, for faults that did not pass in time.
    """
    failed = self._settle()
    if failed is not None:
      failures.say(
        f"saving step {failed.step} failed: {failures.describe(failed.error)}; "
        f"step {step} is saved in its place."
      )
    if step in self.steps() and not self._verified.problem(step):
      return False  # a damaged one is written anew
    self._patiently(_Saving(step, state, data, metrics), failed is not None)
    return True

  def _patiently(self, saving: _Saving, whole: bool) -> None:
    """Starts a save, again and again while it fails for what may pass.

    Args:
      saving: what to save.
      whole: return only when all of it is stored and verified.
    """

    def attempt() -> None:
      self._start(saving)
      if whole:
        self._saving = None
        assert saving.done is not None
        saving.done.result()

    left = REPEATS

    def passing(error: BaseException) -> bool:
      nonlocal left
      left -= 1
      self._clean(saving.step)
      if jax.process_count() > 1:  # the others do not know of it
        return False
      return failures.may_repeat(error) or (
        left > 0 and not failures.is_transient(error)
      )

    what = f"saving step {saving.step} to {self.folder}"
    try:
      failures.wait_out(attempt, what, passing=passing)
    except Exception as e:
      raise self._failure(saving.step, e) from e

  def _start(self, saving: _Saving) -> None:
    """Copies the arrays to the host and starts writing them."""
    step, state, metrics = saving.step, saving.state, saving.metrics
    arrays = {
      name: {
        path: value if isinstance(value, jax.Array) else np.asarray(value)
        for path, value in storage.path_dict(getattr(state, name)).items()
      }
      for name in manifest_lib.ARRAY_ITEMS
      if getattr(state, name, None) is not None
    }
    own = {name: sharded.host_shards(flat) for name, flat in arrays.items()}
    layouts = {name: sharded.layout(flat) for name, flat in arrays.items()}
    stored = {
      name: storage.stored_tree(name, flat) for name, flat in arrays.items()
    }
    values = {
      "step": step,
      "counters": _counters(state),
      **(saving.data or {}),
    }
    config_text = config_lib.to_json(self.config).encode()
    data_text = json.dumps(values, indent=1, sort_keys=True).encode()

    def notes() -> dict[str, Any]:
      return {name: sharded.hash_shards(own.pop(name)) for name in list(own)}

    def manifest_files(folder: Any, notes: Sequence[Any]) -> dict[str, bytes]:
      head = {
        "step": step,
        "config_sha256": manifest_lib.sha256(config_text),
        "data_sha256": manifest_lib.sha256(data_text),
        "metrics": {k: float(v) for k, v in (metrics or {}).items()},
      }
      return self._manifest_files(folder, head, layouts, notes)

    target = self._local / str(step)
    self._remove_unfinished()
    files.make_folder(self._local)
    self._checkpointer.save(
      target,
      args=storage.save_args(
        stored,
        {
          "data": lambda: {manifest_lib.DATA: data_text},
          "config": lambda: {manifest_lib.CONFIG: config_text},
        },
        storage.ManifestSave(notes, manifest_files),
      ),
      force=True,
    )
    saving.done = self._behind.submit(self._complete, step)
    self._saving = saving

  def _complete(self, step: int) -> None:
    """Waits until a step is written, verifies it, drops old ones.

    Raises:
      CheckpointError: if what was written does not verify; it is removed.
    """
    self._checkpointer.wait_until_finished()
    if jax.process_index():
      return
    local = self._local / str(step)
    try:
      self._check(step, self._local)
    except CheckpointError as e:
      files.remove_folder(local)
      raise CheckpointError(f"what was written does not verify: {e}") from e
    if self._local != self.folder:
      mirror.upload(pathlib.Path(local), self.folder / str(step))
      files.remove_folder(local)
    try:
      self._verified.note(step)
      self._prune()
    except failures.TransientError as e:  # the step is saved; the next one
      failures.say(f"old checkpoints stay for now: {failures.describe(e)}")

  def _check(self, step: int, root: Any = None) -> None:
    """Reads a step and compares it with its manifest.

    Several processes compare all but the arrays here; each reads its own part
    of those when it restores.

    Raises:
      CheckpointError: naming what does not verify.
    """
    folder = (root or self.folder) / str(step)
    manifest, _ = read_head(folder)
    if jax.process_count() == 1:
      with mirror.local_copy(folder, manifest["items"]) as here:
        sharded.read_placed(here, manifest["items"], {})

  def _manifest_files(
    self,
    folder: Any,
    head: Mapping[str, Any],
    layouts: Mapping[str, Any],
    notes: Sequence[Mapping[str, Any]],
  ) -> dict[str, bytes]:
    """Runs the self-check and writes the manifest's text.

    Args:
      folder: with the arrays, as written by all processes.
      head: what the manifest says of this step alone.
      layouts: of each item, see `sharded.layout`.
      notes: of each process: item -> path -> start of a shard -> hash.
    """
    extras = self.extras
    axes = manifest_lib.flatten(extras.logical_axes or {})
    items = {
      name: manifest_lib.describe_shards(
        layout,
        [note.get(name, {}) for note in notes],
        logical_axes={} if name == "opt_state" else axes,
        originals={} if name == "opt_state" else extras.originals,
      )
      for name, layout in layouts.items()
    }
    files = {
      f"{manifest_lib.TOKENIZER_PREFIX}{name}": content
      for name, content in extras.tokenizer_files.items()
    }
    checked = "ema" if "ema" in items else "params"
    if extras.self_check is not None:
      entries = items[checked]
      flat = storage.read_arrays(folder, checked, entries)
      problems = manifest_lib.array_problems(entries, flat, item=checked)
      if problems:
        raise CheckpointError(
          f"the store altered what was written: "
          f"{manifest_lib.summarise(problems)}"
        )
      outputs = extras.self_check(manifest_lib.unflatten(flat))
      files[manifest_lib.SELF_CHECK] = manifest_lib.pack_arrays(outputs)
    return manifest_lib.to_files(
      {
        **head,
        "items": items,
        "tokenizer": dict(extras.tokenizer_info),
        "preprocessing": dict(extras.preprocessing),
        "versions": manifest_lib.versions(),
        "topology": dict(extras.topology or topology()),
        "self_check_of": checked,
      },
      files,
    )

  def _clean(self, step: int) -> None:
    """Removes what a failed save left behind, as far as it can."""
    self._remove_unfinished()
    folder = self.folder / str(step)
    if jax.process_index() or mirror.last_file(folder) != (mirror.COMMIT,):
      return
    with contextlib.suppress(Exception):  # without waiting: it is away
      if mirror.COMMIT not in {path.name for path in folder.iterdir()}:
        folder.rmtree()

  def _failure(self, step: int, error: Exception) -> Exception:
    """Words the error of a save that is given up."""
    last = self._verified.newest()  # the store may be away: do not ask it
    kept = f"step {last} is intact" if last else "none since this start"
    reason = failures.describe(error).rstrip(".")
    passing = failures.is_transient(error)
    if isinstance(error, failures.TransientError) and error.__cause__:
      reason = (
        f"{failures.describe(error.__cause__)} (for "
        f"{failures.patience_seconds():g} s)"
      )
    return (failures.TransientError if passing else CheckpointError)(
      f"cannot save step {step} to {self.folder}: {reason}. "
      f"The last checkpoint: {kept}. Free space or fix the path, then run the "
      "same command to resume."
    )

  def _remove_unfinished(self) -> None:
    """Removes what failed or killed saves left behind, as far as it can."""
    if jax.process_index() or not self._local.is_dir():
      return
    for path in self._local.glob(f"*{_UNFINISHED}*"):
      for _ in range(10):
        # Another item of the failed save may still be written: removing meets
        # a new file, or a late write makes the folder again.
        with contextlib.suppress(OSError):
          path.rmtree(missing_ok=True)
        time.sleep(0.1)
        if not path.exists():
          break

  def wait(self) -> None:
    """Blocks until the running save is stored, verified, and old ones dropped.

    A save that fails is repeated while its state is still there: as long as
    its failure may pass, else `REPEATS` times.

    Raises:
      CheckpointError: if that save failed; former checkpoints are intact.
      TransientError: likewise, for faults that did not pass in time.
    """
    failed = self._settle()
    if failed is None:
      return
    if not failed.alive():
      raise self._failure(failed.step, failed.error) from failed.error
    failures.say(
      f"saving step {failed.step} failed: {failures.describe(failed.error)}; "
      "it is saved again."
    )
    self._patiently(failed, whole=True)

  @property
  def failed(self) -> bool:
    """Whether the running save has failed, so that another should start."""
    done = None if self._saving is None else self._saving.done
    if done is None or not done.done() or jax.process_count() > 1:
      return False
    return done.exception() is not None

  def _settle(self) -> _Saving | None:
    """Blocks until the running save has ended.

    Returns:
      That save, if it failed and may be repeated.
    """
    saving, self._saving = self._saving, None
    if saving is None or saving.done is None:
      return None
    try:
      saving.done.result()
    except Exception as e:
      self._clean(saving.step)
      waited_out = failures.is_transient(e) and not failures.may_repeat(e)
      if jax.process_count() == 1 and not waited_out:
        saving.error = e
        return saving
      raise self._failure(saving.step, e) from e
    return None

  def close(self) -> None:
    """Waits for the running save and ends the background threads."""
    try:
      self.wait()
    finally:
      self._checkpointer.close()
      self._behind.shutdown()
      if self._local != self.folder:
        self._scratch.cleanup()

  # --------------------------------------------------------------- keeping
  def steps(self) -> list[int]:
    """Steps with a finished checkpoint, ascending."""
    return list_steps(self.folder)

  def best_step(self) -> int | None:
    """The step with the best `train.keep_best` metric; None without one."""
    return self._best_of(self.steps())

  def _best_of(self, steps: Iterable[int]) -> int | None:
    name = self.config.train.keep_best
    if not name:
      return None
    scores = {}
    for step in steps:
      try:
        metrics = manifest_lib.read(self.folder / str(step))["metrics"]
      except CheckpointError:
        continue
      if name in metrics and np.isfinite(metrics[name]):
        scores[step] = metrics[name]
    return retention.best_of(scores, name)

  def _prune(self) -> None:
    """Deletes all but the newest `train.keep` and the best checkpoint."""
    old = retention.superseded(
      self.steps(),
      max(self.config.train.keep, 1),
      lambda step: not self._verified.problem(step),
      self._best_of if self.config.train.keep_best else None,
    )
    for step in old:
      mirror.drop(self.folder / str(step))

  # -------------------------------------------------------------- restoring
  def restore(self, target: Any, *, step: int | None = None) -> Restored | None:
    """Restores the newest checkpoint that verifies; all processes must call.

    Args:
      target: a train state of arrays or `ShapeDtypeStruct` with shardings,
        with a method `replace`.
      step: restore this step or fail.

    Returns:
      None if the workdir holds no checkpoint at all.

    Raises:
      CheckpointError: if there are checkpoints but none verifies, or if one
        that verifies does not fit `target`.
    """
    self.wait()
    candidates = self.steps()[::-1] if step is None else [step]
    sharded.check_same(candidates, f"the steps in {self.folder}")
    if not candidates:
      return None
    skipped: list[tuple[int, str]] = []
    for number in candidates:
      folder = self.folder / str(number)
      try:
        manifest, data = sharded.together(lambda f=folder: read_head(f))
        text = json.dumps(manifest, sort_keys=True).encode()
        sharded.check_same(
          manifest_lib.sha256(text), f"the manifests of step {number}"
        )
      except CheckpointError as e:
        skipped.append((number, str(e)))
        continue
      likes = _likes(target, number, manifest["items"])
      try:
        with mirror.local_copy(folder, manifest["items"]) as here:
          arrays = sharded.read_placed(here, manifest["items"], likes)
      except CheckpointError as e:
        skipped.append((number, str(e)))
        continue
      self._verified.note(number)
      return Restored(
        step=number,
        state=_fill(target, number, arrays, data),
        data=data,
        skipped=tuple(skipped),
        notes=tuple(self._notes(manifest)),
      )
    reasons = "; ".join(f"step {s}: {reason}" for s, reason in skipped[:3])
    raise CheckpointError(
      f"no checkpoint of {self.folder} verifies: {reasons} "
      "Move the folder away to start anew, or use --init with a good one."
    )

  def _notes(self, manifest: Mapping[str, Any]) -> list[str]:
    now = {
      "versions": manifest_lib.versions(),
      "topology": json.loads(json.dumps(self.extras.topology or topology())),
    }
    return manifest_lib.differences({k: manifest[k] for k in now}, now)


def read_head(
  folder: epath.PathLike,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Manifest and data item of a step folder; verifies all but the arrays.

  Raises:
    CheckpointError: naming the first things that do not verify.
  """
  folder = epath.Path(folder)
  manifest = manifest_lib.read(folder)
  _, problems = manifest_lib.read_files(folder, manifest)
  data_path = folder / "data" / manifest_lib.DATA
  try:
    data_text = files.read_bytes(data_path)
  except FileNotFoundError:
    data_text = b""
  if manifest_lib.sha256(data_text) != manifest["data_sha256"]:
    problems.append(f"{data_path}: content differs from the manifest's hash.")
  if problems:
    raise CheckpointError(manifest_lib.summarise(problems))
  return manifest, json.loads(data_text)


def _likes(
  target: Any, step: int, items: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
  """What the arrays of a checkpoint must be like: item -> path -> like.

  Raises:
    CheckpointError: if the checkpoint does not fit `target`.
  """
  likes: dict[str, dict[str, Any]] = {}
  for name in manifest_lib.ARRAY_ITEMS:
    wanted = getattr(target, name, None)
    if wanted is None:
      continue
    if name not in items:
      raise CheckpointError(
        f"the checkpoint of step {step} has no {name}, but this run needs it; "
        "start a new workdir with --init."
      )
    storage.from_path_dict(wanted, items[name])
    likes[name] = storage.path_dict(wanted)
    for path, like in likes[name].items():
      entry = items[name][path]
      storage.check_fits(entry["shape"], entry["dtype"], like)
  return likes


def _fill(
  target: Any,
  step: int,
  arrays: Mapping[str, Mapping[str, Any]],
  data: Mapping[str, Any],
) -> Any:
  """The target train state with the checkpoint's values."""
  values = {
    name: storage.from_path_dict(getattr(target, name), placed)
    for name, placed in arrays.items()
  }
  for name, number in {**data["counters"], "step": step}.items():
    like = getattr(target, name, None)
    if hasattr(like, "dtype"):
      values[name] = storage.place(np.asarray(number, like.dtype), like)
    elif like is not None:
      values[name] = number
  return target.replace(**values)
