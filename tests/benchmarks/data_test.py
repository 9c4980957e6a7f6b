"""`mico-jax bench data`: stages, pipeline and peers on a tiny manifest."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from mico_jax.benchmarks import data, data_peers
from mico_jax.cli.main import main
from mico_jax.run.setup import resolve
from mico_jax.testing import tiny_data

CONFIG = """
from mico_jax import config as c
from mico_jax.testing import tiny_data

def get_config():
  source = tiny_data.manifest_source({path!r})
  config = tiny_data.config_of(groups=("ti", "ta"), train=source)
  return c.to_config_dict(config)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  path = tiny_data.write_manifest(folder, 8)
  (folder / "tiny.py").write_text(CONFIG.format(path=str(path)))
  return folder


@pytest.fixture(scope="module")
def session(folder):
  source = tiny_data.manifest_source(folder / "manifest.jsonl")
  return resolve(tiny_data.config_of(groups=("ti", "ta"), train=source))


def test_tables(folder, capsys):
  status = main(
    [
      *("bench", "data", "--config", str(folder / "tiny.py"), "--json"),
      *("--samples", "8", "--turns", "1", "--step-ms", "1", "--hosts", "2"),
      *("--peers", "grain"),
    ]
  )
  assert status == 0
  tables = json.loads(capsys.readouterr().out)
  cells = {(r["stage"], r["modality"]): r for r in tables["stages"]}
  for stage in ("read", "decode", "transform", "batch"):
    for key in ("image", "audio"):
      assert cells[stage, key]["cpu_ms"] >= 0
      assert cells[stage, key]["samples"] == 4  # a batch of the one task
  size = np.mean([(folder / f"{i}.png").stat().st_size for i in range(8)])
  read = 1000 * cells["read", "image"]["kilobytes"]
  assert read == pytest.approx(size, rel=0.1)
  total = sum(
    r["cpu_ms"] * r["samples"] for r in tables["stages"] if r["stage"] != "sum"
  )
  assert cells["sum", ""]["cpu_ms"] == pytest.approx(total / 4)
  assert cells["sum", ""]["broken"] == 0
  fast, slow = tables["pipeline"]
  assert "input_wait" not in fast
  assert 0 <= slow["input_wait"] <= 1
  assert slow["samples"] >= 8 - 2  # half a batch each, without the first
  names = [r["implementation"] for r in tables["pictures"]]
  assert names[:2] == [f"mico_jax {mode}" for mode in data_peers.MODES]
  assert names[2].startswith("Grain")
  assert all(r["cpu_ms"] > 0 for r in tables["pictures"])


def test_a_broken_medium_is_counted(tmp_path):
  path = tiny_data.write_manifest(tmp_path, 4)
  for i in range(4):
    (tmp_path / f"{i}.png").write_bytes(b"no picture")
  source = tiny_data.manifest_source(path)
  session = resolve(tiny_data.config_of(groups=("ti", "ta"), train=source))
  rows = data.measure_stages(session, 4)
  assert rows[-1]["broken"] == 4
  assert ("decode", "audio") in {(r["stage"], r["modality"]) for r in rows}


def test_the_sound_that_is_mixed_in_is_counted(tmp_path):
  path = tiny_data.write_manifest(tmp_path, 8)
  config = tiny_data.config_of(
    groups=("ta",), train=tiny_data.manifest_source(path)
  )
  ((name, task),) = config.tasks.items()

  def cells(**augment):
    tasks = {name: dataclasses.replace(task, augment=augment)}
    session = resolve(dataclasses.replace(config, tasks=tasks))
    rows = data.measure_stages(session, 4)
    return {(r["stage"], r["modality"]): r for r in rows}

  plain, mixed = cells(), cells(mixup={"probability": 1.0})
  assert ("mix", "audio") not in plain
  cell = mixed["mix", "audio"]
  assert cell["samples"] == mixed["decode", "audio"]["samples"]
  assert cell["cpu_ms"] > 0
  read = [c["sum", ""]["kilobytes"] for c in (plain, mixed)]
  assert read[1] == pytest.approx(2 * read[0], rel=0.1)


def test_waiting_falls_with_the_length_of_a_step(session, monkeypatch):
  read = data.Pipeline.__iter__

  def slow(self):
    for made in read(self):
      data.time.sleep(0.01)
      yield made

  monkeypatch.setattr(data.Pipeline, "__iter__", slow)
  short = data.measure_pipeline(session, 16, step_ms=1)["input_wait"]
  long = data.measure_pipeline(session, 16, step_ms=100)["input_wait"]
  assert long < short
  assert short > 0.5


# WebDataset leaves its file to be closed when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("peer", data_peers.PEERS)
def test_peers_read_all_pictures(peer, session, tmp_path):
  if packages := data_peers.missing(peer):
    pytest.skip(f"not installed: {packages}")
  files = data_peers.pictures(session, 5)
  run = data_peers.PEERS[peer][0](files, 16, tmp_path)
  assert run() == run() == 5


def test_a_peer_that_is_not_installed_is_named(session, monkeypatch):
  monkeypatch.setitem(
    data_peers.PEERS, "grain", (data_peers._grain, ("no_such_package",))
  )
  files = data_peers.pictures(session, 2)
  rows = data_peers.compare(files, 16, peers=["grain"], turns=1)
  assert rows[-1]["not_installed"] == "no_such_package"


def test_pillow_augmentation_is_of_the_same_kind():
  rng = np.random.default_rng(0)
  ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))
  seen = set()
  for _ in range(20):
    pixels = data_peers._with_pillow(Image.fromarray(ramp), 32, rng)
    assert pixels.shape == (32, 32, 3)
    steps = np.diff(pixels[0, :, 0].astype(int))
    seen.add(int(np.sign(steps).sum() > 0))
  assert seen == {0, 1}  # some are mirrored


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (("data",), "needs --config"),
    (("data", "--config", "demo", "--aot", "v5e:2x2"), "--aot"),
    (("data", "--config", "demo", "--peers", "torch"), "tf.data"),
    (("step", "--samples", "3"), "--samples"),
    (("attention", "--config", "demo"), "--config"),
  ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
  assert main(["bench", *arguments]) != 0
  error = capsys.readouterr().err
  assert message in error
  assert "Traceback" not in error


def test_hosts_must_share_the_batch(session):
  with pytest.raises(data.ConfigError, match="--hosts 3"):
    data.measure_pipeline(session, 4, hosts=3)
