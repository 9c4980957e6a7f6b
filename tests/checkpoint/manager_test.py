"""Saving, keeping, verifying and resuming, on a state of a few arrays."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from mico_jax import config as config_lib
from mico_jax.checkpoint import described as described_lib
from mico_jax.checkpoint import manager as manager_lib
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import sharded, storage
from mico_jax.checkpoint import workdir as workdir_lib
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config, ConfigError
from mico_jax.failures import TransientError
from mico_jax.testing import memory_path


@dataclasses.dataclass
class State:
  step: Any
  params: Any
  opt_state: Any
  ema: Any
  skipped: Any

  def replace(self, **changes: Any) -> State:
    return dataclasses.replace(self, **changes)


def make_state(value: float) -> State:
  # Incompressible, so that a byte in the middle of the largest file is data.
  kernel = np.random.default_rng(int(value)).normal(size=(64, 32))
  params = {
    "vision": {"kernel": jnp.asarray(kernel, "f4"), "bias": jnp.arange(4.0)},
    "temperature": jnp.asarray(0.07, jnp.bfloat16),
    "lora": {"vision/kernel": {"a~b": jnp.ones((2,))}},
  }
  return State(
    step=jnp.asarray(0, jnp.int32),
    params=params,
    opt_state=optax.adamw(1e-3).update(
      params, optax.adamw(1e-3).init(params), params
    )[1],
    ema=jax.tree.map(lambda x: x + x, params),
    skipped=jnp.asarray(2, jnp.int32),
  )


def make_config(**train: Any) -> Config:
  return Config(train=dataclasses.replace(Config().train, **train))


def open_manager(path: Any, **train: Any) -> manager_lib.Manager:
  extras = described_lib.Extras(
    logical_axes={
      "vision": {"kernel": ("embed", "mlp"), "bias": ("norm",)},
      "temperature": (),
    },
    tokenizer_files={"vocab.txt": b"[PAD]\n[CLS]\n"},
    tokenizer_info={"pad": 0},
    preprocessing={"image": "plain"},
    self_check=lambda p: {"sum": np.asarray(p["vision"]["kernel"]).sum()},
  )
  return manager_lib.Manager(path, config=make_config(**train), extras=extras)


def save(manager: manager_lib.Manager, step: int, **kwargs: Any) -> None:
  manager.save(step, make_state(float(step)), **kwargs)
  manager.wait()


def assert_same(a: Any, b: Any) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def largest_file(folder: pathlib.Path) -> pathlib.Path:
  files = [p for p in folder.rglob("d/*") if p.is_file()]
  return max(files, key=lambda p: p.stat().st_size)


def test_state_returns_bit_for_bit(tmp_path):
  manager = open_manager(tmp_path)
  save(manager, 10, data={"task": {"a": 4}})
  restored = manager.restore(make_state(0.0))
  assert restored is not None
  assert restored.step == 10
  assert restored.data == {
    "step": 10,
    "counters": {"skipped": 2, "step": 0},
    "task": {"a": 4},
  }
  assert restored.skipped == restored.notes == ()
  want = make_state(10.0)
  for name in ("params", "opt_state", "ema", "skipped"):
    assert_same(getattr(restored.state, name), getattr(want, name))
  assert int(restored.state.step) == 10
  manager.close()


def test_layout_and_manifest(tmp_path):
  manager = open_manager(tmp_path)
  save(manager, 5)
  folder = tmp_path / "checkpoints" / "5"
  names = {p.name for p in folder.iterdir() if p.is_dir()}
  assert names == set(manifest_lib.ITEMS)
  manifest = manifest_lib.read(folder)
  entry = manifest["items"]["params"]["vision/kernel"]
  assert entry["shape"] == [64, 32]
  assert entry["dtype"] == "float32"
  assert entry["axes"] == ["embed", "mlp"]
  assert entry["sha256"] == manifest_lib.array_hash(
    make_state(5.0).params["vision"]["kernel"]
  )
  assert manifest["self_check_of"] == "ema"
  assert manifest["topology"]["num_devices"] == 8
  assert {"jax", "grain", "python"} <= set(manifest["versions"])
  assert set(manifest["files"]) == {"tokenizer/vocab.txt", "self_check.npz"}
  assert (
    json.loads((folder / "config" / "config.json").read_text())["seed"] == 0
  )
  manager.close()


@pytest.mark.multidevice
def test_sharded_state_keeps_its_shardings(tmp_path):
  mesh = jax.make_mesh((8,), ("data",))
  split = jax.NamedSharding(mesh, jax.P("data"))
  params = {"w": jax.device_put(jnp.arange(16.0).reshape(8, 2), split)}
  state = State(0, params, None, None, 0)
  manager = manager_lib.Manager(tmp_path, config=Config())
  manager.save(1, state)
  whole = jax.NamedSharding(
    jax.make_mesh((2,), ("data",), devices=jax.devices()[:2]), jax.P("data")
  )
  like = {"w": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=whole)}
  restored = manager.restore(State(0, like, None, None, 0))
  assert restored is not None
  assert restored.state.params["w"].sharding == whole
  assert_same(restored.state.params, params)
  manager.close()


def test_restore_holds_a_few_arrays_at_a_time(tmp_path, monkeypatch):
  manager = open_manager(tmp_path)
  save(manager, 10)
  kernel = 64 * 32 * 4
  monkeypatch.setattr(sharded, "BATCH_BYTES", kernel // 2)
  parts = []
  windows = sharded._Reading._windows

  def noting(self: Any) -> Any:
    for window in windows(self):
      parts.append([manifest_lib.nbytes(a.entry, r) for a, r, _ in window])
      yield window

  monkeypatch.setattr(sharded._Reading, "_windows", noting)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    dataclasses.asdict(make_state(0.0))["params"],
  )
  restored = manager.restore(make_state(0.0).replace(params=like))
  assert restored is not None
  for name in ("params", "opt_state", "ema"):
    want = getattr(make_state(10.0), name)
    assert_same(getattr(restored.state, name), want)
  sums = [sum(part) for part in parts]
  # Kernels of parameters, both moments and averages, one by one, come first.
  assert parts[:4] == [[kernel]] * 4
  assert max(sums[4:]) <= kernel // 2
  assert sums == sorted(sums, reverse=True)
  manager.close()


def test_keeps_the_newest_and_the_best(tmp_path):
  manager = open_manager(tmp_path, keep=2, keep_best="r1")
  for step, score in (
    (1, 0.1),
    (2, 0.9),
    (3, 0.2),
    (4, 0.3),
    (5, float("nan")),
  ):
    save(manager, step, metrics={"r1": score})
  assert manager.steps() == [2, 4, 5]
  assert manager._best_of(manager.steps()) == 2
  manager.close()
  other = manager_lib.Manager(
    tmp_path / "rank",
    config=make_config(keep=1, keep_best="median rank"),
    lower_is_better=True,
  )
  for step, score in ((1, 0.5), (2, 0.1), (3, 0.9)):
    save(other, step, metrics={"median rank": score})
  assert other.steps() == [2, 3]
  assert other.save(3, make_state(3.0)) is False
  other.close()


def flip(folder: pathlib.Path) -> None:
  path = largest_file(folder / "params")
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


def flip_moments(folder: pathlib.Path) -> None:
  flip_in = largest_file(folder / "opt_state")
  data = bytearray(flip_in.read_bytes())
  data[len(data) // 2] ^= 1
  flip_in.write_bytes(bytes(data))


def truncate(folder: pathlib.Path) -> None:
  path = largest_file(folder / "params")
  path.write_bytes(path.read_bytes()[:20])


def lose_manifest(folder: pathlib.Path) -> None:
  (folder / "manifest" / "manifest.json").unlink()


def edit_manifest(folder: pathlib.Path) -> None:
  path = folder / "manifest" / "manifest.json"
  path.write_text(path.read_text().replace("vocab", "VOCAB"))


def edit_data(folder: pathlib.Path) -> None:
  (folder / "data" / "data.json").write_text("{}")


@pytest.mark.parametrize(
  ("damage", "word"),
  [
    (flip, "params"),
    (flip_moments, "opt_state"),
    (truncate, "params"),
    (lose_manifest, "manifest.json"),
    (edit_manifest, "manifest.json"),
    (edit_data, "data.json"),
  ],
)
def test_damaged_newest_falls_back_and_says_so(tmp_path, damage, word):
  manager = open_manager(tmp_path)
  save(manager, 10)
  save(manager, 20)
  damage(tmp_path / "checkpoints" / "20")
  restored = manager.restore(make_state(0.0))
  assert restored is not None
  assert restored.step == 10
  assert_same(restored.state.params, make_state(10.0).params)
  ((step, reason),) = restored.skipped
  assert step == 20
  assert word in reason
  assert "\n" not in reason
  damage(tmp_path / "checkpoints" / "10")
  with pytest.raises(CheckpointError, match=r"no checkpoint of .* verifies"):
    manager.restore(make_state(0.0))
  manager.close()


def test_damaged_step_can_be_saved_again(tmp_path):
  manager = open_manager(tmp_path)
  save(manager, 10)
  lose_manifest(tmp_path / "checkpoints" / "10")
  save(manager, 10)
  assert manager.restore(make_state(0.0)).step == 10
  manager.close()


def test_full_disk_keeps_the_former_checkpoint(tmp_path, monkeypatch):
  monkeypatch.setenv("MICO_JAX_PATIENCE", "0.5")
  manager = open_manager(tmp_path)
  save(manager, 10)
  real = manifest_lib.pack_arrays

  def full(arrays: Any) -> bytes:
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(manifest_lib, "pack_arrays", full)
  with pytest.raises(TransientError) as caught:
    save(manager, 20)
  assert "No space left on device" in str(caught.value)
  assert "step 10 is intact" in str(caught.value)
  assert "\n" not in str(caught.value)
  assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"10"}
  monkeypatch.setattr(manifest_lib, "pack_arrays", real)
  assert manager.restore(make_state(0.0)).step == 10
  save(manager, 20)
  assert manager.steps() == [10, 20]
  manager.close()


def test_relative_workdir(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  manager = open_manager("runs/a")
  save(manager, 1)
  assert manager.restore(make_state(0.0)).step == 1
  assert (tmp_path / "runs" / "a" / "checkpoints" / "1").is_dir()
  manager.close()


def test_empty_workdir_and_other_state(tmp_path):
  manager = open_manager(tmp_path)
  assert manager.restore(make_state(0.0)) is None
  save(manager, 1)
  other = make_state(0.0)
  other.params["extra"] = jnp.zeros(())
  with pytest.raises(CheckpointError, match="does not fit"):
    manager.restore(other)
  wrong = make_state(0.0)
  wrong.params["vision"]["bias"] = jnp.zeros((5,))
  with pytest.raises(CheckpointError, match=r"float32\[4\].*float32\[5\]"):
    manager.restore(wrong)
  manager.close()


def test_other_topology_is_named(tmp_path):
  manager = open_manager(tmp_path)
  save(manager, 1)
  manager.extras = dataclasses.replace(
    manager.extras, topology={**described_lib.topology(), "num_devices": 99}
  )
  restored = manager.restore(make_state(0.0))
  assert restored is not None
  assert restored.notes == ("topology.num_devices: 8, now 99",)
  manager.close()


def test_workdir_belongs_to_one_config(tmp_path):
  config = config_lib.override(Config(), ["train.steps=7"])
  assert workdir_lib.claim_workdir(tmp_path, config) is False
  assert workdir_lib.claim_workdir(tmp_path, config) is True
  free = config_lib.override(config, ["train.log_every=3", "train.keep=9"])
  assert workdir_lib.claim_workdir(tmp_path, free) is True
  other = config_lib.override(config, ["train.steps=8", "seed=4"])
  with pytest.raises(
    ConfigError, match=r"seed: 0, now 4; train.steps: 7, now 8"
  ):
    workdir_lib.claim_workdir(tmp_path, other)


def test_workdir_may_fill_in_counts(tmp_path):
  source = config_lib.SourceConfig()
  full = dataclasses.replace(source, count=3, sha256="ab")

  def config(one: config_lib.SourceConfig) -> Config:
    return Config(data=config_lib.DataConfig(sources={"a": one}))

  workdir_lib.claim_workdir(tmp_path, config(full))
  assert workdir_lib.claim_workdir(tmp_path, config(source))
  changed = dataclasses.replace(full, sha256="cd")
  with pytest.raises(ConfigError, match=r"sources\.a.sha256"):
    workdir_lib.claim_workdir(tmp_path, config(changed))


def test_config_and_manifest_on_memory_paths():
  memory_path.register()
  root = epath.Path("memory://claim")
  assert workdir_lib.claim_workdir(root, Config()) is False
  assert workdir_lib.claim_workdir(root, Config()) is True
  empty = manifest_lib.sha256(b"{}")
  told = {
    "step": 1,
    "config_sha256": empty,
    "data_sha256": empty,
    "items": {"params": {}},
    "self_check_of": "params",
    "tokenizer": {},
    "preprocessing": {},
    "versions": {},
    "topology": {},
    "metrics": {},
  }
  files = manifest_lib.to_files(told, {"a/b": b"1"})
  for name, data in files.items():
    path = root / "1" / "manifest" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  manifest = manifest_lib.read(root / "1")
  _, problems = manifest_lib.read_files(root / "1", manifest)
  assert len(problems) == 1
  assert "config.json" in problems[0]


def test_pickled_self_check_is_refused():
  buffer = io.BytesIO()
  np.savez(buffer, x=np.asarray([object()], dtype=object))
  with pytest.raises(CheckpointError, match="cannot be read"):
    manifest_lib.unpack_arrays(buffer.getvalue())


def test_path_dict_round_trip():
  tree = optax.adamw(1e-3).init({"a": jnp.ones(2), "b": {"c": jnp.zeros(())}})
  flat = storage.path_dict(tree)
  assert_same(storage.from_path_dict(tree, flat), tree)
