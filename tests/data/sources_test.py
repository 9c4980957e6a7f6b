"""Every format reads back what was written; broken indexes say so."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data import build
from mico_jax.data.gallery import evaluation_batches
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.samples import load_inputs
from mico_jax.data.sheet import draw_sheet
from mico_jax.data.sources import ManifestSource, open_source
from mico_jax.data.storage import Storage
from mico_jax.data.storage.stores import FsspecStore
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.failures import TransientError
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  wav,
  write_manifest,
)


def _open(**source):
  config = config_of(**source)
  return config, open_source(config, next(iter(source)))


def _load(config, source, index, *keys):
  record = source.record(index)
  return record, load_inputs(config, record, "a", keys, None)


def _error(error):
  text = str(error.value)
  assert "\n" not in text
  return text


def test_manifest(tmp_path):
  path = write_manifest(tmp_path)
  config, source = _open(a=manifest_source(path))
  record, inputs = _load(config, source, 3, "image", "audio")
  assert (record.id, record.captions) == (
    "s3",
    {"omni": ("a small cube 3",)},
  )
  assert (inputs["image"] == 60).all()
  assert inputs["audio"].shape == (1, 32, 32)
  for options, count in (
    ({"where": {"label": 1}}, 4),
    ({"where": {"label": (0, 1), "id": ["s1", "s2"]}}, 2),
    ({"size": 3}, 3),
  ):
    assert len(_open(a=manifest_source(path, **options))[1]) == count
  with pytest.raises(ConfigError, match="no sample") as error:
    _open(a=manifest_source(path, split="test"))
  _error(error)


def test_arrays_frames_and_fields(tmp_path):
  np.savez(tmp_path / "x.npz", pics=np.arange(5, dtype=np.uint8)[:, None, None]
           + np.zeros((5, 28, 28), np.uint8))  # fmt: skip
  for i in range(3):
    (tmp_path / f"f{i}.png").write_bytes(png(50 * i))
  line = {
    "picture": "x.npz:pics[4]",
    "video": ["f0.png", "f1.png", "f2.png"],
    "captions": {"vision": ["one", "two"], "audio": "three"},
  }
  (tmp_path / "m.jsonl").write_text(json.dumps(line))
  config, source = _open(
    a=manifest_source(tmp_path / "m.jsonl", fields={"image": "picture"})
  )
  record, inputs = _load(config, source, 0, "image", "video")
  assert (inputs["image"] == 4).all()
  assert inputs["video"][:, 0, 0, 0].tolist() == [0, 100]
  assert record.captions == {"vision": ("one", "two"), "audio": ("three",)}


@pytest.mark.parametrize(
  ("image", "match"),
  [
    ("nope.png", "No such file|does not exist"),
    ("sound.tar:nope.png", "has no member"),
    ("x.npz:pics[0]", "No such file|does not exist"),
    ("", "expected a path"),
    (7, "expected a path"),
    ([], "empty"),
  ],
)
def test_broken_references(tmp_path, image, match):
  path = write_manifest(tmp_path, 2, image=[image, "1.png"])
  config, source = _open(a=manifest_source(path))
  with pytest.raises(DecodeError, match=match) as error:
    _load(config, source, 0, "image")
  _error(error)


OUTSIDE = ("../x.png", "/etc/x.png", "a/../../x.png", "../t.tar:x.png",
           "../x.npz:a[0]")  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_stay_in_the_folder(tmp_path, path):
  (tmp_path / "x.png").write_bytes(png(1))
  manifest = write_manifest(tmp_path / "m", 2, image=[path, "1.png"])
  config, source = _open(a=manifest_source(manifest))
  with pytest.raises(DecodeError, match=r"leaves the folder.*\.root") as error:
    _load(config, source, 0, "image")
  _error(error)
  if path == "../x.png":
    config, source = _open(a=manifest_source(manifest, root=".."))
    _load(config, source, 0, "image")


def test_texts_that_cannot_be_used(tmp_path):
  path = write_manifest(tmp_path, 6)
  lines = path.read_bytes().splitlines()
  lines[1] = lines[1].replace(b"small", b"caf\xe9")
  lines[2] = lines[2].replace(b"a small cube 2", b"")
  path.write_bytes(b"\n".join(lines))
  config = config_of(
    a=manifest_source(path), data={"max_bad_fraction": 0.5}, batch=6
  )
  tokenizer = make_tokenizer(config.data.tokenizer)
  list(Pipeline(config, tokenizer, workdir=tmp_path, end_step=1))
  bad = (tmp_path / "bad_samples.jsonl").read_text()
  assert "not UTF-8" in bad
  assert "text is empty" in bad
  assert len(bad.splitlines()) == 2


@pytest.mark.parametrize("text", ["{", "[1]", "nonsense"])
def test_manifest_that_is_none(tmp_path, text):
  (tmp_path / "m.jsonl").write_text(text)
  with pytest.raises(ConfigError, match="line 1") as error:
    _open(a=manifest_source(tmp_path / "m.jsonl"))
  _error(error)


def test_missing_manifest_and_unknown_names(tmp_path):
  with pytest.raises(ConfigError, match=r"nowhere\.jsonl"):
    _open(a=manifest_source(tmp_path / "nowhere.jsonl"))
  with pytest.raises(ConfigError, match="known: omniworld, manifest"):
    _open(a=SourceConfig(kind="zip"))
  with pytest.raises(ConfigError, match="known: a"):
    open_source(config_of(a=SourceConfig()), "b")
  with pytest.raises(ConfigError, match="split"):
    _open(a=SourceConfig(split="nope"))
  with pytest.raises(ConfigError, match=r"'speed' is not a fact.*motion"):
    _open(a=SourceConfig(negative_facts=("motion", "speed")))
  (tmp_path / "m.jsonl").write_text("{}")
  with pytest.raises(ConfigError, match=r"negative_facts.*only .*omniworld"):
    _open(
      a=dataclasses.replace(
        manifest_source(tmp_path / "m.jsonl"), negative_facts=("motion",)
      )
    )


def test_webdataset(tmp_path):
  for shard in range(2):
    with tarfile.open(tmp_path / f"x-{shard}.tar", "w") as tar:
      for i in range(3):
        members = {
          "rgb.png": png(10 * i),
          "wav": wav(),
          "txt": f"thing {i}".encode(),
          "json": json.dumps({"fold": shard}).encode(),
        }
        for suffix, data in members.items():
          info = tarfile.TarInfo(f"d/{shard}{i}.{suffix}")
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  spec = SourceConfig(kind="webdataset", path=str(tmp_path / "x-*.tar"))
  config, source = _open(a=spec)
  assert len(source) == 6
  record, inputs = _load(config, source, 4, "image", "audio")
  assert record.id == "d/11"
  assert record.captions["omni"] == ("thing 1",)
  assert set(inputs) == {"image", "audio"}
  assert len(_open(a=dataclasses.replace(spec, where={"fold": 1}))[1]) == 3
  tar = tmp_path / "x-1.tar"
  tar.write_bytes(tar.read_bytes()[:1500])
  with pytest.raises(ConfigError, match="cut short"):
    _open(a=spec)
  with pytest.raises(ConfigError, match="no file matches"):
    _open(a=SourceConfig(kind="webdataset", path=str(tmp_path / "y*.tar")))


def test_build_array_record(tmp_path):
  path = write_manifest(tmp_path, 7)
  (tmp_path / "5.png").unlink()
  report = build.build(manifest_source(path), tmp_path / "out", shards=2)
  assert report.count == 6
  assert [i for i, _ in report.skipped] == ["s5"]
  config = config_of(a=manifest_source(path), b=report.source)
  batches = {}
  for name, indices in (("a", [0, 1, 2, 3, 4, 6]), ("b", range(6))):
    ((batches[name], records),) = evaluation_batches(
      config, name, batch_size=6, keys=("image", "audio"), indices=indices
    )
    assert [r and r.id for r in records] == ["s0", "s1", "s2", "s3", "s4", "s6"]
  for key in ("image", "audio"):
    np.testing.assert_array_equal(
      batches["a"]["inputs"][key], batches["b"]["inputs"][key]
    )
  times = [os.stat(file).st_mtime_ns for file in report.files]
  again = build.build(manifest_source(path), tmp_path / "out", shards=2)
  assert again == report
  assert [os.stat(file).st_mtime_ns for file in report.files] == times
  with pytest.raises(ConfigError, match="exists for another build: shards"):
    build.build(manifest_source(path), tmp_path / "out", shards=3)
  with pytest.raises(ConfigError, match="s5"):
    build.build(manifest_source(path), tmp_path / "strict", strict=True)
  assert not list((tmp_path / "strict").iterdir())


TFDS = """
import importlib.machinery, io, os, sys
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("tensorflow", "torch"):
      return importlib.machinery.ModuleSpec(name, self)
  def create_module(self, spec):
    raise ImportError(f"blocked {spec.name}")
  def exec_module(self, module):
    pass
sys.meta_path.insert(0, Blocked())
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import dataset_info
from mico_jax.testing.tiny_data import config_of, png
from mico_jax.config import SourceConfig
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.storage import Storage
from mico_jax.data.storage.stores import FsspecStore
from mico_jax.data.tokenizer import make_tokenizer
folder = os.path.join(sys.argv[1], "tiny", "1.0.0")
os.makedirs(folder)
f = tfds.features
info = tfds.core.DatasetInfo(
  builder=dataset_info.DatasetIdentity(
    name="tiny", version=tfds.core.Version("1.0.0"), data_dir=folder,
    module_name="tiny"),
  features=f.FeaturesDict({
    "image": f.Image(shape=(32, 32, 3)), "caption": f.Text(),
    "label": f.Scalar(dtype=np.int64),
    "sound": f.Tensor(shape=(None,), dtype=np.int16)}))
writer = tfds.core.SequentialWriter(
  info, max_examples_per_shard=4, file_format="array_record")
writer.initialize_splits(["train"])
writer.add_examples({"train": [
  {"image": io.BytesIO(png(20 * i)), "caption": f"thing {i}", "label": i % 2,
   "sound": np.full(2000, i, np.int16)} for i in range(6)]})
writer.close_all()
source = SourceConfig(kind="tfds", path=folder, fields={"audio": "sound"})
config = config_of(a=source, batch=6)
for step, task, batch in Pipeline(
    config, make_tokenizer(config.data.tokenizer), end_step=2):
  values = sorted(batch["inputs"]["image"][:, 0, 0, 0, 0].tolist())
  assert values == [0, 20, 40, 60, 80, 100], values
  assert batch["present"]["audio"].all()
import dataclasses
from mico_jax.data.sources import open_source
odd = config_of(a=dataclasses.replace(source, where={"label": 1}))
assert len(open_source(odd, "a")) == 3
assert open_source(odd, "a").record(1).captions["omni"] == ("thing 3",)
assert "tensorflow" not in sys.modules
print("fine")
"""


def test_tfds_without_tensorflow(tmp_path, repository):
  import os

  done = subprocess.run(
    [sys.executable, "-c", TFDS, str(tmp_path)],
    env={**os.environ, "PYTHONPATH": str(repository)},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.stdout.strip() == "fine", done.stderr
  with pytest.raises(ConfigError, match="no TFDS folder") as error:
    _open(a=SourceConfig(kind="tfds", path=str(tmp_path)))
  _error(error)


@pytest.fixture
def memory(tmp_path, monkeypatch):
  import fsspec

  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  files = fsspec.filesystem("memory")
  folder = tmp_path / "local"
  write_manifest(folder, 4)
  for file in folder.iterdir():
    files.pipe(f"/set/{file.name}", file.read_bytes())
  yield files
  files.rm("/set", recursive=True)


def test_remote(memory, tmp_path):
  config, source = _open(a=manifest_source("memory://set/manifest.jsonl"))
  ((batch, _),) = evaluation_batches(
    config, "a", batch_size=4, keys=("image", "audio"), source=source
  )
  assert (batch["weight"] == 1).all()
  blocks = tmp_path / "cache" / "mico_jax" / "blocks"
  assert len(list(blocks.rglob("*.data"))) == 1  # single files are not kept
  assert isinstance(source, ManifestSource)
  with pytest.raises(DecodeError, match="leaves the folder"):
    source._files.read("../other/x.png")
  with pytest.raises(DecodeError, match="set/nope"):
    source._files.read("nope.png")


def test_retry_and_timeout(memory, monkeypatch):
  tries = []

  def flaky(store, path):
    tries.append(path)
    if len(tries) < 3:
      raise OSError("reset")
    return b"data"

  monkeypatch.setattr(FsspecStore, "read", flaky)
  monkeypatch.setattr("time.sleep", lambda s: None)
  assert Storage().read("memory://x") == b"data"
  tries.clear()
  with pytest.raises(TransientError, match="still failing"):
    Storage(patience=0.01).read("memory://x")
  import threading

  monkeypatch.setattr(
    FsspecStore, "read", lambda store, path: threading.Event().wait(2)
  )
  with pytest.raises(TransientError, match="no answer within"):
    Storage(patience=0.0, timeout=0.05).read("memory://x")


def test_sheet(tmp_path):
  from PIL import Image

  path = write_manifest(tmp_path, 3)
  (tmp_path / "1.png").write_bytes(b"broken")
  config = config_of(a=manifest_source(path), w=SourceConfig())
  for name in ("a", "w"):
    out = draw_sheet(config, tmp_path / f"{name}.png", 3, source_name=name)
    with Image.open(out) as image:
      assert image.width > 400
      assert len(np.unique(np.asarray(image.convert("L")))) > 20


@pytest.mark.parametrize(
  ("name", "options", "keys"),
  [
    ("omni_digits", {"root": ".."}, ("image", "audio")),
    ("grid_av", {}, ("video", "audio")),
    ("esc10", {}, ("audio",)),
    (
      "rgbd_normal",
      {"fields": {"image": "rgb"}, "depth_unit": "millimetre"},
      ("image", "depth", "normal"),
    ),
  ],
)
def test_real_sets(data_dir, name, options, keys):
  path = data_dir / name / "manifest.jsonl"
  config = config_of(a=manifest_source(path, **options))
  ((batch, records),) = evaluation_batches(
    config, "a", size=3, batch_size=3, keys=keys
  )
  assert all(records)
  assert all(batch["present"][key].all() for key in keys)
  if keys == ("image", "depth", "normal"):
    assert 0.5 < batch["inputs"]["depth"].max() < 10
