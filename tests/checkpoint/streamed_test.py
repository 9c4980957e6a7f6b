"""Writing and loading arrays one at a time."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mico_jax import axes
from mico_jax.checkpoint import (
  described,
  manifest,
  restore,
  steps,
  storage,
  streamed,
)
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config, ParallelConfig
from mico_jax.parallel import mesh as mesh_lib
from mico_jax.parallel import sharding

VALUES = {
  "vision/w": np.arange(64, dtype=np.float32).reshape(8, 8),
  "vision/b": np.ones(3, np.float32),
  "temperature": np.array(0.5, np.float32),
}
AXES = {
  "vision": {"w": (axes.EMBED, axes.MLP), "b": (None,)},
  "temperature": (),
}


def save(folder, values):
  """Writes values as leaves; returns the names in the order they were read."""
  seen = []

  def leaf(name, value):
    def read():
      seen.append(name)
      return value

    return streamed.Leaf(value.shape, value.dtype, read, lambda: [name])

  folder.mkdir()
  streamed.write_step(
    folder,
    {name: leaf(name, value) for name, value in values.items()},
    config=Config(),
    extras=described.Extras(logical_axes=AXES),
  )
  return seen


def test_written_folders_are_checkpoints(tmp_path):
  assert sorted(save(tmp_path / "0", VALUES)) == sorted(VALUES)
  found, data = steps.read_head(tmp_path / "0")
  assert data == {"step": 0, "counters": {}}
  entries = found["items"]["params"]
  arrays = storage.read_arrays(tmp_path / "0", "params", entries)
  for name, value in VALUES.items():
    np.testing.assert_array_equal(arrays[name], value)
    assert found["items"]["params"][name]["original"] == [name]
  files = storage.ArrayFiles(tmp_path / "0", "params", entries)
  one = files.read(files.open("vision/b"), ())
  np.testing.assert_array_equal(one, VALUES["vision/b"])


def test_error_while_reading_reaches_the_caller(tmp_path):
  def fail():
    raise CheckpointError("broken tensor")

  (tmp_path / "0").mkdir()
  leaf = streamed.Leaf((2,), np.dtype(np.float32), fail)
  with pytest.raises(CheckpointError, match="broken tensor"):
    streamed.write_params(tmp_path / "0", {"a": leaf})


@pytest.mark.multidevice
def test_streams_onto_a_mesh(tmp_path):
  save(tmp_path / "0", VALUES)
  mesh = mesh_lib.make_mesh(ParallelConfig(mesh={"data": 8}))
  rules = ((axes.EMBED, "data"), (axes.MLP, None))
  places = sharding.param_shardings(mesh, AXES, rules)
  params, config = restore.stream_params(tmp_path / "0", places)
  assert config == Config()
  flat = manifest.flatten(params)
  for name, value in VALUES.items():
    assert flat[name].sharding == manifest.flatten(places)[name]
    np.testing.assert_array_equal(flat[name], value)
  assert flat["vision/w"].addressable_shards[0].data.size < 64
  with pytest.raises(CheckpointError, match="another model"):
    restore.stream_params(
      tmp_path / "0", {"temperature": places["temperature"]}
    )
  alone, _ = restore.stream_params(tmp_path / "0")
  assert isinstance(alone["temperature"], jax.Array)


def test_flipped_byte_is_found(tmp_path):
  # Large enough not to be packed into the compressed index.
  value = np.random.default_rng(0).standard_normal((64, 256), np.float32)
  save(tmp_path / "0", {**VALUES, "vision/w": value})
  needle, changed = value[3].tobytes(), 0
  for path in (tmp_path / "0" / "params").rglob("*"):
    data = path.read_bytes() if path.is_file() else b""
    if needle in data:
      path.write_bytes(data.replace(needle, needle[:-1] + b"\x00"))
      changed += 1
  assert changed
  with pytest.raises(CheckpointError, match="params"):
    restore.stream_params(tmp_path / "0")
