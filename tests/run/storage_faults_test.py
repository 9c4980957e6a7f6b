"""Storage that fails at any one call: a run waits, or ends to start again."""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mico_jax import failures, files
from mico_jax.checkpoint import manager as manager_lib
from mico_jax.checkpoint import workdir as workdir_lib
from mico_jax.config import Config, TrainConfig
from mico_jax.run.cluster.lock import WorkdirLock
from mico_jax.run.monitor.goodput import GoodputLog
from mico_jax.run.monitor.metric_log import MetricsWriter, read_metrics
from mico_jax.testing import memory_path
from mico_jax.testing.faults import LOCAL_KINDS, STORE_KINDS, Faults
from mico_jax.train.state import TrainState


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
  """Nobody waits for long."""
  monkeypatch.setattr(failures, "delays", lambda _: iter([0.001] * 20))


@pytest.fixture(params=["local", "memory"])
def workdir(request, tmp_path):
  if request.param == "local":
    return str(tmp_path / "run")
  memory_path.register()
  return f"memory://faults/{tmp_path.name}/run"


def kinds_of(workdir: str) -> dict[str, Any]:
  return LOCAL_KINDS if files.is_local(workdir) else STORE_KINDS


def make_state(value: float) -> TrainState:
  params = {"a": {"w": jnp.full((8, 4), value), "b": jnp.arange(3.0)}}
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {"mu": params}, None, zero, zero)


def write_and_resume(workdir: str) -> None:
  """What a run writes beside its checkpoints, in two starts."""
  for start in (0, 2):
    held = WorkdirLock(workdir)
    held.acquire()
    workdir_lib.claim_workdir(workdir, Config())
    with MetricsWriter(workdir, start_step=start, tensorboard=False) as writer:
      goodput = GoodputLog(workdir, start_step=start, began=1.0)
      for step in range(start, start + 3):
        writer.write(step, {"loss": float(step + start)})
        goodput.update(step, {"step": 1.0})
      writer.flush()
    held.release()


def check_written(workdir: str) -> None:
  found = read_metrics(workdir)
  assert [x["step"] for x in found] == [0, 1, 2, 3, 4]
  assert [x["loss"] for x in found] == [0, 1, 4, 5, 6]
  sessions = json.loads(files.read_text(epath.Path(workdir) / "goodput.json"))
  assert [x["start"] for x in sessions] == [0, 2]
  assert "lock.json" not in files.names(workdir)
  assert not [x for x in files.names(workdir) if x.endswith(files.PART)]
  assert workdir_lib.claim_workdir(workdir, Config())


def test_each_call_of_metrics_goodput_config_and_lock_may_fail(workdir):
  kinds = kinds_of(workdir)
  quiet = Faults(workdir, lambda _: False, kinds)
  with quiet.installed():
    write_and_resume(workdir)
  check_written(workdir)
  assert len(quiet.calls) > 20
  files.remove_folder(workdir)
  for number in range(len(quiet.calls)):
    name = list(kinds)[number % len(kinds)]
    one = Faults(workdir, lambda n, at=number: n == at, {name: kinds[name]})
    with one.installed():
      write_and_resume(workdir)
    assert one.failed == [one.calls[number]]
    check_written(workdir)
    files.remove_folder(workdir)


def test_each_call_may_fail_again_and_again(workdir):
  """One call in five fails, so repetitions fail as well."""
  for seed in range(3):
    faults = Faults(
      workdir,
      np.random.default_rng(seed).permutation(np.arange(10**4) % 5 == 0).item,
      kinds_of(workdir),
      seed,
    )
    with faults.installed():
      write_and_resume(workdir)
    assert len(faults.failed) > 5
    check_written(workdir)
    files.remove_folder(workdir)


def save_and_restore(workdir: str) -> Any:
  config = Config(train=TrainConfig(keep=1))
  manager = manager_lib.Manager(workdir, config=config)
  for step in (1, 2):
    manager.save(step, make_state(float(step)))
  manager.close()
  manager = manager_lib.Manager(workdir, config=config)
  restored = manager.restore(make_state(0.0))
  manager.close()
  return restored, manager.steps()


def check_saved(restored: Any, steps: list[int]) -> None:
  assert steps == [2]
  assert restored.step == 2
  assert restored.skipped == ()
  jax.tree.map(
    np.testing.assert_array_equal,
    restored.state.params,
    make_state(2.0).params,
  )


def test_calls_of_saving_and_restoring_may_fail(workdir):
  kinds = kinds_of(workdir)
  quiet = Faults(workdir, lambda _: False, kinds)
  with quiet.installed():
    check_saved(*save_and_restore(workdir))
  # A fault of each of the calls that differ, and further ones by chance.
  total = len(quiet.calls)
  first = {name: quiet.calls.index(name) for name in set(quiet.calls)}
  others = np.random.default_rng(0).choice(total, 4, replace=False).tolist()
  for number in sorted({*first.values(), *others}):
    files.remove_folder(workdir)
    name = list(kinds)[number % len(kinds)]
    one = Faults(workdir, lambda n, at=number: n == at, {name: kinds[name]})
    with one.installed():
      check_saved(*save_and_restore(workdir))
    assert len(one.failed) == 1


@pytest.mark.parametrize("seed", range(3))
def test_one_call_in_a_hundred_fails(workdir, seed):
  chance = np.random.default_rng(seed).permutation(np.arange(10**5) % 100 == 0)
  storm = Faults(workdir, chance.item, kinds_of(workdir), seed)
  with storm.installed():
    write_and_resume(workdir)
    restored, steps = save_and_restore(workdir)
  assert len(storm.failed) > 2
  check_written(workdir)
  check_saved(restored, steps)


@pytest.mark.parametrize("what", ["save", "metrics", "claim", "lock", "steps"])
def test_a_fault_that_stays_ends_with_what_means_start_again(
  workdir, what, tmp_path
):
  manager = manager_lib.Manager(workdir, config=Config())
  manager.save(1, make_state(1.0))
  manager.wait()
  writer = MetricsWriter(workdir, tensorboard=False)
  workdir_lib.claim_workdir(workdir, Config())

  def metrics() -> None:
    writer.write(0, {"loss": 1.0})
    writer.flush()

  def save() -> None:
    manager.save(2, make_state(2.0))
    manager.wait()

  calls = {
    "save": save,
    "metrics": metrics,
    "claim": lambda: workdir_lib.claim_workdir(workdir, Config()),
    "lock": lambda: WorkdirLock(workdir).acquire(),
    "steps": manager.steps,
  }
  away = Faults(workdir, lambda _: True, kinds_of(workdir))
  with away.installed(), pytest.raises(failures.TransientError) as caught:
    calls[what]()
  assert "\n" not in str(caught.value)
  manager.close()
  assert manager.steps() == [1]


def test_a_full_disk_adds_whole_lines_or_none(tmp_path, monkeypatch):
  """A write that took a part, then failed, leaves no half a line."""
  path = tmp_path / "lines"
  size = files.append(path, b"one\n", 0)
  pwrite, turns = files.os.pwrite, iter([0, 1, 2, 3])

  def short(handle: int, data: bytes, place: int) -> int:
    turn = next(turns)
    if turn % 2:
      assert path.read_bytes() == b"one\ntw"
      raise OSError(28, "No space left on device")
    return pwrite(handle, data[:2] if turn == 0 else data, place)

  monkeypatch.setattr(files.os, "pwrite", short)
  size = files.append(path, b"two\n", size)
  assert path.read_bytes() == b"one\ntwo\n"
  # What another left behind the known end goes.
  with path.open("ab") as file:
    file.write(b"thr")
  assert files.append(path, b"", size) == 8
  assert path.read_bytes() == b"one\ntwo\n"


def test_tensorboard_may_fail_without_a_hang(tmp_path, capsys):
  """Its thread ends at an error of its file; the queue would then fill up."""
  with MetricsWriter(tmp_path) as writer:
    writer.write(0, {"loss": 1.0})
    writer.flush()
    away = Faults(str(tmp_path / "tensorboard"), lambda _: True, LOCAL_KINDS)
    with away.installed():
      for step in range(1, 50):
        writer.write(step, {"loss": 1.0})
        writer.flush()
  assert "no further TensorBoard events" in capsys.readouterr().err
  assert len(read_metrics(tmp_path)) == 50
