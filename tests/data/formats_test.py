"""Formats of others as they lie: what each field means, and what is refused."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import re
import shutil

import numpy as np
import pytest

from mico_jax.cli.main import main
from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import open_source
from mico_jax.data.sources.shards import expand
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import config_of, png, wav, write_tar
from mico_jax.testing.tiny_sources import WRITERS, arrow_table, samples


def _open(kind, path, **fields):
  spec = SourceConfig(kind=kind, path=str(path), **fields)
  return open_source(config_of(a=spec), "a")


def _records(source):
  return [source.record(i) for i in range(len(source))]


def _grey(source, index, **fields):
  record = source.record(index)
  spec = SourceConfig(**fields)
  config = config_of(a=spec)
  return int(load_inputs(config, record, "a", ("image",), None)["image"].max())


def _write(folder, **files):
  for name, data in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


# -------------------------------------------------------------------- patterns
@pytest.mark.parametrize(
  ("pattern", "names"),
  [
    ("x-{00..02}.tar", ["x-00.tar", "x-01.tar", "x-02.tar"]),
    ("x-{2..0}.t", ["x-2.t", "x-1.t", "x-0.t"]),
    ("{a,b c}-{0..1}.t", ["a-0.t", "a-1.t", "b c-0.t", "b c-1.t"]),
    ("x-{00..01}.tar,y.tar", ["x-00.tar", "x-01.tar", "y.tar"]),
    ("{0..1}/*.tar", ["0/p.tar", "0/q.tar", "1/p.tar"]),
    ("{00..02}.tar", ["{00..02}.tar"]),  # there is a file of this name
  ],
)
def test_braces(tmp_path, pattern, names):
  for name in names:
    _write(tmp_path, **{name: b""})
  # Each pattern within the folder; commas in braces separate no patterns.
  inside = re.sub(r"(^|,)(?![^{}]*\})", rf"\1{tmp_path}/", pattern)
  files = expand(inside, "a")
  assert files == [f"{tmp_path}/{n}" for n in names]


def test_braces_that_name_too_little_or_much(tmp_path):
  _write(tmp_path, **{"x-0.tar": b"", "x-2.tar": b""})
  with pytest.raises(ConfigError, match=r"x-1\.tar does not exist"):
    expand(f"{tmp_path}/x-{{0..2}}.tar", "a")
  with pytest.raises(ConfigError, match="more than 1000000 files"):
    expand("{0..999999}{0..999999}{0..999999}.tar", "a")


def test_compressed_tars_name_the_command(tmp_path, capsys):
  tar = write_tar(
    tmp_path / "x.tar",
    [(f"s{i}.{e}", d) for i in range(3)
     for e, d in (("png", png(20 * i)), ("txt", b"a cube"))],
  )  # fmt: skip
  for name in ("x.tar.gz", "y.tgz"):
    (tmp_path / name).write_bytes(gzip.compress(tar.read_bytes()))
  pattern = f"{tmp_path}/*.t*gz"
  with pytest.raises(ConfigError, match="mico-jax data convert --from") as e:
    _open("webdataset", pattern)
  assert "\n" not in str(e.value)
  assert repr(pattern) in str(e.value)
  base = ["data", "convert", "--from", "webdataset", "--path"]
  out = tmp_path / "out"
  assert main([*base, pattern, "--out", str(out)]) == 0
  source = _open("array_record", f"{out}/*.array_record")
  assert [r.id for r in _records(source)] == ["s0", "s1", "s2"] * 2
  assert _grey(source, 4) == 20
  assert sorted(p.name for p in (out / "all.convert").iterdir()) == [
    "00000.json", "lock", "plan.json",
  ]  # fmt: skip
  cut = tmp_path / "z.tar.gz"
  cut.write_bytes((tmp_path / "x.tar.gz").read_bytes()[:-30])
  capsys.readouterr()
  assert main([*base, str(cut), "--out", str(tmp_path / "o")]) == 2
  said = capsys.readouterr().err
  assert said.count("\n") == 1
  assert "z.tar.gz" in said


# ----------------------------------------------------------------- imagefolder
def _tree(folder, *names):
  for i, name in enumerate(names):
    _write(folder, **{name: png(20 * i)})
  return folder


def test_classes_are_sorted_folders(tmp_path):
  _tree(
    tmp_path, "train/dog/x.png", "train/Cat/a b.png", "train/dog/deep/y.png",
    "val/ant/z.png", "train/.hidden.png", "train/__MACOSX/q.png",
  )  # fmt: skip
  source = _open("imagefolder", tmp_path)
  seen = [(r.id, r.fields["class"], r.fields["label"]) for r in
          _records(source)]  # fmt: skip
  # "ant" is a class of the other split: a number means the same in both.
  assert seen == [
    ("train/Cat/a b.png", "Cat", 0),
    ("train/dog/deep/y.png", "dog", 2),
    ("train/dog/x.png", "dog", 2),
  ]
  (record,) = _records(_open("imagefolder", tmp_path, split="val"))
  assert (record.fields["label"], record.fields["split"]) == (1, "val")
  assert len(_open("imagefolder", tmp_path, split="")) == 4
  flat = _open("imagefolder", tmp_path / "train")
  assert [r.fields["label"] for r in _records(flat)] == [0, 1, 1]
  with pytest.raises(ConfigError, match="has the splits train, val; name one"):
    _open("imagefolder", tmp_path, split="test")


def test_a_class_called_train(tmp_path):
  _tree(tmp_path, "train/1.png", "plane/2.png")
  with pytest.raises(ConfigError, match="is a split or a class"):
    _open("imagefolder", tmp_path)
  source = _open("imagefolder", tmp_path, options={"splits": "no"})
  assert [r.fields["class"] for r in _records(source)] == ["plane", "train"]
  source = _open("imagefolder", tmp_path, options={"splits": "yes"})
  assert [r.id for r in _records(source)] == ["train/1.png"]


def test_metadata_of_pictures(tmp_path, capsys):
  _tree(tmp_path, "train/a/1.png", "train/a/2.png", "train/a/3.png")
  _write(tmp_path, **{
    "train/a/metadata.csv": "file_name,text,stars\n1.png,a cube,\n2.png,,3\n",
    "train/a/notes.md": "x",
  })  # fmt: skip
  source = _open("imagefolder", tmp_path)
  one, two, three = _records(source)
  assert one.captions == {"omni": ("a cube",)}
  assert two.captions == three.captions == {}
  assert two.fields["stars"] == "3"
  assert "stars" not in one.fields
  said = capsys.readouterr().err
  assert "1 pictures have no metadata: 'train/a/3.png'" in said
  assert "1 files are no pictures: 'train/a/notes.md'" in said
  _write(
    tmp_path, **{"train/a/metadata.csv": "file_name,text\n1.png,a\n1.png,b"}
  )
  with pytest.raises(ConfigError, match="two rows name"):
    _open("imagefolder", tmp_path)


def test_a_link_that_leads_up_ends(tmp_path):
  _tree(tmp_path, "a/1.png")
  (tmp_path / "a" / "up").symlink_to(tmp_path)
  assert len(_open("imagefolder", tmp_path)) == 1


# ------------------------------------------------------------------------- csv
def _table(path, rows, delimiter=","):
  with open(path, "w", newline="", encoding="utf-8-sig") as file:
    csv.writer(file, delimiter=delimiter).writerows(rows)
  return path


def test_rows_of_one_file_are_one_sample(tmp_path, capsys):
  for i in range(2):
    _write(tmp_path, **{f"Y-{i}.wav": wav(3000)})
  rows = [["id", "youtube_id", "start_time", "caption", "label"]]
  rows += [[10 * i + j, f"-{i}", 30, f"sound {i}, text {j}", i]
           for i in range(2) for j in range(3)]  # fmt: skip
  path = _table(tmp_path / "test.csv", rows)
  source = _open("csv", path, options={"files": {"audio": "Y{youtube_id}.wav"}})
  one, two = _records(source)
  assert one.captions["omni"] == tuple(f"sound 0, text {j}" for j in range(3))
  assert (one.id, two.id) == ("0", "10")  # of the first rows
  assert (two.fields["label"], two.fields["start_time"]) == (1, "30")
  config = config_of(a=SourceConfig())
  assert load_inputs(config, two, "a", ("audio",), None)["audio"].any()
  assert "6 rows are 2 samples" in capsys.readouterr().err


def test_tables_that_are_none(tmp_path):
  _write(tmp_path, **{"1.png": png(3)})
  path = _table(
    tmp_path / "t.tsv", [["image", "caption"], ["1.png", "a"]], "\t"
  )
  assert _grey(_open("csv", path), 0) == 3
  plain = _table(tmp_path / "n.csv", [["1.png", "a"]])
  source = _open("csv", plain, options={"columns": "image,caption"})
  assert source.record(0).captions == {"omni": ("a",)}
  for rows, options, message in (
    ([["a", "a"], ["1", "2"]], {}, "repeats a name"),
    ([["photo", "caption"], ["1.png", "x"]], {}, "Set fields="),
    ([["image", "caption"], ["1.png", "x", "y"]], {}, "line 2: more cells"),
    ([["image"], ["1.png"]], {"files": {"audio": "{id}.wav"}}, "column 'id'"),
    ([["image"], ["1.png"]], {"files": {"sound": "x"}}, "unknown modality"),
    ([["image"], ["1.png"]], {"files": {"audio": "{image!r}"}}, "without a"),
    ([["image"], ["1.png"]], {"files": {"audio": "{"}}, "options.files.audio"),
  ):
    path = _table(tmp_path / "x.csv", rows)
    with pytest.raises(ConfigError, match=message) as error:
      _open("csv", path, options=options)
    assert "\n" not in str(error.value)


def test_a_cell_of_a_name_is_no_path(tmp_path):
  path = _table(tmp_path / "t.csv", [["id", "caption"], ["../x", "a"]])
  source = _open("csv", path, options={"files": {"audio": "s/{id}.wav"}})
  with pytest.raises(DecodeError, match="may hold no slash"):
    source.record(0)


# ------------------------------------------------------------------------ coco
def _coco(tmp_path, name, content):
  _write(tmp_path, **{f"annotations/{name}": json.dumps(content)})
  return tmp_path / "annotations" / name


def test_coco_joins_captions_and_instances(tmp_path, capsys):
  images = [
    {"id": 7, "file_name": "000000000007.png", "width": 32},
    {"id": 9, "file_name": "000000000009.png", "width": 32},
  ]
  for i, image in enumerate(images):
    _write(tmp_path, **{f"val2017/{image['file_name']}": png(50 * i)})
  # Numbers of annotations are those of other images on purpose.
  captions = _coco(tmp_path, "captions.json", {"images": images,
   "annotations": [
    {"id": 9, "image_id": 7, "caption": "first"},
    {"id": 1, "image_id": 7, "caption": "second"},
    {"id": 7, "image_id": 5, "caption": "of no image"},
  ]})  # fmt: skip
  boxes = _coco(tmp_path, "instances.json", {
    "images": images,
    "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "cup"}],
    "annotations": [
      {"id": 7, "image_id": 9, "category_id": 90, "bbox": [0, 0, 1, 1]},
      {"id": 8, "image_id": 9, "category_id": 3},
      {"id": 9, "image_id": 9, "category_id": 90},
    ],
  })  # fmt: skip
  source = _open(
    "coco", f"{captions},{boxes}", root="..",
    options={"images": "../val2017"},
  )  # fmt: skip
  one, two = _records(source)
  assert (one.id, one.captions) == ("7", {"omni": ("first", "second")})
  assert (two.id, two.captions) == ("9", {})
  assert two.fields["categories"] == ["cup", "cat"]
  assert two.fields["objects"] == 3
  assert (_grey(source, 0), _grey(source, 1)) == (0, 50)
  said = capsys.readouterr().err
  assert "1 images that are not listed and are left out: '5'" in said
  assert "1 images have no caption: '9'" in said
  source = _open("coco", captions, options={"images": "../val2017"})
  with pytest.raises(DecodeError, match=r"leaves the folder.*\.root"):
    _grey(source, 0)


def test_coco_files_that_number_other_pictures(tmp_path):
  paths = [
    _coco(tmp_path, f"{name}.json", {
      "images": [{"id": 1, "file_name": f"{name}.png"}],
      "annotations": [{"image_id": 1, "caption": name}],
    })
    for name in ("a", "b")
  ]  # fmt: skip
  with pytest.raises(ConfigError, match=r"1 is 'b\.png', but 'a\.png' in"):
    _open("coco", ",".join(map(str, paths)))


def test_karpathy_splits(tmp_path):
  images = [
    {"filepath": "val2014", "filename": f"{i}.png", "cocoid": 100 + i,
     "imgid": i, "split": split, "sentences": [{"raw": "one"}, {"raw": "two"}]}
    for i, split in enumerate(("train", "test", "test"))
  ]  # fmt: skip
  _write(tmp_path, **{f"val2014/{i}.png": png(20 * i) for i in range(3)})
  _write(tmp_path, **{"dataset_coco.json": json.dumps({"images": images})})
  source = _open("coco", tmp_path / "dataset_coco.json", split="test")
  assert [r.id for r in _records(source)] == ["101", "102"]
  assert source.record(1).captions == {"omni": ("one", "two")}
  assert _grey(source, 1) == 40


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ([], "a list 'images'"),
    ({"images": [{"id": 1}]}, "'id' and 'file_name'"),
    ({"images": [{"id": 1, "file_name": "a"}] * 2}, "1 ids of images repeat"),
    ({"images": [], "annotations": [{"caption": "x"}]}, "'image_id'"),
    ({"images": [], "annotations": [{"image_id": [1]}]}, "'image_id'"),
    ({"images": [], "categories": [1]}, "a category needs"),
    (
      {"images": [], "annotations": [{"image_id": 1, "category_id": 2}]},
      "category_id 2 is not listed",
    ),
  ],
)
def test_coco_that_is_none(tmp_path, content, message):
  path = _coco(tmp_path, "x.json", content)
  with pytest.raises(ConfigError, match=message) as error:
    _open("coco", path)
  assert "\n" not in str(error.value)


# ------------------------------------------------------------------------ vast
def test_vast_annotations_over_clips(tmp_path, cases_dir):
  shutil.copy(cases_dir / "av_one_file" / "av.mp4", tmp_path / "x.7.mp4")
  items = [
    {
      "clip_id": "x.7",
      "url": "https://example.org/x",
      "clip_span": ["00:00:33.098", "00:00:38.739"],
      "vision_cap": ["a man", "a person"],
      "audio_cap": ["a tone"],
      "vast_cap": "a man and a tone",
      "subtitle": "hello",
    },
    {"clip_id": "gone", "vast_cap": float("nan"), "vision_cap": []},
    "no object",
  ]
  _write(tmp_path, **{"annotations.json": json.dumps(items)})
  source = _open("vast", tmp_path / "annotations.json")
  record = source.record(0)
  assert record.id == "x.7"
  assert record.captions == {
    "vision": ("a man", "a person"), "audio": ("a tone",),
    "omni": ("a man and a tone",), "subtitle": ("hello",),
  }  # fmt: skip
  assert record.fields["clip_span"] == ["00:00:33.098", "00:00:38.739"]
  config = config_of(a=SourceConfig())
  inputs = load_inputs(config, record, "a", ("video", "audio"), None)
  assert inputs["video"].any()
  assert inputs["audio"].any()
  assert source.record(1).captions == {}
  with pytest.raises(DecodeError, match=r"gone\.mp4"):
    load_inputs(config, source.record(1), "a", ("video",), None)
  with pytest.raises(DecodeError, match="entry 2: expected a JSON object"):
    source.record(2)


# -------------------------------------------------------------- img2dataset
def test_failed_downloads_are_left_out(tmp_path, capsys):
  states = ["success", "failed_to_download", "success", "failed_to_resize"]
  for i, status in enumerate(states):
    fields = {"key": f"{i:09d}", "status": status, "caption": f"text {i}"}
    stem = f"files/00000/{i:09d}"
    _write(tmp_path, **{f"{stem}.json": json.dumps(fields)})
    if status == "success":
      _write(tmp_path, **{f"{stem}.jpg": png(20 * i), f"{stem}.txt": "text"})
  _write(tmp_path, **{"files/00000_stats.json": "{}"})
  source = _open("files", tmp_path / "files")
  assert [r.id for r in _records(source)] == ["00000/000000000",
                                              "00000/000000002"]  # fmt: skip
  assert source.record(1).captions == {"omni": ("text 2",)}
  said = capsys.readouterr().err
  assert "1 samples are left out, with status 'failed_to_download'" in said
  assert "1 samples are left out, with status 'failed_to_resize'" in said
  assert "1 names have no medium and are left out: '00000_stats'." in said

  import pyarrow as pa
  import pyarrow.parquet as pq

  table = pa.table({
    "url": ["https://example.org"] * 4,
    "key": [f"{i:09d}" for i in range(4)],
    "status": states,
    "error_message": [None, "404", None, "bad"],
    "caption": [f"text {i}" for i in range(4)],
    "jpg": [png(0), None, png(40), None],
  })  # fmt: skip
  pq.write_table(table, tmp_path / "00000.parquet")
  source = _open("parquet", tmp_path / "00000.parquet")
  assert [r.id for r in _records(source)] == ["000000000", "000000002"]
  assert _grey(source, 1) == 40
  assert "2 of 4 rows are left out" in capsys.readouterr().err


# ---------------------------------------------------------------- Hugging Face
def test_columns_are_chosen_or_asked_for(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  base = arrow_table(samples(2))
  path = tmp_path / "x.parquet"

  def written(**columns):
    table = base.drop_columns(["image"])
    for name, values in columns.items():
      table = table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return path

  data = [png(10), png(20)]
  with pytest.raises(ConfigError, match="may all be the image; name one"):
    _open("parquet", written(jpg=data, webp=data))
  source = _open("parquet", written(jpg=data, webp=data),
                 fields={"image": "webp"})  # fmt: skip
  assert source.unmapped == ["jpg"]
  with pytest.raises(ConfigError, match=r"'label' is int64; expected bytes"):
    _open("parquet", path, fields={"image": "label"})
  with pytest.raises(ConfigError, match="names the column 'nope'"):
    _open("parquet", path, captions={"omni": "nope"})
  source = _open("parquet", written(image=["a.png", "../b.png"]))
  _write(tmp_path, **{"a.png": png(30)})
  assert _grey(source, 0) == 30
  with pytest.raises(DecodeError, match="leaves the folder"):
    _grey(source, 1)
  source = _open("parquet", written(frames=[data, data[:1]]),
                 fields={"video": "frames"})  # fmt: skip
  assert source.record(0).media["video"]() == data
  names = [r.fields["label_name"] for r in _records(source)]
  assert names == ["cube", "ball"]
  with pytest.raises(ConfigError, match=r"train-\*\.parquet"):
    _open("parquet", tmp_path)


def test_numbers_of_tables_that_are_missing(tmp_path):
  import datetime

  import pyarrow as pa
  import pyarrow.parquet as pq

  table = pa.table({
    "image": [png(0), png(20)],
    "caption": pa.array([float("nan"), None], pa.float64()),
    "score": [float("nan"), 2.5],
    "taken": [datetime.date(2026, 1, 2), None],
  })  # fmt: skip
  pq.write_table(table, tmp_path / "x.parquet")
  one, two = _records(_open("parquet", tmp_path / "x.parquet"))
  assert (one.captions, one.fields) == ({}, {"taken": "2026-01-02"})
  assert two.fields == {"score": 2.5}


def test_saved_splits(tmp_path):
  for split, n in (("train", 3), ("test", 2)):
    WRITERS["hf_disk"](tmp_path / split, samples(n))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}],
             "_split": split}  # fmt: skip
    _write(tmp_path / split, **{"state.json": json.dumps(state)})
  _write(tmp_path, **{"dataset_dict.json": '{"splits": ["train", "test"]}'})
  assert len(_open("hf_disk", tmp_path)) == 3
  assert len(_open("hf_disk", tmp_path, split="test")) == 2
  for path, split, message in (
    (tmp_path, "val", r"has the splits \['train', 'test'\]"),
    (tmp_path / "test", "train", r"holds the split 'test'; set split='test'"),
  ):
    with pytest.raises(ConfigError, match=message):
      _open("hf_disk", path, split=split)
  state = {**state, "_indices_data_files": [{"filename": "i.arrow"}]}
  _write(tmp_path / "test", **{"state.json": json.dumps(state)})
  with pytest.raises(ConfigError, match="flatten_indices"):
    _open("hf_disk", tmp_path / "test", split="test")


def test_what_the_library_writes(tmp_path):
  """The folder and the Parquet file of Hugging Face datasets itself."""
  datasets = pytest.importorskip("datasets")
  rows = samples(5)
  features = datasets.Features({
    "image": datasets.Image(),
    "text": datasets.Value("string"),
    "label": datasets.ClassLabel(names=["cube", "ball"]),
  })  # fmt: skip
  table = datasets.Dataset.from_dict(
    {
      "image": [{"bytes": r.data, "path": None} for r in rows],
      "text": [r.caption for r in rows],
      "label": [r.label for r in rows],
    },
    features=features,
    split="train",
  )
  table.save_to_disk(tmp_path / "disk")
  table.to_parquet(tmp_path / "x.parquet")
  datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "dict")
  for kind, name in (
    ("hf_disk", "disk"), ("hf_disk", "dict"), ("parquet", "x.parquet"),
  ):  # fmt: skip
    source = _open(kind, tmp_path / name)
    assert len(source) == 5
    record = source.record(3)
    assert record.captions == {"omni": ("a small cube 3",)}
    assert record.fields["label_name"] == "ball"
    assert _grey(source, 3) == 60


# --------------------------------------------------------------------- energon
def test_energon_says_what_it_does_not_run(tmp_path):
  import yaml

  spec = WRITERS["energon"](tmp_path, samples(4))
  assert len(_open("energon", spec.path)) == 4
  with pytest.raises(ConfigError, match="has the splits train, val"):
    _open("energon", spec.path, split="val")
  meta = tmp_path / ".nv-meta"
  for content, message in (
    ({"sample_loader": "loader.py:load"}, "names code"),
    (["x"], "expected a mapping"),
  ):
    (meta / "dataset.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=message):
      _open("energon", spec.path)
  (meta / "dataset.yaml").unlink()
  parts = {"split_parts": {"train": ["x-{0..1}.tar"]}}
  (meta / "split.yaml").write_text(yaml.safe_dump(parts))
  assert len(_open("energon", spec.path)) == 4
  parts = {"split_parts": {"train": ["../x-0.tar"]}}
  (meta / "split.yaml").write_text(yaml.safe_dump(parts))
  with pytest.raises(ConfigError, match="leaves the folder"):
    _open("energon", spec.path)


def test_options_of_a_kind_reach_the_record(tmp_path):
  spec = WRITERS["csv"](tmp_path, samples(3))
  spec = dataclasses.replace(spec, captions={"vision": "caption"})
  record = open_source(config_of(a=spec), "a").record(2)
  assert record.captions["vision"] == ("a small cube 2",)
  assert np.isfinite(record.fields["label"])


# -------------------------------------------------------- large sets, stores
def test_rows_that_fill_the_memory_are_told_of(tmp_path, capsys, monkeypatch):
  _write(tmp_path, **{"a.csv": "image,caption\nx.png,a\ny.png,b\n"})
  _open("csv", tmp_path / "a.csv")
  assert "memory" not in capsys.readouterr().err
  monkeypatch.setattr("mico_jax.data.sources.rows._LARGE", 1000)
  _open("csv", tmp_path / "a.csv")
  assert "mico-jax data convert --from csv --path" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["imagefolder", "files", "hf_disk"])
def test_folders_of_a_store_are_refused_with_a_way_out(kind):
  spec = SourceConfig(kind=kind, path="gs://bucket/set")
  ways = "mico-jax data convert --from|copy the folder to a local disk"
  with pytest.raises(ConfigError, match=ways):
    open_source(config_of(a=spec), "a")
