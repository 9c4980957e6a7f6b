"""The checkpoints of one run: saving, retention, restoring.

`<workdir>/checkpoints/<step>/{params,opt_state,ema,data,config,manifest}`.
Saves are asynchronous and atomic: each process copies its shards to the host
before `save` returns; hashing, writing and the self-check (of the written
parameters, read by process 0) happen behind training, and the step folder gets
its final name only when it is complete. A failing save therefore never damages
an earlier checkpoint. After a transient error it is repeated, by `wait` with
the same state or by the next `save` with a newer one; other errors are raised
by the next `save`, `wait` or `close`. Old steps are deleted after the new one
has been read back (see `checkpoint.retention`).

Folders are accessed by `etils.epath`, arrays by Orbax, which reads and writes
local folders and gs://; see `checkpoint.mirror` for other stores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from etils import epath

from mico_jax import config as config_lib
from mico_jax import failures, files
from mico_jax.checkpoint import described, mirror, retention, sharded, storage
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import state as state_lib
from mico_jax.checkpoint.described import Extras
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.checkpoint.steps import CHECKPOINTS, list_steps, read_head
from mico_jax.config import Config, ConfigError

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of Orbax's folders
# Attempts of a save whose error does not look transient, since Orbax may report
# a transient error as "already exists" or "not found".
REPEATS = 5


@dataclass(frozen=True)
class Restored:
  """A restored checkpoint.

  Attributes:
    step: of the checkpoint.
    state: the train state, on devices.
    data: the data item, `{"step": ...}` at least.
    skipped: newer steps that do not verify, with the reasons.
    notes: differences of versions and topology to the run that saved it; if
      there are any, the resumed run may not be bit-identical.
  """

  step: int
  state: Any
  data: Mapping[str, Any]
  skipped: tuple[tuple[int, str], ...] = ()
  notes: tuple[str, ...] = ()


@dataclass
class _Saving:
  """A save: its arguments and its result."""

  step: int
  state: Any
  data: Mapping[str, Any] | None
  metrics: Mapping[str, float] | None
  done: Future[None] | None = None
  error: Exception = field(default_factory=Exception)

  def alive(self) -> bool:
    """Whether the state is still in memory, not donated to a later step."""
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
    lower_is_better: bool = False,
  ):
    """Opens `<workdir>/checkpoints`.

    Args:
      workdir: folder of the run; created by the first save.
      config: of the run; the newest `train.keep` checkpoints are kept, and the
        best one by the metric `train.keep_best`.
      extras: tokenizer, axes, self-check and so on, stored with each save.
      lower_is_better: whether the best checkpoint is the one with the lowest
        value of that metric.

    Raises:
      ConfigError: for several processes and a store that Orbax does not write.
    """
    self.folder = storage.absolute(workdir) / CHECKPOINTS
    self._lower_is_better = lower_is_better
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

    If the previous save failed and may be repeated, this one replaces it and
    returns when it is complete.

    Args:
      step: number of finished optimizer steps.
      state: a dataclass with `params`, `opt_state`, `ema` (or None); its other
        fields are scalar counters.
      data: further state of the data, of JSON types.
      metrics: for `train.keep_best`, stored in the manifest.

    Returns:
      False if that step is already saved.

    Raises:
      CheckpointError: if this save could not start or the previous one failed.
      TransientError: likewise, for transient errors that lasted too long.
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
    """Starts a save, repeatedly while its errors are transient.

    Args:
      saving: the save.
      whole: whether to return only when it is stored and verified.
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
      if jax.process_count() > 1:  # other processes have not failed
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
    shards = {name: sharded.host_shards(flat) for name, flat in arrays.items()}
    layouts = {name: sharded.layout(flat) for name, flat in arrays.items()}
    stored = {
      name: storage.stored_tree(name, flat) for name, flat in arrays.items()
    }
    values = {
      "step": step,
      "counters": state_lib.counters(state),
      **(saving.data or {}),
    }
    config_text = config_lib.to_json(self.config).encode()
    data_text = json.dumps(values, indent=1, sort_keys=True).encode()

    def notes() -> dict[str, Any]:
      return {
        name: sharded.hash_shards(shards.pop(name)) for name in list(shards)
      }

    def manifest_files(folder: Any, notes: Sequence[Any]) -> dict[str, bytes]:
      head = {
        "step": step,
        "config_sha256": manifest_lib.sha256(config_text),
        "data_sha256": manifest_lib.sha256(data_text),
        "metrics": {k: float(v) for k, v in (metrics or {}).items()},
      }
      return described.manifest_files(self.extras, folder, head, layouts, notes)

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

  def _clean(self, step: int) -> None:
    """Removes the files of a failed save, as far as possible."""
    self._remove_unfinished()
    folder = self.folder / str(step)
    if jax.process_index() or mirror.last_file(folder) != (mirror.COMMIT,):
      return
    with contextlib.suppress(Exception):  # no retries: the store is unreachable
      if mirror.COMMIT not in {path.name for path in folder.iterdir()}:
        folder.rmtree()

  def _failure(self, step: int, error: Exception) -> Exception:
    """The error of a save that is given up."""
    last = self._verified.newest()  # without access to the store
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
    """Removes the files of failed or killed saves, as far as possible."""
    if jax.process_index() or not self._local.is_dir():
      return
    for path in self._local.glob(f"*{_UNFINISHED}*"):
      for _ in range(10):
        # Another item of the failed save may still be written: a new file
        # prevents the removal, or a late write creates the folder again.
        with contextlib.suppress(OSError):
          path.rmtree(missing_ok=True)
        time.sleep(0.1)
        if not path.exists():
          break

  def wait(self) -> None:
    """Blocks until the running save is stored, verified, and old ones dropped.

    A save that fails is repeated while its state is in memory: as long as its
    error is transient, else `REPEATS` times.

    Raises:
      CheckpointError: if that save failed; earlier checkpoints are intact.
      TransientError: likewise, for transient errors that lasted too long.
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
    """Whether the running save has failed, so that another one is due."""
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

  def _best_of(self, steps: Iterable[int]) -> int | None:
    """The step with the best `train.keep_best` metric; None without one."""
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
    return retention.best_of(scores, lower_is_better=self._lower_is_better)

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
      likes = state_lib.likes(target, number, manifest["items"])
      try:
        with mirror.local_copy(folder, manifest["items"]) as here:
          arrays = sharded.read_placed(here, manifest["items"], likes)
      except CheckpointError as e:
        skipped.append((number, str(e)))
        continue
      self._verified.note(number)
      return Restored(
        step=number,
        state=state_lib.fill(target, number, arrays, data),
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
      "topology": json.loads(
        json.dumps(self.extras.topology or described.topology())
      ),
    }
    return manifest_lib.differences({k: manifest[k] for k in now}, now)
