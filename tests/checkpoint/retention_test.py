"""Pruning never takes the last checkpoint that verifies."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mico_jax.checkpoint import manager as manager_lib
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import mirror, retention, storage
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config, TrainConfig
from mico_jax.train.state import TrainState


def make_state(value: float) -> TrainState:
  noise = np.random.default_rng(int(value)).normal(size=(64, 32))
  params = {"a": {"w": jnp.asarray(noise, "f4"), "b": jnp.full(3, value)}}
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {"mu": params}, None, zero, zero)


@pytest.fixture(params=["rename", "commit file"])
def semantics(request, monkeypatch):
  """Local folders are renamed when complete; Google's store has a file."""
  if request.param == "rename":
    return request.param
  monkeypatch.setattr(mirror, "last_file", lambda _: (mirror.COMMIT,))
  atomicity = ocp.options.AtomicityOptions(
    mode=ocp.options.AtomicityMode.COMMIT_FILE
  )
  make = ocp.AsyncCheckpointer
  monkeypatch.setattr(
    storage.ocp,
    "AsyncCheckpointer",
    lambda handler: make(handler, atomicity_options=atomicity),
  )
  return request.param


def open_manager(path: Any, keep: int, best: str = "") -> manager_lib.Manager:
  config = Config(train=TrainConfig(keep=keep, keep_best=best))
  return manager_lib.Manager(path, config=config)


def save(manager: manager_lib.Manager, step: int, **options: Any) -> None:
  assert manager.save(step, make_state(float(step)), **options)
  manager.wait()


def arrays(step: pathlib.Path, item: str = "params") -> pathlib.Path:
  files = [p for p in (step / item).rglob("d/*") if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def flip(step: pathlib.Path) -> None:
  path = arrays(step)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def cut(step: pathlib.Path) -> None:
  path = arrays(step, "opt_state")
  path.write_bytes(path.read_bytes()[:20])


def empty_manifest(step: pathlib.Path) -> None:
  (step / "manifest" / manifest_lib.MANIFEST).write_bytes(b"")


def half_removed(step: pathlib.Path) -> None:
  (step / "manifest" / manifest_lib.MANIFEST_HASH).unlink()


DAMAGES = (flip, cut, empty_manifest, half_removed)


def same_as(manager: manager_lib.Manager, step: int) -> None:
  restored = manager.restore(make_state(0.0))
  assert restored.step == step
  jax.tree.map(
    np.testing.assert_array_equal,
    restored.state.params,
    make_state(float(step)).params,
  )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newer_step_does_not_push_out_the_last(
  tmp_path, semantics, damage
):
  """A run that fell back from step 20 to 10 saves 15: older than 20."""
  manager = open_manager(tmp_path, keep=2)
  save(manager, 10)
  save(manager, 20)
  manager.close()
  folder = tmp_path / "checkpoints"
  damage(folder / "20")
  manager = open_manager(tmp_path, keep=1)
  same_as(manager, 10)
  save(manager, 15)
  assert manager.steps() == [15, 20]
  same_as(manager, 15)
  save(manager, 20)  # written anew
  assert manager.steps() == [20]
  same_as(manager, 20)
  manager.close()


@pytest.mark.parametrize("damage", [flip, half_removed])
def test_damaged_steps_do_not_count(tmp_path, semantics, damage):
  manager = open_manager(tmp_path, keep=2)
  save(manager, 10)
  save(manager, 20)
  folder = tmp_path / "checkpoints"
  damage(folder / "20")
  save(manager, 30)
  assert manager.steps() == [10, 20, 30]
  damage(folder / "30")
  same_as(manager, 10)
  save(manager, 40)
  save(manager, 50)
  assert manager.steps() == [40, 50]
  manager.close()


def test_a_save_that_went_wrong_keeps_the_former(
  tmp_path, semantics, monkeypatch
):
  """The store takes all bytes without a word, and gives back others."""
  manager = open_manager(tmp_path, keep=1)
  save(manager, 10)
  finish = manager._checkpointer.wait_until_finished
  damaged = []

  def damaging():
    finish()
    step = tmp_path / "checkpoints" / "20"
    if step.exists():
      flip(step)
      damaged.append(step)

  manager._checkpointer.wait_until_finished = damaging
  manager.save(20, make_state(20.0))
  with pytest.raises(CheckpointError, match=r"not verify.*step 10 is intact"):
    manager.wait()
  assert damaged
  manager._checkpointer.wait_until_finished = finish
  same_as(manager, 10)
  # Once only: the save is repeated.
  times = iter([True])
  manager._checkpointer.wait_until_finished = lambda: (
    damaging() if next(times, False) else finish()
  )
  save(manager, 20)
  assert manager.steps() == [20]
  same_as(manager, 20)
  manager.close()


def test_an_unfinished_folder_is_no_step(tmp_path, monkeypatch):
  """What a kill leaves on gs://: a folder of the final name, no commit file."""
  monkeypatch.setattr(mirror, "last_file", lambda _: (mirror.COMMIT,))
  manager = open_manager(tmp_path, keep=1)
  save(manager, 10)
  folder = tmp_path / "checkpoints"
  (folder / "10").rename(folder / "20")
  (folder / "20" / mirror.COMMIT).unlink()
  assert manager.steps() == []
  assert manager.restore(make_state(0.0)) is None
  save(manager, 15)
  assert manager.steps() == [15]
  save(manager, 20)
  assert manager.steps() == [20]
  manager.close()


def test_which_file_is_last():
  assert mirror.last_file("/runs/a/1") == ()
  assert mirror.last_file("gs://b/1") == ("commit_success.txt",)
  assert mirror.last_file("s3://b/1") == ("manifest", "manifest.sha256")


def test_the_best_must_verify(tmp_path):
  manager = open_manager(tmp_path, keep=1, best="r1")
  save(manager, 1, metrics={"r1": 0.5})
  save(manager, 2, metrics={"r1": 0.9})
  folder = tmp_path / "checkpoints"
  assert manager.steps() == [2]
  save(manager, 3, metrics={"r1": 0.6})
  flip(folder / "2")
  save(manager, 4, metrics={"r1": 0.1})
  assert manager.steps() == [3, 4]
  manager.close()


def test_superseded():
  steps = [1, 2, 3, 4]
  good = lambda bad: lambda step: step not in bad
  assert retention.superseded(steps, 2, good(())) == [1, 2]
  assert retention.superseded(steps, 2, good((3, 4))) == []
  assert retention.superseded(steps, 2, good((3,))) == [1]
  assert retention.superseded(steps, 1, good((4,))) == [1, 2]
  assert retention.superseded(steps, 3, good((1, 2))) == []
  assert retention.superseded(steps, 1, good(()), lambda _: 2) == [1, 3]
  assert retention.superseded(steps, 1, good((2,)), max) == [1, 2, 3]
