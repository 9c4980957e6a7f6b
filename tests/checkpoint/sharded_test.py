"""States in shards: saved by some processes, restored by others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import config as config_lib
from mico_jax.benchmarks import shard_memory
from mico_jax.checkpoint import manager as manager_lib
from mico_jax.checkpoint import manifest, ranges, restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config
from mico_jax.failures import TransientError
from mico_jax.parallel import distributed
from mico_jax.run import setup
from mico_jax.testing.ports import free_port
from mico_jax.train.state import TrainState


# ---------------------------------------------------------------- the manifest
def test_grid_lies_in_order_and_divides():
  assert ranges.of_grid((4, 2), (2, 1)) == [
    ((0, 2), (0, 1)),
    ((0, 2), (1, 2)),
    ((2, 4), (0, 1)),
    ((2, 4), (1, 2)),
  ]
  assert ranges.of_grid((), ()) == [()]
  assert ranges.of_grid((0, 3), (0, 3)) == [((0, 0), (0, 3))]
  for grid in ((3, 2), (0, 2), (-2, 2), (2,), (4, 2, 1)):
    with pytest.raises(ValueError, match="do not divide"):
      ranges.of_grid((4, 2), grid)


def test_entries_hold_one_hash_or_a_grid():
  layout = {
    "one": {"shape": [4], "dtype": "float32", "grid": [4]},
    "two": {"shape": [4], "dtype": "float32", "grid": [2]},
  }
  notes = [{"one": {"0": "a"}, "two": {"0": "b"}}, {"two": {"2": "c"}}]
  found = manifest.describe_shards(layout, notes)
  assert found["one"] == {"shape": [4], "dtype": "float32", "sha256": "a"}
  assert found["two"]["grid"] == [2]
  assert manifest.shards(found["two"]) == [(((0, 2),), "b"), (((2, 4),), "c")]
  with pytest.raises(CheckpointError, match=r"two: no process hashed .*\[2\]"):
    manifest.describe_shards(layout, notes[:1])
  with pytest.raises(CheckpointError, match=r"2 shard.* 1 hash"):
    manifest.shards({**found["two"], "sha256": ["b"]})


def old_params():
  return {
    "a": {
      "w": jnp.arange(24.0).reshape(6, 4),
      "b/c": jnp.asarray([1, -0.0], jnp.bfloat16),
    },
    "t": jnp.asarray(0.5),
  }


def bits(tree):
  return [
    (x.dtype.name, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)
  ]


def test_format_1_is_read(repository, tmp_path):
  """A folder that was written before shards had hashes of their own."""
  with zipfile.ZipFile(repository / "tests/checkpoint/format_1.zip") as file:
    file.extractall(tmp_path)
  folder = tmp_path / "checkpoints" / "3"
  assert manifest.read(folder)["format"] == "mico_jax checkpoint 1"
  found = restore.open_checkpoint(tmp_path)
  assert found.step == 3
  assert bits(found.params) == bits(old_params())
  assert found.tokenizer_files() == {"vocab.txt": b"[PAD]\n"}
  zero = jnp.zeros((), jnp.int32)
  like = TrainState(
    zero, old_params(), {"mu": old_params(), "count": zero}, None, zero, zero
  )
  keeper = manager_lib.Manager(tmp_path, config=Config())
  restored = keeper.restore(jax.tree.map(jnp.zeros_like, like))
  assert bits(restored.state.params) == bits(old_params())
  assert int(restored.state.opt_state["count"]) == 7
  # Parameters that are split read no more than the old whole arrays.
  keeper.save(4, restored.state)
  keeper.close()
  assert manifest.read(tmp_path / "checkpoints" / "4")["format"].endswith(" 2")


# ----------------------------------------------------------------- one process
@pytest.mark.multidevice
def test_other_shards_than_saved(tmp_path):
  devices = np.asarray(jax.devices()[:4])
  mesh = jax.sharding.Mesh(devices.reshape(2, 2), ("a", "b"))
  place = lambda x, *spec: jax.device_put(
    x, jax.NamedSharding(mesh, jax.P(*spec))
  )
  value = jnp.arange(64.0).reshape(8, 8)
  saved = {"w": place(value, "a", "b"), "v": place(value[0], "b")}
  zero = jnp.zeros((), jnp.int32)
  keeper = manager_lib.Manager(tmp_path, config=Config())
  keeper.save(1, TrainState(zero, saved, {"n": zero}, None, zero, zero))
  keeper.wait()
  entries = manifest.read(tmp_path / "checkpoints/1")["items"]["params"]
  assert entries["w"]["grid"] == [4, 4]
  assert len(entries["w"]["sha256"]) == 4
  assert entries["v"]["grid"] == [4]
  for specs in (("b", "a"), (None, None), (("b", "a"), None), (None, "a")):
    like = {"w": place(jnp.zeros((8, 8)), *specs), "v": place(jnp.zeros(8))}
    restored = keeper.restore(
      TrainState(zero, like, {"n": zero}, None, zero, zero)
    )
    assert bits(restored.state.params) == bits(saved)
    assert restored.state.params["w"].sharding == like["w"].sharding
  # Without a mesh, and verified as a whole.
  assert bits(restore.open_checkpoint(tmp_path).params) == bits(saved)
  keeper.close()


def test_a_step_that_donates_does_not_alter_what_is_saved(
  tmp_path, monkeypatch
):
  """The hash and what is written are of the state when it was saved."""
  zero = jnp.zeros((), jnp.int32)
  make = lambda x: TrainState(
    zero, {"w": jnp.full((512, 512), x)}, {"n": zero}, None, zero, zero
  )
  train = jax.jit(
    lambda p: jax.tree.map(lambda x: x * 2 + 1, p), donate_argnums=0
  )
  trained = threading.Event()
  array_hash = manifest.array_hash

  def late(array):
    assert trained.wait(60)
    return array_hash(array)

  monkeypatch.setattr(manifest, "array_hash", late)
  keeper = manager_lib.Manager(tmp_path, config=Config())
  state = make(1.5)
  keeper.save(1, state)
  params = state.params
  for _ in range(3):
    params = jax.block_until_ready(train(params))
  trained.set()
  restored = keeper.restore(make(0.0), step=1)
  assert bits(restored.state.params) == bits(make(1.5).params)
  keeper.close()


def test_large_models_get_no_self_check_on_several_hosts(monkeypatch):
  session = setup.resolve(config_lib.load("demo", []))
  assert session.extras().self_check is not None
  monkeypatch.setattr(setup, "SMALL", 1000)
  assert session.extras().self_check is not None
  monkeypatch.setattr(setup.jax, "process_count", lambda: 2)
  assert session.extras().self_check is None


def test_processes_agree_on_the_worst(monkeypatch):
  kinds = (CheckpointError, TransientError)

  def agree(own, other):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    rank = [*kinds].index(type(other)) if type(other) in kinds else 2
    monkeypatch.setattr(
      distributed,
      "gather_texts",
      lambda text: [text, json.dumps([-1 if other is None else rank, "no"])],
    )
    distributed.agree(own, kinds=kinds)

  agree(None, None)
  with pytest.raises(CheckpointError, match=r"^mine$"):
    agree(CheckpointError("mine"), None)
  with pytest.raises(CheckpointError, match=r"^process 1: no$"):
    agree(None, CheckpointError("no"))
  with pytest.raises(TransientError, match=r"^process 1: no$"):
    agree(CheckpointError("mine"), TransientError("no"))
  with pytest.raises(RuntimeError, match=r"^process 1: no$"):
    agree(TransientError("mine"), KeyError("no"))
  with pytest.raises(KeyError):
    agree(KeyError("mine"), CheckpointError("no"))


# ----------------------------------------------------------- several processes
WORKER = """
import json, pathlib, sys
from mico_jax.parallel import distributed
distributed.initialize_from_env()
import jax, jax.numpy as jnp, numpy as np
from mico_jax.checkpoint import manager as lib, manifest, placement, storage
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config, ConfigError
from mico_jax.failures import TransientError
from mico_jax.train.state import TrainState

folder = pathlib.Path(sys.argv[1])
process = jax.process_index()
placement.SHARE_BYTES = 64
meshes = {
  "split": jax.make_mesh((4,), ("fsdp",)),
  "both": jax.make_mesh((2, 2), ("copy", "fsdp")),
}
rng = np.random.default_rng(0)
odd = np.asarray([0.0, -0.0, np.inf, np.nan] * 16, np.float32)
odd.view(np.uint32)[3] |= 5  # a payload
VALUES = {
  "w": rng.standard_normal((8, 4096)).astype(np.float32),
  "odd": odd,
  "half": np.asarray(jnp.asarray(odd, jnp.bfloat16)),
  "flags": rng.random(64) < 0.5,
  "n": rng.integers(-9, 9, 64, np.int32),
  "small": np.float32(0.5),
}

def make(mesh, specs, fill=True):
  def one(name, value):
    place = jax.NamedSharding(mesh, specs.get(name, jax.P()))
    value = np.asarray(value)
    value = value if fill else np.zeros_like(value)
    return jax.make_array_from_callback(value.shape, place, lambda i: value[i])
  params = {k: one(k, v) for k, v in VALUES.items()}
  zero = one("", np.int32(0))
  return TrainState(zero, params, {"mu": params}, None, zero, zero)

def check(state):
  for name, array in state.params.items():
    for shard in array.addressable_shards:
      want = np.asarray(VALUES[name])[shard.index]
      assert np.asarray(shard.data).tobytes() == want.tobytes(), name

keeper = lib.Manager(folder, config=Config())
SPLIT = {"w": jax.P("fsdp"), "odd": jax.P("fsdp")}
for step in (1, 2):
  keeper.save(step, make(meshes["split"], SPLIT))
  keeper.wait()

read = []
real = storage.ArrayFiles.read
def noting(self, store, where):
  found = real(self, store, where)
  read.append(found.nbytes)
  return found
storage.ArrayFiles.read = noting
total = {}
for name, specs in (
  ("split", SPLIT),
  ("split", {}),
  ("both", {"w": jax.P(None, "fsdp")}),
  ("both", {"w": jax.P(("fsdp", "copy")), "n": jax.P("copy")}),
):
  read.clear()
  like = make(meshes[name], specs, fill=False)
  restored = keeper.restore(like)
  assert restored.step == 2
  check(restored.state)
  assert restored.state.params["w"].sharding == like.params["w"].sharding
  total[f"{name} {sorted(specs)}"] = sum(read)

# One damaged shard, read by one process: both go back to the former step.
distributed.barrier()
if process == 0:
  needle = VALUES["w"][7].tobytes()
  hits = 0
  for path in (folder / "checkpoints/2/params").rglob("*"):
    data = path.read_bytes() if path.is_file() else b""
    if needle in data:
      path.write_bytes(data.replace(needle, needle[:-1] + bytes([1])))
      hits += 1
  assert hits
distributed.barrier()
for specs in (SPLIT, {}):
  restored = keeper.restore(make(meshes["split"], specs, fill=False))
  assert restored.step == 1
  ((step, reason),) = restored.skipped
  assert step == 2 and "content of w differs" in reason, reason
  check(restored.state)

# A store that stays away in one process ends both in the same way.
def away(self, store, where):
  raise TransientError("the store is away")
if process == 1:
  storage.ArrayFiles.read = away
for specs in (SPLIT, {}):
  try:
    keeper.restore(make(meshes["split"], specs, fill=False), step=1)
  except TransientError as e:
    assert "the store is away" in str(e)
  else:
    raise AssertionError("restored without a store")
storage.ArrayFiles.read = real

# One process that sees no files does not leave the other waiting for it.
def gone(self, folder, item, every):
  raise OSError(5, "Input/output error", "params")
opened = storage.ArrayFiles.__init__
if process == 1:
  storage.ArrayFiles.__init__ = gone
for specs in (SPLIT, {}):
  try:
    keeper.restore(make(meshes["split"], specs, fill=False), step=1)
  except TransientError as e:
    assert "Input/output error" in str(e)
  else:
    raise AssertionError("restored without files")
storage.ArrayFiles.__init__ = opened

# Nor do folders that differ pass for one.
if process == 1:
  head = lib.read_head
  lib.read_head = lambda folder: ({**head(folder)[0], "other": 1}, {})
try:
  keeper.restore(make(meshes["split"], SPLIT, fill=False))
except ConfigError as e:
  assert "different workdirs" in str(e)
else:
  raise AssertionError("restored two checkpoints as one")
keeper.close()
print(json.dumps(total))
"""


def start(script, folder, count, *, devices=2):
  base = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "MICO_JAX_COORDINATOR": f"127.0.0.1:{free_port()}",
    "MICO_JAX_NUM_PROCESSES": str(count),
  }
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", script, str(folder)],
      env={**base, "MICO_JAX_PROCESS_ID": str(index)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  try:
    ends = [process.communicate(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
  errors = "\n".join(err for _, err in ends)
  assert [p.returncode for p in processes] == [0] * count, errors
  return [json.loads(out.splitlines()[-1]) for out, _ in ends]


@pytest.mark.multidevice
def test_two_processes(tmp_path):
  found = start(WORKER, tmp_path, 2)
  entries = manifest.read(tmp_path / "checkpoints/1")["items"]["params"]
  assert len(entries["w"]["sha256"]) == 4
  size = 2 * sum(manifest.nbytes(entry) for entry in entries.values())
  for what in found[0]:
    read = found[0][what] + found[1][what]
    if what.endswith("[]"):  # all hold all: each byte is read by one
      assert size <= read < size + 64, what
    elif what.startswith("split"):
      assert read < 1.1 * size, what
  # Another number of processes: this one, without a mesh.
  found = restore.open_checkpoint(tmp_path)
  assert found.step == 1
  assert "skipped step 2" in found.warnings[0]
  assert found.params["odd"][1] == 0
  assert np.signbit(found.params["odd"][1])


@pytest.mark.multidevice
def test_memory_is_that_of_the_shard(tmp_path):
  found = shard_memory.run(tmp_path, 512, 2)
  assert found["shard_mib"] == pytest.approx(256, rel=0.01)
  assert 1 <= found["save"] < 1.3
  # The buffers of a few reads stay in the arenas of glibc, however large the
  # shard; a process that reads the whole state would need 2 and more.
  assert 1 <= found["restore"] < 1.6
