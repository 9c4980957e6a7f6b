"""Annotation files as benchmarks publish them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io

from mico_jax import config as c
from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig
from mico_jax.data import field_paths
from mico_jax.data.media_names import MediaNames
from mico_jax.data.rotated_depth import rotated
from mico_jax.data.sources import open_source
from mico_jax.modalities import DecodeError
from mico_jax.testing.official_files import rotated_png


# ----------------------------------------------------------------------- paths
@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("a", [1]),
    ("b.c", ["x"]),
    ("d[]", [1, 2]),
    ("d[1]", [2]),
    ("e[].f", ["p", "q"]),
    ("g.*.h", [3, 4]),
    ("e[].absent", []),
    ("absent.x[]", []),
  ],
)
def test_values_of_a_path(path, expected):
  row = {
    "a": 1,
    "b": {"c": "x"},
    "d": [1, 2],
    "e": [{"f": "p"}, {"f": "q"}, {}],
    "g": {"k": {"h": 3}, "l": {"h": 4}},
  }
  assert field_paths.values(row, path) == expected


def test_rows_know_what_holds_them():
  data = {
    "database": {
      "v1": {"subset": "val", "annotations": [{"id": 0}, {"id": 1}]},
      "v2": {"subset": "train", "annotations": []},
    }
  }
  rows = list(field_paths.rows(data, "database.*.annotations[]"))
  assert rows == [
    {"key": "v1", "subset": "val", "id": 0},
    {"key": "v1", "subset": "val", "id": 1},
  ]
  assert list(field_paths.rows(["a"], "")) == [{"value": "a"}]
  with pytest.raises(DecodeError, match="there is no 'x'"):
    list(field_paths.rows(data, "x[]"))


@pytest.mark.parametrize(
  ("template", "expected"),
  [
    ("v_{id}.mp4", "v_7.mp4"),
    ("COCO_{id:012}.jpg", "COCO_000000000007.jpg"),
    ("{name:stem}.mp4", "a.b.mp4"),
    ("{absent}.mp4", None),
    ("{list[0]}", "p"),
  ],
)
def test_templates(template, expected):
  row = {"id": 7, "name": "a.b.mov", "list": ["p", "q"]}
  assert field_paths.fill(template, row) == expected


@pytest.mark.parametrize("template", ["{id:5.2f}", "{id!r}", "{id", "{a..b}"])
def test_other_templates_are_refused(template):
  with pytest.raises(ConfigError, match="x="):
    field_paths.check_template(template, "x")


def test_several_values_name_no_file():
  with pytest.raises(DecodeError, match="expected one text"):
    field_paths.fill("{a[]}", {"a": ["p", "q"]})
  with pytest.raises(DecodeError, match="no whole number"):
    field_paths.fill("{a:06}", {"a": "x"})


# ----------------------------------------------------------------- media names
def test_names_of_media():
  names = [
    "a/x.mp4", "b/y.webm", "b/y.txt", "c/z.wav", "c/one/d.png", "w.jpg",
    "e/x.2.mp4",
  ]  # fmt: skip
  templates = {
    "video": ("v/{id}.mp4", "**/{id}.*"),
    "audio": ("**/{id}.*", "@video"),
    "depth": ("c/{id}/*.png",),
  }
  found = MediaNames(names, templates).of
  assert found({"id": "x"}) == {"video": "a/x.mp4", "audio": "a/x.mp4"}
  assert found({"id": "y"}) == {"video": "b/y.webm", "audio": "b/y.webm"}
  assert found({"id": "z"}) == {"audio": "c/z.wav"}
  assert found({"id": "one"}) == {"depth": "c/one/d.png"}
  assert found({"id": "w"}) == {}  # a picture is no video
  assert found({"id": "x.2"}) == {"video": "e/x.2.mp4", "audio": "e/x.2.mp4"}
  assert found({"id": "../x"}) == {}
  folders = {"video": ("**/b/{id}.webm",)}
  assert MediaNames(names, folders).of({"id": "y"}) == {"video": "b/y.webm"}
  with pytest.raises(DecodeError, match="2 files may be the video"):
    MediaNames([*names, "f/x.avi"], templates).of({"id": "x"})


def test_rotated_depth():
  """Rotating the bits back, as one value at a time does it."""
  values = np.arange(0, 60_000, 997, dtype=np.uint16).reshape(1, -1)
  stored = [[int(f"{v:016b}"[3:] + f"{v:016b}"[:3], 2) for v in values[0]]]
  out = io.BytesIO()
  Image.fromarray(np.asarray(stored, np.uint16)).save(out, "png")
  np.testing.assert_array_equal(rotated(out.getvalue()), values)
  assert rotated(rotated_png(1234)).max() == 1234
  rgb = io.BytesIO()
  Image.new("RGB", (2, 2)).save(rgb, "png")
  with pytest.raises(DecodeError, match="one channel"):
    rotated(rgb.getvalue())


# --------------------------------------------------------------------- formats
def _open(folder, **options):
  spec = SourceConfig(
    kind="annotations", path=str(folder), split="", options=options
  )
  config = Config(data=DataConfig(sources={"b": spec}))
  c.check(config)  # as every command does
  return open_source(config, "b")


def _npy(values):
  out = io.BytesIO()
  np.save(out, np.asarray(values))
  return out.getvalue()


def _mat(values):
  cells = np.empty((1, len(values)), object)
  cells[0, :] = values
  out = io.BytesIO()
  scipy_io.savemat(out, {"ids": cells})
  return out.getvalue()


@pytest.mark.parametrize(
  ("file", "data", "table"),
  [
    ("x.json", b'{"a": [{"value": "p"}, {"value": "q"}]}', {"rows": "a[]"}),
    ("x.json", b'["p", "q"]', {}),
    ("x.jsonl", b'{"value": "p"}\n\n{"value": "q"}\n', {}),
    ("x.csv", b'# of 2017\nvalue, n\n"p", 1\nq, 2\n', {"comment": "#"}),
    ("x.csv", b"p,1\nq,2\n", {"columns": "value,n"}),
    ("x.csv", b'p\tan "open\nq\tb\n', {"columns": "value,t", "format": "tsv"}),
    ("x.txt", b"p\r\nq\r\n", {}),
    ("x.txt", b"p a b, c\nq d\n", {"columns": "value,rest"}),
    ("x.npy", _npy(["p", "q"]), {}),
    ("x.mat", _mat(["/n/p", "/n/q"]), {"rows": "ids", "strip": "/n/"}),
  ],
)
def test_formats(file, data, table, tmp_path):
  (tmp_path / file).write_bytes(data)
  source = _open(tmp_path, table={"file": (file,), **table}, id="{value}")
  assert [source.record(i).id for i in range(len(source))] == ["p", "q"]


def test_pickled_lists_are_not_read(tmp_path):
  np.save(tmp_path / "x.npy", np.asarray(["p", None], object))
  with pytest.raises(ConfigError, match="not readable as npy"):
    _open(tmp_path, table={"file": ("x.npy",)}, id="{value}")


@pytest.mark.parametrize(
  ("options", "expected"),
  [
    ({"id": ""}, "options.id"),
    ({"joins": {"j": {"table": {"file": ("y.json",)}, "on": "{n}",
                      "match": "{absent}"}}}, "{n} is never {absent}"),
    ({"only": {"table": {"file": ("list.txt",)}}}, "names 1 samples that"),
    ({"where": {"n": 9}}, "no row of x.json has"),
    ({"files": {"smell": ("{n}",)}}, "unknown modality"),
    ({"texts": ("a..b",)}, "options.texts"),
    ({"table": {"file": ("absent.json",)}}, "none of these files: absent.json"),
  ],
)  # fmt: skip
def test_mistakes(options, expected, tmp_path):
  (tmp_path / "x.json").write_text(json.dumps([{"n": 1}, {"n": 2}]))
  (tmp_path / "y.json").write_text(json.dumps([{"n": 1}]))
  (tmp_path / "list.txt").write_text("1\n7\n")
  whole = {"table": {"file": ("x.json",)}, "id": "{n}", **options}
  with pytest.raises(ConfigError) as error:
    _open(tmp_path, **whole)
  assert expected in str(error.value)


def test_rows_of_one_sample_are_joined_in_the_order_of_a_field(tmp_path):
  rows = [
    {"v": "a", "at": 2, "text": "then it  stops"},
    {"v": "b", "at": 0, "text": "a ball"},
    {"v": "a", "at": 1, "text": "a cube moves"},
  ]
  (tmp_path / "x.json").write_text(json.dumps(rows))
  whole = {"table": {"file": ("x.json",)}, "id": "{v}", "texts": ("text",)}
  source = _open(tmp_path, **whole, paragraph=True, order="at")
  texts = [source.record(i).captions["omni"] for i in range(2)]
  assert texts == [("a cube moves then it stops",), ("a ball",)]
  assert source.record(0).fields["annotation"]["at"] == 1


def test_options_of_sources_may_be_nested(tmp_path):
  """Also those of csv, which commands refused."""
  (tmp_path / "x.csv").write_text("id,caption\na,a cube\n")
  spec = SourceConfig(
    kind="csv",
    path=str(tmp_path / "x.csv"),
    options={"files": {"audio": "{id}.wav"}},
  )
  config = Config(data=DataConfig(sources={"b": spec}))
  c.check(config)
  assert "audio" in open_source(config, "b").record(0).media
  deep = {"files": {"audio": {1: "x"}}}
  bad = DataConfig(sources={"b": SourceConfig(kind="csv", options=deep)})
  with pytest.raises(ConfigError, match="mapping by names"):
    c.check(Config(data=bad))
