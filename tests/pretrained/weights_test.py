"""Weights that come with the package: every door takes their names."""

from __future__ import annotations

import fnmatch
import json
import os
import pathlib
import re
import shutil
import sys
import types
from concurrent import futures

import jax
import numpy as np
import pytest
from PIL import Image

import mico_jax
from mico_jax import pretrained
from mico_jax.checkpoint import manifest, named, restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.models import build
from mico_jax.run.warm_start import warm_start
from mico_jax.testing import tiny_checkpoint
from mico_jax.world import World, language

NAME = "omniworld-tiny"
# The first numbers of embeddings: of the packaged file, and of the run before
# rounding.
PACKAGED = {
  "image": [-0.036908, -0.072211, 0.043065, 0.018899],
  "text": [0.120576, 0.19009, 0.064398, -0.053851],
}
RUN = {
  "image": [-0.037342, -0.071908, 0.042878, 0.019912],
  "text": [0.120578, 0.189858, 0.064144, -0.053761],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """A cache folder of these tests alone."""
  folder = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder


@pytest.fixture(scope="module")
def model(cache):
  return mico_jax.load(NAME)


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "mico_jax" / named.CACHE


# --------------------------------------------------------------------- values
def test_embeddings_are_those_that_were_packaged(model):
  ramp = np.tile(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (1, 32, 3))
  found = model.embed(image=[ramp], text=["a large red cube"])
  for frozen, limit in ((PACKAGED, 2e-5), (RUN, 2e-3)):
    for key, first in frozen.items():
      np.testing.assert_allclose(found[key][0, :4], first, atol=limit)


def test_a_text_finds_its_scene(model):
  world = World(split="test")
  scenes = [world.scene(i) for i in range(24)]
  frames = [world.render(s, fields=("image",))["image"][0] for s in scenes]
  texts = [language.caption(scene, "vision") for scene in scenes]
  z = model.embed(image=frames, text=texts)
  best = np.argmax(z["text"] @ z["image"].T, axis=1)
  found = np.mean([texts[i] == texts[b] for i, b in enumerate(best)])
  assert found > 0.7  # chance: 0.04


def test_numbers_are_those_of_bfloat16(cache):
  flat = manifest.flatten(restore.open_checkpoint(NAME).params)
  about = pretrained.describe(NAME)
  assert sum(value.size for value in flat.values()) == about.parameters
  for path, value in flat.items():
    assert value.dtype == np.float32
    assert not (value.view(np.uint32) & 0xFFFF).any(), path


# ---------------------------------------------------------------------- doors
def test_inspect(cache, capsys):
  assert main(["inspect", "--checkpoint", NAME, "--no-table", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  about = pretrained.describe(NAME)
  assert found["step"] == about.step
  assert found["counts"]["total"] == about.parameters


def test_a_run_starts_from_it(cache):
  source = restore.open_checkpoint(NAME)
  like = build(source.config.model).abstract_params()
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
  params, report, notes = warm_start(zeros, NAME)
  assert not (*report.new, *report.unused, *report.resized, *notes)
  jax.tree.map(np.testing.assert_array_equal, params, source.params)


def test_an_index_keeps_the_name(cache, model, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    "mico_jax.inference.omni_model.load", lambda *_, **__: model
  )
  for i in range(2):
    Image.new("RGB", (32, 32), (255 * i, 0, 0)).save(f"{i}.png")
  argv = ["index", "--checkpoint", NAME, "--out", "idx", "0.png", "1.png"]
  assert main(argv) == 0
  note = json.loads(pathlib.Path("idx/index.json").read_text())
  assert note["checkpoint"] == NAME
  assert main(["search", "--index", "idx", "--text", "a red cube"]) == 0


def test_an_existing_path_comes_first(cache, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  packaged = restore.step_folders(NAME)[0]
  os.mkdir(NAME)
  with pytest.raises(CheckpointError, match="holds no checkpoint"):
    restore.step_folders(NAME)
  os.rmdir(NAME)
  assert restore.step_folders(NAME)[0] == packaged
  with pytest.raises(CheckpointError, match="no such workdir"):
    restore.step_folders(f"./{NAME}")  # a path, no name


def test_near_names_are_proposed(cache, capsys):
  assert main(["inspect", "--checkpoint", "omniworld-tny"]) == 2
  assert f"Did you mean {NAME!r}?" in capsys.readouterr().err


# ------------------------------------------------------------------- the file
def test_an_altered_file_is_refused(fresh_cache, tmp_path, monkeypatch, capsys):
  source = pathlib.Path(pretrained.__file__).parent
  for suffix in (".zip", ".json"):
    shutil.copy(source / f"{NAME}{suffix}", tmp_path)
  file = tmp_path / f"{NAME}.zip"
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  monkeypatch.setattr(pretrained, "_folder", lambda: tmp_path)
  assert main(["inspect", "--checkpoint", NAME]) == 2
  error = capsys.readouterr().err
  assert "SHA-256" in error
  assert "Install mico_jax again" in error
  file.unlink()
  with pytest.raises(CheckpointError, match="No such file"):
    restore.open_checkpoint(NAME)
  assert not fresh_cache.exists()


def test_it_is_unpacked_once_and_mended(fresh_cache):
  with futures.ThreadPoolExecutor(6) as pool:
    (folder,) = set(pool.map(named.unpacked, [NAME] * 6))
  assert [path.name for path in fresh_cache.iterdir()] == [folder.name]
  before = (folder / "manifest").stat().st_ino
  assert named.unpacked(NAME) == folder
  assert (folder / "manifest").stat().st_ino == before  # not written again
  largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[100] ^= 1
  largest.write_bytes(data)
  (folder / "config" / manifest.CONFIG).unlink()
  restore.open_checkpoint(NAME)
  assert [path.name for path in fresh_cache.iterdir()] == [folder.name]


def test_a_cache_that_takes_no_files(tmp_path, monkeypatch, capsys):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  folder = named.unpacked(NAME)
  assert "cannot be written" in capsys.readouterr().err
  assert named.unpacked(NAME) == folder  # the same in this process
  assert not capsys.readouterr().err
  restore.open_checkpoint(NAME)


def test_the_table_is_complete():
  folder = pathlib.Path(pretrained.__file__).parent
  for suffix in (".zip", ".json"):
    files = {path.stem for path in folder.glob(f"*{suffix}")}
    assert files == set(mico_jax.list_pretrained())
  for name in mico_jax.list_pretrained():
    about = pretrained.describe(name)
    assert about.name == name
    assert about.bytes == len(about.content())
    texts = (about.data, about.licence, about.command, about.evaluation)
    assert all(texts)
    assert re.fullmatch(r"[0-9a-f]{7,40}", about.commit)
    assert about.before.keys() == about.scores.keys()
    assert "retrieval/t->va/R@1" in about.scores
  for one in pretrained.FOREIGN:
    assert one.form in FORMATS
    assert one.licence


# ------------------------------------------------------------------------ hub
@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A stand-in for the library: folders of `tmp_path/hub` by their names."""
  asked = []

  def snapshot_download(name, *, local_dir, **options):
    asked.append({"name": name, **options})
    root = tmp_path / "hub" / name
    if not root.is_dir():
      raise OSError("404 Client Error: not found")
    for file in root.rglob("*"):
      part = file.relative_to(root).as_posix()
      matches = lambda key, part=part: any(
        fnmatch.fnmatch(part, pattern) for pattern in options[key]
      )
      wanted = matches("allow_patterns") and not matches("ignore_patterns")
      if file.is_file() and wanted:
        target = pathlib.Path(local_dir, part)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    return local_dir

  fake = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
  return tmp_path / "hub", asked


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("tiny") / "run"
  tiny_checkpoint.save_tiny(workdir)
  return workdir


def fetched(cache):
  folder = cache.parent / "hub"
  return {
    path.relative_to(folder).as_posix()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_a_checkpoint_of_the_hub(hub, fresh_cache, tiny):
  root, asked = hub
  folder = shutil.copytree(tiny, root / "some" / "run")
  step = folder / "checkpoints" / "1"
  for name in ("opt_state/x", "evil.py", "params/evil.pkl", "weights.bin"):
    (step / name).parent.mkdir(exist_ok=True)
    (step / name).write_text("not asked for")
  found = restore.open_checkpoint("hf://some/run@v1")
  assert asked[0]["name"] == "some/run"
  assert asked[0]["revision"] == "v1"
  jax.tree.map(
    np.testing.assert_array_equal,
    found.params,
    restore.open_checkpoint(tiny).params,
  )
  assert not [x for x in fetched(fresh_cache) if "evil" in x or "opt_" in x]
  assert not [x for x in fetched(fresh_cache) if x.endswith(".bin")]


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
  out = tmp_path_factory.mktemp("exported") / "folder"
  argv = ["export", "--to", "torch", "--checkpoint", str(tiny), "--out"]
  assert main([*argv, str(out), "--compare", "off", "--check", "off"]) == 0
  return out


def test_an_export_of_the_hub(hub, fresh_cache, tiny, exported):
  root, _ = hub
  shutil.copytree(exported, root / "some" / "export")
  found = mico_jax.load("hf://some/export", check="fast")
  want = mico_jax.load(tiny, check="fast")
  jax.tree.map(np.testing.assert_array_equal, found.params, want.params)
  assert found.preparer.describe().keys() == want.preparer.describe().keys()
  for key, mode in want.preparer.describe().items():
    theirs = found.preparer.describe()[key]
    assert {**mode, "train": mode["eval"]} == theirs
  assert found.tokenizer.sha256 == want.tokenizer.sha256
  for name in ("audio", "max_pixels"):
    ours, theirs = (getattr(m.config.data, name) for m in (want, found))
    assert ours == theirs
  assert found.preparer.max_length("text") == want.preparer.max_length("text")
  assert not [x for x in fetched(fresh_cache) if x.endswith(".py")]
  again = restore.step_folders("hf://some/export")[0]
  assert again == restore.step_folders("hf://some/export")[0]
  assert len(list(fresh_cache.iterdir())) == 1  # converted once


def test_what_the_hub_lacks(hub, fresh_cache, monkeypatch, capsys):
  root, _ = hub
  (root / "some" / "other").mkdir(parents=True)
  (root / "some" / "other" / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(CheckpointError, match="mico-jax import"):
    mico_jax.load("hf://some/other")
  for address, words in (
    ("hf://no/body", "cannot be fetched .404"),
    ("hf://a", "is not hf://owner/name"),
    ("hf://../x", "is not hf://owner/name|cannot be fetched"),
  ):
    with pytest.raises(ConfigError, match=words):
      restore.open_checkpoint(address)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  assert main(["inspect", "--checkpoint", "hf://some/other"]) == 2
  assert "huggingface_hub" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("file", "change", "words"),
  [
    ("config.json", {"format": "other"}, "no format"),
    ("config.json", {"model": {"x": 1}}, "does not fit this version"),
    ("preprocessing.json", {"inputs": {}}, "says nothing of image, video"),
    ("preprocessing.json", {"audio": {"x": 1}}, "does not fit this version"),
  ],
)
def test_an_export_that_was_altered(exported, tmp_path, file, change, words):
  out = tmp_path / "export"
  shutil.copytree(exported, out)
  settings = json.loads((out / file).read_text())
  (out / file).write_text(json.dumps({**settings, **change}))
  with pytest.raises(CheckpointError, match=words):
    FORMATS["torch"].read(out)


def test_a_unit_that_was_altered(exported, tmp_path):
  out = tmp_path / "export"
  shutil.copytree(exported, out)
  about = json.loads((out / "preprocessing.json").read_text())
  key = next(key for key, one in about["inputs"].items() if "unit" in one)
  about["inputs"][key]["unit"] = "furlong"
  (out / "preprocessing.json").write_text(json.dumps(about))
  with pytest.raises(CheckpointError, match="furlong"):
    FORMATS["torch"].read(out)
