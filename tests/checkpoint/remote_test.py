"""Workdirs and data in an object store: memory://, and s3:// and gs:// as
servers of this machine give them."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mico_jax.checkpoint import manager as manager_lib
from mico_jax.checkpoint import mirror
from mico_jax.checkpoint import steps as steps_lib
from mico_jax.checkpoint import workdir as workdir_lib
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config, ConfigError, TrainConfig
from mico_jax.data.storage import Storage
from mico_jax.run.cluster.lock import WorkdirLock
from mico_jax.run.monitor.metric_log import MetricsWriter, read_metrics
from mico_jax.testing import memory_path
from mico_jax.train.state import TrainState


def make_state(value: float) -> TrainState:
  params = {"a": {"w": jnp.full((8, 4), value), "b": jnp.arange(3.0)}}
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, {"mu": params}, None, zero, zero)


_S3 = pytest.param("s3", marks=pytest.mark.slow)


@pytest.fixture(params=["memory", _S3, "gs"])
def root(request):
  """Folder of a store, as text."""
  if request.param == "memory":
    memory_path.register()
    bucket = "memory://remote_test"
  else:
    bucket = request.getfixturevalue(request.param)
  return f"{bucket}/{time.monotonic_ns()}"


def open_manager(workdir: str) -> manager_lib.Manager:
  config = Config(train=TrainConfig(keep=2))
  return manager_lib.Manager(workdir, config=config)


def same(a: Any, b: Any) -> None:
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_saves_keeps_and_restores(root):
  manager = open_manager(root)
  assert workdir_lib.claim_workdir(root, Config()) is False
  assert workdir_lib.claim_workdir(root, Config()) is True
  for step in (1, 2, 3):
    manager.save(step, make_state(float(step)))
  manager.close()
  folder = epath.Path(root) / "checkpoints"
  assert steps_lib.list_steps(folder) == [2, 3]
  # What a killed copy leaves is no step, and does not stop the next one.
  half = folder / "4" / "params"
  half.mkdir(parents=True, exist_ok=True)
  (half / "x").write_bytes(b"x")
  manager = open_manager(root)
  restored = manager.restore(make_state(0.0))
  assert restored.step == 3
  assert restored.skipped == ()
  same(restored.state.params, make_state(3.0).params)
  manager.save(4, make_state(4.0))
  manager.wait()
  assert steps_lib.list_steps(folder) == [3, 4]
  data = folder / "4" / "data" / "data.json"
  data.write_bytes(b"{}")
  restored = manager.restore(make_state(0.0))
  assert restored.step == 3
  assert "data.json" in restored.skipped[0][1]
  manager.close()


# To gs:// nothing is copied: Orbax writes there.
@pytest.mark.parametrize("root", ["memory", _S3], indirect=True)
def test_failed_copy_is_one_line(root, monkeypatch):
  manager = open_manager(root)
  manager.save(1, make_state(1.0))
  manager.wait()

  def broken(*_: Any) -> None:
    raise OSError("connection reset")

  monkeypatch.setattr(mirror, "upload", broken)
  manager.save(2, make_state(2.0))
  with pytest.raises(CheckpointError, match="step 1 is intact") as caught:
    manager.wait()
  assert "connection reset" in str(caught.value)
  assert "\n" not in str(caught.value)
  manager.close()


def test_only_one_process_writes_there(monkeypatch):
  monkeypatch.setattr(manager_lib.jax, "process_count", lambda: 2)
  with pytest.raises(ConfigError, match=r"s3://b/w.*use a --workdir on gs://"):
    open_manager("s3://b/w")


def test_lock_and_metrics(root):
  held = WorkdirLock(root)
  held.acquire()
  with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
    WorkdirLock(root).acquire()
  held.release()
  again = WorkdirLock(root)
  again.acquire()
  again.release()
  with MetricsWriter(root, tensorboard=False) as writer:
    writer.write(0, {"loss": 2.0})
  assert [x["loss"] for x in read_metrics(root)] == [2.0]


def test_shards_are_read_through_the_cache(root, tmp_path):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as tar:
    info = tarfile.TarInfo("0.txt")
    info.size = 5
    tar.addfile(info, io.BytesIO(b"hello"))
  epath.Path(root).mkdir(parents=True, exist_ok=True)
  (epath.Path(root) / "shard.tar").write_bytes(buffer.getvalue())
  (epath.Path(root) / "m.jsonl").write_text(json.dumps({"id": "0"}) + "\n")
  store = Storage(cache_dir=str(tmp_path), timeout=30)
  assert json.loads(store.read(f"{root}/m.jsonl")) == {"id": "0"}
  with tarfile.open(fileobj=store.open(f"{root}/shard.tar")) as tar:
    assert tar.extractfile("0.txt").read() == b"hello"
  assert len(list(tmp_path.rglob("*.data"))) == 1
  asked = store.requests
  assert store.read_range(f"{root}/shard.tar", 512, 5) == b"hello"
  assert store.read_range(f"{root}/shard.tar", 10**6, 5) == b""
  assert store.requests == asked


def test_native_paths_are_not_copied(tmp_path):
  with mirror.local_copy(epath.Path(tmp_path), ("params",)) as here:
    assert here == epath.Path(tmp_path)
  assert mirror.is_native("gs://bucket/run")
  assert not mirror.is_native("s3://bucket/run")
