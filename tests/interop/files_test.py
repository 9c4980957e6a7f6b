"""Files of weights that are broken or hostile."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mico_jax.interop.files import (
  safetensors_writer,
  torch_writer,
  torchscript_file,
)
from mico_jax.interop.files.opening import open_tensors
from mico_jax.interop.files.tensors import (
  WeightsError,
  count_layers,
  from_arrays,
  item,
  renamed,
)


# ---------------------------------------------------------------- safetensors
def raw(path, header, data=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  size = len(text) if length is None else length
  path.write_bytes(size.to_bytes(8, "little") + text + data)
  return path


def entry(shape, offsets, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
  ("header", "data", "length", "match"),
  [
    ({}, b"", 2**62, "declares a header of 4611686018427387904 bytes"),
    ({}, b"", 100, "declares a header of 100 bytes in a file of 10"),
    (b"{broken", b"", None, "header is not valid"),
    (b"[]", b"", None, "header is no object"),
    (b"[" * 100_000, b"", None, "header is not valid"),
    ({"a": entry([2**40, 2**40], [0, 8])}, b"12345678", None, "bytes, but the"),
    ({"a": entry([2], [0, 2**60])}, b"12345678", None, "ends at byte"),
    ({"a": entry([-2], [0, 8])}, b"12345678", None, "none negative"),
    ({"a": entry([2], [8, 0])}, b"12345678", None, "gives it -8"),
    ({"a": entry([2.0], [0, 8])}, b"12345678", None, "whole numbers"),
    ({"a": entry([2], [0, 8], "Q4")}, b"12345678", None, "has dtype 'Q4'"),
    ({"a": {"dtype": "F32"}}, b"", None, "lacks dtype, shape"),
    ({"a": 3}, b"", None, "lacks dtype, shape"),
    (
      {"a": entry([1], [0, 4]), "b": entry([1], [0, 4])},
      b"1234",
      None,
      "without gap or overlap",
    ),
    ({"a": entry([1], [4, 8])}, b"12345678", None, "without gap or overlap"),
    ({"a": entry([1], [0, 4])}, b"12345678", None, "behind the last tensor"),
    (b'{"a": 1, "a": 2}', b"", None, "'a' stands twice"),
  ],
)
def test_hostile_headers(tmp_path, header, data, length, match):
  path = raw(tmp_path / "x.safetensors", header, data, length)
  with pytest.raises(WeightsError, match=match):
    open_tensors(path)


def test_bfloat16_by_bits(tmp_path):
  value = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)
  path = tmp_path / "x.safetensors"
  safetensors_writer.write_arrays(
    path, from_arrays({"a": value, "b": value[:0]})
  )
  found = open_tensors(path)
  assert found["a"].dtype == ml_dtypes.bfloat16
  assert found["a"].load().tobytes() == value.tobytes()
  assert found["b"].load().shape == (0, 3)
  np.testing.assert_array_equal(np.asarray(found["a"], np.float32)[1, 2], 5.0)


def test_two_names_of_one_tensor():
  tensors = from_arrays({"a": np.ones(1), "b": np.ones(1)})
  with pytest.raises(WeightsError, match="mean the same"):
    renamed(tensors, lambda name: "c")


def test_layers_that_no_tensor_fills():
  names = ["blocks.0.a", "blocks.0.b", "blocks.1.a", "norm"]
  assert count_layers(names, r"blocks\.(\d+)\.") == 2
  assert count_layers(names, r"layers\.(\d+)\.") == 0
  with pytest.raises(ValueError, match="layer 999999999 of a file of 5"):
    count_layers([*names, "blocks.999999999.a"], r"blocks\.(\d+)\.")


# ----------------------------------------------------------------------- shards
@pytest.mark.parametrize(
  ("places", "match"),
  [
    ({"a": "one.safetensors"}, r"'one.safetensors' holds 'b' \(1 such\)"),
    ({"a": "m.safetensors.index.json"}, "another index"),
  ],
)
def test_indexes_that_do_not_fit(tmp_path, places, match):
  tensors = from_arrays({"a": np.ones(1), "b": np.ones(1)})
  safetensors_writer.write_arrays(tmp_path / "one.safetensors", tensors)
  index = tmp_path / "m.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": places}))
  with pytest.raises(WeightsError, match=match):
    open_tensors(index)


def test_json_nested_too_deeply(tmp_path):
  index = tmp_path / "m.safetensors.index.json"
  index.write_text("[" * 100_000)
  with pytest.raises(WeightsError, match="not an index"):
    open_tensors(index)


# ------------------------------------------------------------------ torch files
@pytest.fixture
def torch():
  return pytest.importorskip("torch")


@pytest.fixture
def saved(torch, tmp_path):
  """A file of several dtypes, its path and its tensors."""
  values = {
    "half": torch.arange(4, dtype=torch.float16),
    "brain": torch.arange(4, dtype=torch.bfloat16).reshape(2, 2),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(0.25),
    "ids": torch.arange(3),
    "large": torch.arange(40_000.0),
  }
  path = tmp_path / "weights.pt"
  torch.save(values, path)
  return path, values


@pytest.mark.parity
def test_torch_files(torch, saved):
  path, values = saved
  found = open_tensors(path)
  assert found.keys() == values.keys()
  for name, value in values.items():
    for _ in range(2):  # The pages were given back; they are read again.
      array = found[name].load()
      same = torch.from_numpy(array.astype(np.float32))
      assert torch.equal(same, value.float()), name
    assert found[name].shape == tuple(value.shape)
    assert array.dtype == found[name].dtype
    assert array.dtype.name == str(value.dtype).removeprefix("torch.")


@pytest.mark.parity
def test_nested_and_old_torch_files(torch, tmp_path):
  weights = {"a": torch.ones(2)}
  path = tmp_path / "nested.pth"
  torch.save({"epoch": 3, "model": {"state_dict": weights}}, path)
  assert open_tensors(path).keys() == {"a"}
  torch.save(weights, path, _use_new_zipfile_serialization=False)
  assert open_tensors(path)["a"].load().tolist() == [1.0, 1.0]


@pytest.mark.parity
def test_weights_that_are_left_aside_are_named(torch, tmp_path):
  weights = {"a": torch.ones(2)}
  path = tmp_path / "run.pth"
  others = {
    "model_ema": weights,
    "state_dict_ema": {"module": weights},
    "optimizer": {"state": {0: {"step": torch.ones(())}}, "groups": [{}]},
  }
  torch.save({"model": weights, "epoch": 3, **others}, path)
  with pytest.warns(UserWarning, match="model_ema, state_dict_ema are not"):
    found = open_tensors(path)
  assert found.keys() == {"a"}


@pytest.mark.parity
@pytest.mark.parametrize("version", ["2.5.1", "2.4.0+cpu", "1.13.1"])
def test_a_torch_that_may_run_code_is_refused(
  torch, saved, monkeypatch, version
):
  monkeypatch.setattr(torch, "__version__", version)
  with pytest.raises(WeightsError, match=r"CVE-2025-32434.*2\.6 or newer"):
    open_tensors(saved[0])
  monkeypatch.setattr(torch, "__version__", "2.10.0a0+git1")
  open_tensors(saved[0])


class Bomb:
  """Runs a command when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parity
def test_code_is_not_run(torch, tmp_path):
  target, path = tmp_path / "ran", tmp_path / "evil.pt"
  torch.save({"a": torch.ones(1), "b": Bomb(target)}, path)
  with pytest.raises(WeightsError, match=r"more than tensors.*mkdir"):
    open_tensors(path)
  path.write_bytes(pickle.dumps({"a": Bomb(target)}))
  with pytest.raises(WeightsError):
    open_tensors(path)
  assert not target.exists()


@pytest.mark.parity
def test_broken_torch_files(torch, saved, tmp_path):
  path, _ = saved
  data = path.read_bytes()
  for size, match in (
    (0, "empty"),
    (len(data) // 2, "cut short"),
    (len(data) - 20, "cut short"),
  ):
    path.write_bytes(data[:size])
    with pytest.raises(WeightsError, match=match):
      open_tensors(path)
  path.write_bytes(b"hello there, this is no file of weights")
  with pytest.raises(WeightsError, match=r"weights\.pt"):
    open_tensors(path)
  for value, match in (
    ([torch.ones(1)], "expected a state dict"),
    ({"a": 3}, "'a' is int, expected a tensor"),
    ({}, "expected a state dict"),
  ):
    torch.save(value, path)
    with pytest.raises(WeightsError, match=match):
      open_tensors(path)


@pytest.mark.parity
@pytest.mark.parametrize(
  ("member", "match"),
  [
    ("../../evil.txt", r"'../../evil.txt' leaves the archive"),
    ("/etc/evil", "'/etc/evil' leaves the archive"),
    ("x/code/__torch__.py", "holds no data.pkl|without a module"),
  ],
)
def test_members_of_archives(torch, saved, member, match):
  path, _ = saved
  with zipfile.ZipFile(path, "a") as archive:
    archive.writestr(member, b"x")
  with pytest.raises(WeightsError, match=match):
    open_tensors(path)


@pytest.mark.parity
def test_declared_sizes_of_archives(torch, tmp_path):
  path = tmp_path / "bomb.pt"
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("x/data/0", bytes(10_000_000))
  path.write_bytes(buffer.getvalue())
  with pytest.raises(WeightsError, match="declares 10000000 bytes"):
    open_tensors(path)


def script(path, torch):
  """A scripted module with nested, shared and turned tensors."""

  class Block(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.proj = torch.nn.Linear(3, 2).half()
      self.register_buffer("table", torch.arange(6.0).reshape(2, 3).T)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
      return self.proj(x) + self.table.sum()

  class Tower(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.blocks = torch.nn.ModuleList([Block(), Block()])
      self.scale = torch.nn.Parameter(torch.tensor(0.5))
      self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
      for block in self.blocks:
        x = block(x)
      return x * self.scale

  module = torch.jit.script(Tower())
  torch.jit.save(module, str(path))
  return module.state_dict()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_read_without_running_it(torch, tmp_path, monkeypatch):
  path = tmp_path / "clip.pt"
  state = script(path, torch)
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  found = open_tensors(path)
  assert found.keys() == state.keys()
  for name, value in state.items():
    assert found[name].load().tobytes() == value.contiguous().numpy().tobytes()
    assert found[name].shape == tuple(value.shape)
  # The same archive with another pickle in it.
  with zipfile.ZipFile(path) as archive:
    members = {i.filename: archive.read(i) for i in archive.infolist()}
  target = tmp_path / "ran"
  for evil, match in (
    (pickle.dumps({"a": Bomb(target)}), r"names (posix|nt|os)\.mkdir"),
    (pickle.dumps(os.path.join), "could be code"),
    (b"\x80\x02K", "broken, cut short"),
    (pickle.dumps({}), "without a module"),
  ):
    with zipfile.ZipFile(path, "w") as archive:
      for name, data in members.items():
        archive.writestr(name, evil if name.endswith("/data.pkl") else data)
    with pytest.raises(WeightsError, match=match):
      open_tensors(path)
  assert not target.exists()


def module(attributes):
  """The pickle of a TorchScript object with attributes (name, pickle)."""
  pairs = b"".join(torch_writer._text(k) + v for k, v in attributes)
  return b"c__torch__.m\nModule\n)\x81}(" + pairs + b"ub"


def archive(path, pickled, **members):
  """A TorchScript archive around a pickle."""
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("m/data.pkl", b"\x80\x02" + pickled + b".")
    file.writestr("m/code/__torch__.py", b"")
    for name, data in members.items():
      file.writestr(f"m/data/{name}", data)
  return path


VALUE = np.array([0.5, 2.0], np.float32)
TENSOR = torch_writer._tensor(item("w", VALUE), "s")


def test_a_module_under_two_names_is_listed_twice(tmp_path):
  shared = module([("w", TENSOR)]) + b"q\x00"
  itself = [("a", shared), ("b", b"h\x00")]
  path = archive(tmp_path / "m.pt", module(itself), s=VALUE.tobytes())
  found = open_tensors(path)
  assert list(found) == ["a.w", "b.w"]
  for one in found.values():
    np.testing.assert_array_equal(one.load(), VALUE)
  # An object that holds itself.
  loop = b"c__torch__.m\nModule\n)\x81q\x00}("
  loop += torch_writer._text("me") + b"h\x00"
  loop += torch_writer._text("w") + TENSOR + b"ub"
  assert list(open_tensors(archive(path, loop))) == ["w"]


def test_modules_nested_without_end_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(torchscript_file, "MAX_OBJECTS", 1000)
  # Each holds the one before under two names: 2 ** 60 places.
  inner = module([("w", TENSOR)])
  for i in range(60):
    memo = bytes([i])
    inner = module([("a", inner + b"q" + memo), ("b", b"h" + memo)])
  with pytest.raises(WeightsError, match="nested beyond"):
    open_tensors(archive(tmp_path / "m.pt", inner))
  for _ in range(5000):
    inner = module([("a", inner)])
  with pytest.raises(WeightsError, match="nested beyond"):
    open_tensors(archive(tmp_path / "m.pt", inner))


def test_members_of_torchscript_that_are_not_there(tmp_path):
  path = archive(tmp_path / "m.pt", module([("w", TENSOR)]))
  with pytest.raises(WeightsError, match="'m/data/s' is missing or damaged"):
    open_tensors(path)["w"].load()
  path = archive(path, module([("w", TENSOR)]), s=VALUE.tobytes())
  data = path.read_bytes()
  path.write_bytes(data.replace(VALUE.tobytes(), bytes(VALUE.nbytes)))
  with pytest.raises(WeightsError, match=r"missing or damaged \(Bad CRC"):
    open_tensors(path)["w"].load()


def test_a_pickle_cannot_change_what_reads_others(tmp_path):
  """The state it would give to a dtype: big-endian instead of little."""
  changed = TENSOR.replace(
    b"ctorch\nFloatStorage\n",
    b"ctorch\nFloatStorage\n(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xff"
    b"J\xff\xff\xff\xffK\x00tb",
  )
  assert changed != TENSOR
  path = archive(tmp_path / "m.pt", module([("w", changed)]), s=VALUE.tobytes())
  with pytest.raises(WeightsError, match="broken"):
    open_tensors(path)
  path = archive(path, module([("w", TENSOR)]), s=VALUE.tobytes())
  np.testing.assert_array_equal(open_tensors(path)["w"].load(), VALUE)


def test_torch_is_named_when_it_is_absent(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  (tmp_path / "a.pt").write_bytes(b"\x80\x02")
  with pytest.raises(WeightsError, match=r"\[torch\]"):
    open_tensors(tmp_path / "a.pt")
  with pytest.raises(WeightsError, match="no such file"):
    open_tensors(tmp_path / "b.pt")
