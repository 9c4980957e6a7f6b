"""PyTorch files written without torch, read by torch."""

from __future__ import annotations

import hashlib
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mico_jax.interop.files import dtypes, torch_writer
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import Item, item

VALUES = {
  "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b.half": np.array([0.5, -2], np.float16),
  "b.brain": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(1, 2, 3),
  "scalar": np.array(0.25),
  "empty": np.zeros((0, 3), np.float32),
  "ids": np.array([2**40, -1]),
  "flags": np.array([True, False]),
  "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}


def write(path: pathlib.Path) -> torch_writer.Written:
  values = {**VALUES, "copy": VALUES["a.weight"]}
  items = [item(name, value) for name, value in values.items()]
  return torch_writer.write(path, items, ties={"copy": "a.weight"})


def test_the_file_is_the_same_each_time_and_described(tmp_path):
  written = write(tmp_path / "w.pt")
  data = (tmp_path / "w.pt").read_bytes()
  assert written.files[0]["sha256"] == hashlib.sha256(data).hexdigest()
  assert written.files[0]["bytes"] == len(data)
  assert [one["name"] for one in written.tensors] == [*VALUES, "copy"]
  write(tmp_path / "again.pt")
  assert (tmp_path / "again.pt").read_bytes() == data
  with zipfile.ZipFile(tmp_path / "w.pt") as archive:
    assert archive.testzip() is None
    names = [i.filename for i in archive.infolist()]
    assert sum("/data/" in name for name in names) == len(VALUES)
  # Storages begin where torch aligns them.
  place = data.index(VALUES["a.weight"].tobytes())
  assert place % torch_writer.ALIGNMENT == 0


@pytest.mark.parity
@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_it(tmp_path, mapped):
  torch = pytest.importorskip("torch")
  path = tmp_path / "w.pt"
  written = write(path)
  found = torch.load(str(path), weights_only=True, mmap=mapped)
  assert list(found) == [*VALUES, "copy"]
  for name, value in VALUES.items():
    assert tuple(found[name].shape) == value.shape
    assert str(found[name].dtype) == f"torch.{value.dtype.name}"
  assert found["a.weight"].data_ptr() == found["copy"].data_ptr()
  assert found["turned"].is_contiguous()
  for name, tensor in open_tensors(path).items():
    value = VALUES["a.weight" if name == "copy" else name]
    assert tensor.load().tobytes() == value.tobytes(), name
  hashes = {one["name"]: one["sha256"] for one in written.tensors}
  assert hashes["copy"] == hashes["a.weight"]


def test_what_it_cannot_hold_is_named(tmp_path):
  complex_ = Item("z", (1,), np.dtype(np.complex64), lambda: np.zeros(1))
  with pytest.raises(ValueError, match="z: PyTorch files have no complex64"):
    torch_writer.write(tmp_path / "w.pt", [complex_])
  one = item("a", np.zeros(1, np.float32))
  with pytest.raises(ValueError, match="two tensors"):
    torch_writer.write(tmp_path / "w.pt", [one, one])
  assert set(dtypes.STORAGES) == set(dtypes.DTYPES.values())
