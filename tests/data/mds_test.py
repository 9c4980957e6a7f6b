"""MDS shards: those of the package that defines them, and what is refused."""

from __future__ import annotations

import io
import json
import pathlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data import mds_cells
from mico_jax.data.sources import open_source
from mico_jax.modalities import DecodeError
from mico_jax.testing import slow_store
from mico_jax.testing.tiny_data import config_of, png
from mico_jax.testing.tiny_sources import WRITERS, mds_shard, samples

WRITTEN = pathlib.Path(__file__).parent / "mds_0_13.zip"


def _open(path, **options):
  spec = SourceConfig(kind="mds", path=str(path), **options)
  return open_source(config_of(a=spec), "a")


@pytest.fixture
def written(tmp_path):
  """Two shards that MDSWriter of mosaicml-streaming 0.13.0 wrote."""
  with zipfile.ZipFile(WRITTEN) as file:
    file.extractall(tmp_path)
  return tmp_path


def _pixels(data: bytes) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    return np.asarray(image)


def test_shards_of_the_package_itself(written, capsys):
  source = _open(written, fields={"image": "image", "depth": "a"})
  assert "bytes that no modality is mapped to" in capsys.readouterr().err
  assert len(source) == 3
  for i in range(3):
    record = source.record(i)
    assert record.id == f"s{i}"
    assert record.captions["omni"] == (f"text {i}",)
    fields = {k: record.fields[k] for k in ("n", "u", "f", "si", "sf", "js")}
    assert fields == {
      "n": -i, "u": 1000 * i, "f": i / 4, "si": 10**20 + i, "sf": i + 0.5,
      "js": {"x": [i]},
    }  # fmt: skip
    assert (_pixels(record.media["image"]()) == 20 * i).all()
    array = np.arange(6, dtype=np.uint8).reshape(2, 3) + i
    np.testing.assert_array_equal(record.media["depth"](), array)
  others = source._cells(2, ["b", "by", "c", "raw", "frames", "ja"])
  np.testing.assert_array_equal(others["b"], np.int16([-2, -1, 0]))
  np.testing.assert_array_equal(others["c"], np.full((2, 2), 2, np.float32))
  assert others["by"] == b"\0\1\0\1"
  assert (_pixels(others["raw"]) == 14).all()
  assert [int(_pixels(f).max()) for f in others["frames"]] == [2, 3]
  assert [int(_pixels(f).max()) for f in others["ja"]] == [200]


def test_frames_of_a_list_are_a_video(written):
  source = _open(written, fields={"video": "frames"})
  frames = source.record(1).media["video"]()
  assert [int(_pixels(f).max()) for f in frames] == [1, 2]


def test_a_folder_of_splits(tmp_path):
  WRITERS["mds"](tmp_path / "val", samples(3))
  assert len(_open(tmp_path, split="val")) == 3
  with pytest.raises(ConfigError, match=r"index\.json in the folder"):
    _open(tmp_path, split="train")


def _changed(folder: pathlib.Path, change) -> None:
  path = folder / "index.json"
  index = json.loads(path.read_text())
  change(index["shards"][0])
  path.write_text(json.dumps(index))


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda s: s.update(samples=3), "2 samples, but index.json says 3"),
    (lambda s: s["raw_data"].update(bytes=9), "bytes, but index.json says 9"),
    (lambda s: s["raw_data"].update(basename="../x.mds"), "leaves the folder"),
    (lambda s: s["column_names"].reverse(), "other columns than the first"),
    (lambda s: s.update(format="csv"), "format 'mds', version 2"),
    (lambda s: s.update(version=1), "format 'mds', version 2"),
  ],
)
def test_an_index_that_is_wrong(tmp_path, change, says):
  WRITERS["mds"](tmp_path, samples(4))
  _changed(tmp_path, change)
  with pytest.raises(ConfigError, match=says) as error:
    _open(tmp_path)
  assert "\n" not in str(error.value)


def test_columns_of_a_shard_and_of_the_index_agree(tmp_path):
  WRITERS["mds"](tmp_path, samples(1))
  _changed(tmp_path, lambda s: s["column_names"].__setitem__(1, "key"))
  with pytest.raises(ConfigError, match="not those that index"):
    _open(tmp_path)


def test_compressed_shards_say_how_they_are_unpacked(tmp_path):
  WRITERS["mds"](tmp_path, samples(2))

  def pack(shard):
    name = shard["raw_data"]["basename"]
    shard["compression"] = "zstd:7"
    shard["zip_data"] = {"basename": f"{name}.zstd", "bytes": 1, "hashes": {}}

  _changed(tmp_path, pack)
  assert len(_open(tmp_path)) == 2  # unpacked already
  (tmp_path / "shard.00000.mds").rename(tmp_path / "shard.00000.mds.zstd")
  with pytest.raises(ConfigError, match=r"zstd -d shard\.00000\.mds\.zstd"):
    _open(tmp_path)


def test_pickles_are_not_run(tmp_path, capsys):
  columns = {"image": "png", "x": "pkl"}
  rows = [[png(1), b"cos\nsystem\n(S'false'\ntR."]]
  shard = mds_shard(tmp_path, 0, columns, [None, None], rows)
  (tmp_path / "index.json").write_text(json.dumps({"shards": [shard]}))
  source = _open(tmp_path)
  assert "pickled columns are left out: 'x'" in capsys.readouterr().err
  assert set(source.record(0).fields) == set()
  with pytest.raises(DecodeError, match="can run code"):
    mds_cells.decode("pkl", rows[0][1])


def test_cells_of_any_bytes_are_values_or_one_error():
  """Random and cut bytes, of each encoding."""
  rng = np.random.default_rng(0)
  encodings = (*mds_cells.KNOWN, "ndarray:float32", "ndarray:uint8:2,2")
  lines = []
  for encoding in encodings:
    for size in (0, 1, 3, 4, 8, 12, 13, 40):
      try:
        mds_cells.decode(encoding, rng.bytes(size))
      except DecodeError as error:
        lines.append(str(error))
  assert not any("\n" in line for line in lines)
  assert len(lines) > 100
  for encoding in ("ndarray:complex64", "ndarray:int8:", "what", "ndarray:a:b"):
    with pytest.raises(ValueError, match="unknown"):
      mds_cells.fixed_size(encoding)


def test_a_store_is_read_ahead(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  knobs = slow_store.register().knobs
  WRITERS["mds"](tmp_path / "set", samples(8))
  for file in (tmp_path / "set").iterdir():
    slow_store.put(f"slow://set/{file.name}", file.read_bytes())
  local, remote = _open(tmp_path / "set"), _open("slow://set")
  assert remote.sha256 == local.sha256
  for i in range(8):
    path, begin, size = remote.spans(i, ("image",))[0]
    assert begin + size <= (tmp_path / "set" / path[11:]).stat().st_size
    remote.plan(i, i, ("image",))
  for i in range(8):
    assert remote.record(i).fields == local.record(i).fields
    assert remote.record(i).media["image"]() == local.record(i).media["image"]()
    remote.forget(i)
  assert knobs.reads > 0
