"""Sets in a store that is slow, full of faults, and larger than the cache."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
import time

import numpy as np
import pytest

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.sources import open_source, pin_sources
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.modalities import DecodeError
from mico_jax.testing import slow_store
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  wav,
  write_manifest,
  write_tar,
)

KB = 1 << 10
SHARDS, EACH = 6, 8
SIZE = 24 * KB  # of the padding of a sample


def _padding(number: int) -> bytes:
  return np.random.default_rng(number).bytes(SIZE)


def _array_record(folder: pathlib.Path) -> None:
  from array_record.python import array_record_module

  from mico_jax.data.packed import pack

  for shard in range(SHARDS):
    path = folder / f"x-{shard}.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in range(shard * EACH, (shard + 1) * EACH):
      media = {"image": png(3 * i), "pad": _padding(i)}
      writer.write(pack(f"s{i}", {"caption": "a small cube"}, media))
    writer.close()


def _webdataset(folder: pathlib.Path) -> None:
  for shard in range(SHARDS):
    members = []
    for i in range(shard * EACH, (shard + 1) * EACH):
      members.append((f"s{i}.png", png(3 * i)))
      members.append((f"s{i}.txt", b"a small cube"))
      members.append((f"s{i}.bin", _padding(i)))
    write_tar(folder / f"x-{shard}.tar", members)


KINDS = {"array_record": _array_record, "webdataset": _webdataset}


@pytest.fixture
def store(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return slow_store.register()


def _upload(folder: pathlib.Path) -> int:
  size = 0
  for file in folder.iterdir():
    slow_store.put(f"slow://set/{file.name}", file.read_bytes())
    size += file.stat().st_size
  return size


@pytest.fixture(params=KINDS)
def sets(request, tmp_path, store):
  """Configs of the same set, local and remote, with a cache far too small."""
  folder = tmp_path / "set"
  folder.mkdir()
  KINDS[request.param](folder)
  total = _upload(folder)
  ending = "array_record" if request.param == "array_record" else "tar"
  data = {"cache_gb": 400 * KB / 2**30, "max_bad_fraction": 0.0, "timeout": 5.0}
  configs = [
    config_of(
      a=SourceConfig(kind=request.param, path=f"{root}/x-*.{ending}"),
      groups=("ti",),
      batch=8,
      data=data,
    )
    for root in (folder, "slow://set")
  ]
  assert total > 800 * KB
  return (*configs, total)


def _images(config, work="", end=12, **options):
  tokenizer = make_tokenizer(config.data.tokenizer)
  pipeline = Pipeline(config, tokenizer, workdir=work, end_step=end, **options)
  return [b["inputs"]["image"][:, 0, 0, 0, 0].tolist() for *_, b in pipeline]


def _on_disk(folder: pathlib.Path) -> int:
  return sum(
    file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()
  )


def test_a_set_larger_than_the_cache_streams(sets, tmp_path):
  local, remote, _ = sets
  want = _images(local)  # two epochs
  got = []
  blocks = tmp_path / "cache" / "mico_jax" / "blocks"
  tokenizer = make_tokenizer(remote.data.tokenizer)
  for *_, batch in Pipeline(remote, tokenizer, end_step=12):
    got.append(batch["inputs"]["image"][:, 0, 0, 0, 0].tolist())
    assert _on_disk(blocks) <= 400 * KB
  assert got == want
  assert sorted(np.ravel(want[:6]).tolist()) == sorted(
    3 * i % 256 for i in range(SHARDS * EACH)
  )


def test_local_and_remote_are_the_same_data(sets):
  local, remote, _ = sets
  pinned = pin_sources(local).data.sources["a"]
  spec = dataclasses.replace(
    remote.data.sources["a"], count=pinned.count, sha256=pinned.sha256
  )
  data = dataclasses.replace(remote.data, sources={"a": spec})
  source = open_source(dataclasses.replace(remote, data=data), "a")
  assert len(source) == SHARDS * EACH


def test_pins_of_earlier_versions_hold(sets):
  for config in sets[:2]:
    source = open_source(config, "a")
    former = source.former_sha256()
    assert former != source.sha256
    spec = dataclasses.replace(config.data.sources["a"], sha256=former)
    data = dataclasses.replace(config.data, sources={"a": spec})
    open_source(dataclasses.replace(config, data=data), "a")
    spec = dataclasses.replace(spec, sha256="0" * 64)
    data = dataclasses.replace(config.data, sources={"a": spec})
    with pytest.raises(ConfigError, match="index SHA-256 was 0000"):
      open_source(dataclasses.replace(config, data=data), "a")


def test_only_what_the_rows_need_is_read(sets, store):
  _, remote, total = sets
  open_source(remote, "a")  # makes the indexes
  store.knobs.received = 0
  tokenizer = make_tokenizer(remote.data.tokenizer)
  # The first step of a process that owns a quarter of the rows.
  list(
    Pipeline(remote, tokenizer, end_step=1, rows=lambda size: range(0, size, 4))
  )
  footers = SHARDS * (64 * KB + 32 * KB)
  extra = footers if remote.data.sources["a"].kind == "array_record" else 0
  assert 0 < store.knobs.received <= 3 * (SIZE + 36 * KB) + extra
  assert store.knobs.received < total


def test_passing_faults_change_nothing(sets, store, tmp_path, monkeypatch):
  local, remote, _ = sets
  want = _images(local)
  kinds = ("503", "429", "truncated", "", "", "")
  store.knobs.fault = lambda n: kinds[n % 6] if n % 3 else ""
  monkeypatch.setattr("mico_jax.failures.delays", lambda _: iter([0.01] * 50))
  assert _images(remote, tmp_path / "run") == want
  assert not read_bad_samples(str(tmp_path / "run"))


def test_a_read_that_hangs_is_left_and_made_again(sets, store, tmp_path):
  local, remote, _ = sets
  want = _images(local, end=3)
  open_source(remote, "a")
  first = store.knobs.reads
  store.knobs.fault = lambda n: "hang" if n - first in (3, 9) else ""
  store.knobs.hang = 60.0
  data = dataclasses.replace(remote.data, timeout=0.5)
  remote = dataclasses.replace(remote, data=data)
  began = time.monotonic()
  assert _images(remote, tmp_path / "run", end=3) == want
  assert time.monotonic() - began < 50
  assert not read_bad_samples(str(tmp_path / "run"))


def test_reads_are_in_flight_together(sets, store):
  _, remote, _ = sets
  source = open_source(remote, "a")
  store.knobs.latency, store.knobs.most = 1.0, 0
  data = dataclasses.replace(remote.data, cache_gb=1.0, prefetch=2)
  remote = dataclasses.replace(remote, data=data)
  began = time.monotonic()
  _images(remote, end=6)
  took = time.monotonic() - began
  assert store.knobs.most >= 16
  assert took < 1.0 * SHARDS * EACH / 2
  del source


def test_no_cache_is_needed(sets, tmp_path, monkeypatch):
  """Nor one that keeps anything, nor a file system that makes holes."""
  local, remote, _ = sets
  want = _images(local, end=2)
  data = dataclasses.replace(remote.data, cache_gb=0.0)
  assert _images(dataclasses.replace(remote, data=data), end=2) == want
  data = dataclasses.replace(remote.data, cache_gb=50 * KB / 2**30)
  assert _images(dataclasses.replace(remote, data=data), end=2) == want
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  monkeypatch.setattr(
    "mico_jax.data.storage.blocks.can_punch", lambda folder: False
  )
  assert _images(remote, end=2) == want


def test_records_need_no_files_in_memory(tmp_path, store, monkeypatch):
  _array_record(tmp_path)
  _upload(tmp_path)
  monkeypatch.delattr(os, "memfd_create")
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "cache"))
  (tmp_path / "cache").mkdir(exist_ok=True)
  spec = SourceConfig(kind="array_record", path="slow://set/*.array_record")
  source = open_source(config_of(a=spec), "a")
  for i in (0, 9, 1):
    assert source.record(i).media["image"]() == png(3 * i)
  assert not list((tmp_path / "cache").glob("mico-jax*"))


def test_a_damaged_remote_record_is_a_bad_sample(tmp_path, store):
  _array_record(tmp_path)
  path = tmp_path / "x-0.array_record"
  data = bytearray(path.read_bytes())
  data[3000] ^= 0x55
  path.write_bytes(data)
  _upload(tmp_path)
  spec = SourceConfig(kind="array_record", path="slow://set/*.array_record")
  source = open_source(config_of(a=spec), "a")
  with pytest.raises(DecodeError, match="hash mismatch"):
    source.record(0)
  assert source.record(1).id == "s1"


def test_a_manifest_with_files_and_shards_in_a_store(tmp_path, store):
  write_manifest(tmp_path / "set")
  _upload(tmp_path / "set")
  local = config_of(a=manifest_source(tmp_path / "set" / "manifest.jsonl"))
  remote = config_of(a=manifest_source("slow://set/manifest.jsonl"))
  assert _images(remote, end=4) == _images(local, end=4)
  source = open_source(remote, "a")
  with pytest.raises(DecodeError, match="does not exist"):
    source._files.read("nope.png")


def test_an_index_beside_remote_shards_saves_their_reading(
  sets, store, tmp_path, monkeypatch
):
  _, remote, _ = sets
  source = open_source(remote, "a")
  assert len(source.write_index()) == SHARDS
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other_host"))
  store.knobs.reads = store.knobs.received = 0
  again = open_source(remote, "a")
  assert again.sha256 == source.sha256
  assert store.knobs.reads == SHARDS
  ids = [again.record(i).id for i in range(len(again))]
  assert ids == [f"s{i}" for i in range(SHARDS * EACH)]


def test_a_shard_that_changed_is_named(sets, store, tmp_path, capsys):
  _, remote, _ = sets
  kind = remote.data.sources["a"].kind
  sha256 = open_source(remote, "a").sha256
  other = tmp_path / "other"
  other.mkdir()
  if kind == "webdataset":
    write_tar(other / "x-2.tar", [("z.png", png(1)), ("z.wav", wav())])
  else:
    _array_record(other)
    (other / "x-2.array_record").write_bytes(
      (other / "x-3.array_record").read_bytes()
    )
  name = "x-2.tar" if kind == "webdataset" else "x-2.array_record"
  slow_store.put(f"slow://set/{name}", (other / name).read_bytes())
  capsys.readouterr()
  assert open_source(remote, "a").sha256 != sha256
  said = capsys.readouterr().err
  assert said.count("changed since it was indexed") == 1
  assert f"slow://set/{name} changed" in said


def test_arrays_of_a_remote_npz_are_read_alone(tmp_path, store):
  folder = tmp_path / "set"
  folder.mkdir()
  rng = np.random.default_rng(0)
  big = rng.integers(0, 255, (40, 28, 28, 3), np.uint8)
  np.savez(folder / "x.npz", small=big[:2], big=np.tile(big, (20, 1, 1, 1)))
  (folder / "m.jsonl").write_text(
    json.dumps({"image": "x.npz:small[1]", "caption": "x"})
  )
  total = _upload(folder)
  source = open_source(config_of(a=manifest_source("slow://set/m.jsonl")), "a")
  store.knobs.received = 0
  np.testing.assert_array_equal(source.record(0).media["image"](), big[1])
  assert store.knobs.received < total // 2
