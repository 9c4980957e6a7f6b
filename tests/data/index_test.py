"""Indexes on disk: the same samples, made once, never a stale one."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from mico_jax.cli.main import main
from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.index import entries, lines, places, repeats, selection
from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.sources import manifest, open_source
from mico_jax.data.sources.webdataset import WebDatasetSource
from mico_jax.data.tar import TarIndex
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  write_manifest,
  write_tar,
)


@pytest.fixture
def kept(tmp_path, monkeypatch) -> pathlib.Path:
  """Where indexes and selections of however small sets are kept."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(manifest, "SMALL", 0)
  monkeypatch.setattr(selection, "_KEPT", 0)
  return tmp_path / "cache" / "mico_jax" / "index"


def _settle(path: pathlib.Path, seconds: float = 60) -> None:
  """As if the file had been written a while ago."""
  then = time.time() - seconds
  os.utime(path, (then, then))


def _ids(config):
  source = open_source(config, "a")
  return [source.record(i).id for i in range(len(source))]


def _no_room(*_: object) -> None:
  raise OSError(errno.ENOSPC, "No space left on device")


def test_columns_are_what_was_written(tmp_path):
  writer = Writer(a="<i8", b="u1", none="<u4")
  for i in range(5):
    writer.add(a=np.arange(i * 1000, i * 1000 + 1000), b=[i])
  writer.save(tmp_path / "x", {"count": 5})
  columns = Columns.open(tmp_path / "x")
  assert columns.meta == {"count": 5}
  np.testing.assert_array_equal(columns["a"], np.arange(5000))
  assert columns["b"].tolist() == [0, 1, 2, 3, 4]
  assert len(columns["none"]) == 0
  data = (tmp_path / "x").read_bytes()
  for cut in (0, 10, 30, 60, len(data) - 1):
    (tmp_path / "y").write_bytes(data[:cut])
    with pytest.raises(ValueError, match=r"cut short|no index"):
      Columns.open(tmp_path / "y")
  assert not list(tmp_path.glob(".x*"))


@pytest.mark.parametrize("options", [
  {},
  {"split": "val"},
  {"split": ""},
  {"where": {"label": 1}},
  {"where": {"label": (0, 1), "id": ["s1", "s2"]}},
])  # fmt: skip
def test_a_large_manifest_is_read_as_a_small_one(
  tmp_path, monkeypatch, options
):
  splits = ["train", "val", None, "train", "", "val", 7, "train"]
  path = write_manifest(tmp_path / "set", split=splits)
  text = path.read_bytes()
  lines_of = text.splitlines()
  lines_of[1:1] = [b"", b"{broken", b"  "]
  path.write_bytes(b"\n".join(lines_of))
  _settle(path)
  config = config_of(a=manifest_source(path, **options))

  def seen():
    source = open_source(config, "a")
    out = [len(source), source.sha256]
    for i in range(len(source)):
      try:
        record = source.record(i)
        out.append((record.id, dict(record.captions), sorted(record.media)))
      except DecodeError as error:
        out.append(str(error))
    return out

  want = seen()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(manifest, "SMALL", 0)
  monkeypatch.setattr(selection, "_KEPT", 0)
  assert seen() == want
  monkeypatch.setattr(lines, "build", None)  # not made again
  assert seen() == want


def test_an_index_is_made_once_and_anew_when_the_file_changes(
  tmp_path, kept, capsys
):
  path = write_manifest(tmp_path / "set")
  _settle(path)
  config = config_of(a=manifest_source(path))
  assert _ids(config) == [f"s{i}" for i in range(8)]
  (place,) = (p for p in kept.glob("*.mico_index") if "id_hash" in p.read_text(
    errors="replace"))  # fmt: skip
  made = place.stat().st_mtime_ns
  assert _ids(config) == [f"s{i}" for i in range(8)]
  assert place.stat().st_mtime_ns == made
  assert not capsys.readouterr().err
  path.write_text(path.read_text().replace('"s3"', '"z3"'))
  _settle(path, 30)
  assert _ids(config)[3] == "z3"
  said = capsys.readouterr().err
  assert said.count("manifest.jsonl changed since it was indexed") == 1


def test_a_file_that_was_just_written_is_indexed_each_time(tmp_path, kept):
  path = write_manifest(tmp_path / "set")
  config = config_of(a=manifest_source(path))
  stamp = path.stat().st_mtime_ns
  assert _ids(config)[0] == "s0"
  path.write_text(path.read_text().replace('"s0"', '"t0"'))
  os.utime(path, ns=(stamp, stamp))  # same size, same time
  assert _ids(config)[0] == "t0"


def test_a_manifest_that_changes_in_use_is_an_error(tmp_path, kept):
  path = write_manifest(tmp_path / "set")
  config = config_of(a=manifest_source(path))
  source = open_source(config, "a")
  text = path.read_text()
  for wrong in (text.replace('"s3"', '"z3"'), text[3:], text[:400]):
    with open(path, "r+b") as file:
      file.truncate(0)
      file.write(wrong.encode())
    with pytest.raises(ConfigError, match="changed while it was in use"):
      [source.record(i) for i in range(8)]


def test_damaged_indexes_are_made_again(tmp_path, kept):
  path = write_manifest(tmp_path / "set")
  _settle(path)
  config = config_of(a=manifest_source(path, split="train"))
  want = _ids(config)
  for cut in (0, 5, 40, 200):
    for place in kept.glob("*.mico_index"):
      place.write_bytes(place.read_bytes()[:cut])
    assert _ids(config) == want


def test_a_tar_index_is_shared_and_beside(tmp_path, kept, monkeypatch):
  members = [(f"{i}.{e}", d) for i in range(4)
             for e, d in (("png", png(i)), ("txt", b"a cube"))]  # fmt: skip
  path = write_tar(tmp_path / "x.tar", members)
  _settle(path)
  config = config_of(a=SourceConfig(kind="webdataset", path=str(path)))
  source = open_source(config, "a")
  assert isinstance(source, WebDatasetSource)
  assert source.write_index() == [str(path)]
  assert (tmp_path / "x.tar.mico_index").exists()
  # Another user's cache, who needs no scan of the shard.
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  monkeypatch.setattr("mico_jax.data.index.tars.tarfile.open", None)
  assert _ids(config) == ["0", "1", "2", "3"]


def test_an_index_folder_that_cannot_be_written_stops_nothing(
  tmp_path, kept, capsys
):
  kept.parent.parent.mkdir()
  kept.parent.write_text("no folder")
  path = write_tar(tmp_path / "x.tar", [("a.png", png(1))])
  assert TarIndex(str(path)).read("a.png") == png(1)
  assert "is not kept" in capsys.readouterr().err


def test_names_are_found_among_many(tmp_path):
  names = [f"d{i % 7}/{i}.bin" for i in range(500)]
  names[20] = "./d/\u00e4 \u2603.bin"
  path = write_tar(tmp_path / "x.tar", [(n, n.encode()) for n in names])
  index = TarIndex(str(path))
  for name in names:
    assert index.read(name) == name.encode()
  assert index.read("/d/\u00e4 \u2603.bin") == names[20].encode()
  with pytest.raises(DecodeError, match="has no member"):
    index.read("d1/500.bin")


@pytest.mark.parametrize("disk", ["roomy", "full"])
def test_repeats_are_counted_in_pieces(disk, kept, monkeypatch):
  rng = np.random.default_rng(0)
  values = rng.integers(-2, 300, 5000)
  values[1000:3000:2] = 7  # more of one than are sorted at once
  if disk == "full":
    monkeypatch.setattr(repeats, "_write", _no_room)
  rows = np.flatnonzero(rng.random(5000) < 0.4)
  for chosen in (None, rows):
    part = values if chosen is None else values[chosen]
    want = repeats.find_repeats(values, chosen)
    seen, counts = np.unique(part[part != -1], return_counts=True)
    assert want.count == int((counts > 1).sum())
    assert want.most == int(counts.max())
    firsts = sorted(np.flatnonzero(part == v)[0] for v in seen[counts > 1])
    assert list(want.first) == [int(x) for x in firsts[:3]]
    monkeypatch.setattr(repeats, "_MOST", 100)
    assert repeats.find_repeats(values, chosen) == want
    nameless = np.full(len(values), repeats.NO_ID)
    assert repeats.find_repeats(nameless, chosen) == (0, 0, ())
    monkeypatch.undo()


def test_million_rows_open_at_once(tmp_path, kept):
  """An index is mapped, not read: opening costs no memory per row."""
  rows, text = 2_000_000, b'{"id": "0000000", "caption": "a cube"}\n'
  path = tmp_path / "m.jsonl"
  path.write_bytes(text)
  size = len(text) - 1
  writer = Writer(**lines.DTYPES)
  numbers = np.arange(rows)
  writer.add(
    start=np.zeros(rows), size=np.full(rows, size), number=numbers + 1,
    id_hash=np.full(rows, repeats.hash_of("0000000")),
    split=numbers % 2, fields=np.zeros(rows),
  )  # fmt: skip
  _settle(path)
  stat = path.stat()
  meta = {
    "kind": lines.LINES.kind, "stamp": [stat.st_size, str(stat.st_mtime_ns)],
    "made": time.time_ns(), "sha256": "0" * 64, "samples": rows, "good": rows,
    "broken": -1, "splits": ["train", "val"], "fields": [],
  }  # fmt: skip
  writer.save(places.cached_place(str(path), lines.LINES.kind), meta)
  code = f"""
import resource, time
from mico_jax.config import SourceConfig
from mico_jax.data.sources import manifest
from mico_jax.data.storage import Storage
manifest.SMALL = 0
spec = SourceConfig(kind="manifest", path={str(path)!r}, split="train")
manifest.ManifestSource("a", spec, Storage())  # makes the selection
def used():
  for line in open("/proc/self/status"):
    if line.startswith("RssAnon"):
      return int(line.split()[1])
before, began = used(), time.process_time()
source = manifest.ManifestSource("a", spec, Storage())
assert source.record(len(source) - 1).id == "0000000"
print(len(source), used() - before, time.process_time() - began)
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert not done.returncode, done.stderr
  count, grown, seconds = done.stdout.split()
  assert int(count) == rows // 2
  assert int(grown) < 4096  # KiB
  assert float(seconds) < 0.5
  assert "1 id occurs up to 1000000 times" in done.stderr


def test_millions_of_samples_in_shards_open_at_once():
  """Nothing of an open set grows with its samples, once its ids were seen."""
  command = "mico_jax.testing.endurance.many_samples --kind webdataset"
  options = "--samples 3000000 --shards 30 --workers 0"
  done = subprocess.run(
    [sys.executable, "-m", *command.split(), *options.split()],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert not done.returncode, done.stderr
  first, second = map(json.loads, done.stdout.splitlines())
  assert first["samples"] == second["samples"] == 3_000_000
  assert "occur" not in done.stderr
  assert second["open_cpu_seconds"] < 0.5
  assert second["open_grown_mb"] < 10


def test_the_order_is_that_of_a_small_manifest(tmp_path, monkeypatch):
  path = write_manifest(tmp_path / "set")
  _settle(path)
  config = config_of(a=manifest_source(path), groups=("ti",))
  tokenizer = make_tokenizer(config.data.tokenizer)

  def values():
    return [
      b["inputs"]["image"][:, 0, 0, 0, 0].tolist()
      for *_, b in Pipeline(config, tokenizer)
    ]

  small = values()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(manifest, "SMALL", 0)
  assert values() == small


def test_the_command_writes_indexes_beside_the_data(
  tmp_path, kept, monkeypatch, capsys
):
  path = write_manifest(tmp_path / "set")
  shard = write_tar(tmp_path / "x.tar", [("a.png", png(1)), ("a.txt", b"x")])
  for file in (path, shard):
    _settle(file)
  assert main(["data", "index", str(path), str(shard), "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert [s["samples"] for s in found["sources"]] == [8, 1]
  assert found["sources"][0]["fields"]["image"] == 8
  assert found["sources"][0]["splits"] == {"train": 8}
  assert found["sources"][1]["fields"] == {"png": 1, "txt": 1}
  assert pathlib.Path(f"{path}.mico_index").exists()
  assert pathlib.Path(f"{shard}.mico_index").exists()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
  monkeypatch.setattr(lines, "build", None)
  assert len(_ids(config_of(a=manifest_source(path)))) == 8
  assert main(["data", "index", str(tmp_path / "x.zip")]) == 2
  assert "x.zip" in capsys.readouterr().err


def test_prune_removes_what_no_run_needs(tmp_path, kept, capsys):
  """Files that are gone or changed, long unused, left behind; no others."""
  files = {n: tmp_path / f"{n}.tar" for n in ("used", "gone", "changed", "old")}
  for path in files.values():
    write_tar(path, [("a.png", png(1))])
    _settle(path)
    TarIndex(str(path))
  place = {n: places.cached_place(str(p), "tar.1") for n, p in files.items()}
  files["gone"].unlink()
  write_tar(files["changed"], [("b.png", png(2))])
  _settle(place["old"], 40 * 86400)
  for name, days in ((".x.part", 2), ("x.lock", 2), ("y.lock", 0)):
    (kept / name).touch()
    _settle(kept / name, days * 86400)
  assert main(["data", "index", "--prune", "--days", "30", "--json"]) == 0
  told = json.loads(capsys.readouterr().out)["pruned"]
  assert (told["gone"], told["unused"], told["kept"]) == (2, 1, 1)
  left = {p.name for p in kept.iterdir()}
  assert place["used"].name in left
  assert not left & {place[n].name for n in ("gone", "changed", "old")}
  assert "y.lock" in left
  assert not left & {".x.part", "x.lock"}
  _settle(place["used"], 89 * 86400)
  TarIndex(str(files["used"]))  # is noted
  assert main(["data", "index", "--prune", "--days", "30", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["pruned"]["kept"] == 1
  assert main(["data", "index", "--prune", "--days", "0"]) == 2
  assert "--days" in capsys.readouterr().err


def test_entries_of_a_list_are_found_piece_by_piece(monkeypatch):
  """As JSON itself reads them, wherever a read ends."""
  monkeypatch.setattr(entries, "_READ", 3)
  values = [{"a": ["]", {"b": "\\"}], "\u00e4": '\u2603"'}, 12, -1.5e3, "x, ]"]
  values += [None, [], {}, {"long": "y" * 50}]
  for text in (
    json.dumps(values),
    json.dumps(values, ensure_ascii=False, indent=2),
    "\ufeff [ 12,3 ] \n",
    "[]",
    " [ ] ",
  ):
    data, seen = text.encode(), []
    found = list(entries.entries(io.BytesIO(data), seen.append))
    assert b"".join(seen) == data
    want = json.loads(text.removeprefix("\ufeff"))
    assert [json.loads(x) for _, _, x in found] == want
    for _, start, entry in found:
      assert data[start : start + len(entry)] == entry
  whole = json.dumps(values).encode()
  damaged = [whole[:n] for n in range(0, len(whole), 7)]
  damaged += [b"{}", b"[1 2]", b"[1,]", b"[1] x", b"[,1]", b'[{"a":1,"a":2}]']
  for data in damaged:
    with pytest.raises(DecodeError):
      list(entries.entries(io.BytesIO(data), len))


def test_large_annotations_are_those_of_a_small_file(tmp_path, kept, capsys):
  items = [{"clip_id": f"c{i % 9}", "vast_cap": f"t {i}"} for i in range(10)]
  items = [*items, 7, {"clip_id": "w", "split": "val", "where": 1}]
  path = tmp_path / "a.json"
  path.write_text(json.dumps(items))
  _settle(path)

  def records(**options):
    spec = SourceConfig(kind="vast", path=str(path), **options)
    source, found = open_source(config_of(a=spec), "a"), []
    for index in range(len(source)):
      try:
        record = source.record(index)
        found.append((record.id, record.captions, sorted(record.media)))
      except DecodeError as error:
        found.append(str(error))
    return source.sha256, found

  wanted = ({"split": ""}, {}, {"split": "", "where": {"where": 1}})
  large = [records(**options) for options in wanted]
  assert [len(found) for _, found in large] == [12, 11, 2]
  assert large[0][0] == hashlib.sha256(path.read_bytes()).hexdigest()
  assert "1 id occurs twice (c0)" in capsys.readouterr().err
  assert len(list(kept.glob("*.mico_index"))) == 4
  with pytest.MonkeyPatch.context() as small:
    small.setattr(manifest, "SMALL", 1 << 20)
    assert [records(**options) for options in wanted] == large
