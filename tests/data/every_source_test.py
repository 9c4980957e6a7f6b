"""What holds for every kind of source, by table."""

from __future__ import annotations

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.convert import convert
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import SOURCES, open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import config_of, png
from mico_jax.testing.tiny_sources import WRITERS, Sample, samples

# Files that a sample names by a path; the others hold the bytes themselves.
PATHS = ("manifest", "imagefolder", "csv", "coco", "vast")
# Kinds whose ids may repeat: names of files and keys of shards cannot.
REPEATED = ("array_record", "parquet", "hf_disk", "webdataset", "energon",
            "mds")  # fmt: skip
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def test_the_table_is_complete():
  assert set(WRITERS) | {"omniworld", "tfds"} == set(SOURCES)


def _opened(kind, tmp_path, rows, **options):
  spec = WRITERS[kind](tmp_path / "set", rows)
  config = config_of(
    a=spec, groups=("ti",), data={"max_bad_fraction": 1.0}, **options
  )
  return config, open_source(config, "a")


def _batches(config, steps=2):
  pipeline = Pipeline(
    config, make_tokenizer(config.data.tokenizer), end_step=steps
  )
  return [batch for _, _, batch in pipeline], pipeline.bad_samples


def _records(source):
  return [source.record(i) for i in range(len(source))]


def _picture(config, source, index):
  record = source.record(index)
  return load_inputs(config, record, "a", ("image",), None)["image"]


@pytest.fixture(scope="module")
def manifest_batch(tmp_path_factory):
  folder = tmp_path_factory.mktemp("manifest")
  config, _ = _opened("manifest", folder, samples(8), batch=8)
  return _batches(config, 1)[0][0]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_batch_is_that_of_a_manifest(kind, tmp_path, manifest_batch):
  """Ids, texts, pictures and their order, by the door of training."""
  config, source = _opened(kind, tmp_path, samples(8), batch=8)
  assert [r.id for r in _records(source)] == [f"s{i}" for i in range(8)]
  assert [r.fields["label"] for r in _records(source)] == [0, 1] * 4
  (batch,), bad = _batches(config, 1)
  assert not bad.count
  for key in ("inputs", "text"):
    for name, array in manifest_batch[key].items():
      np.testing.assert_array_equal(batch[key][name], array)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_index_is_pinned(kind, tmp_path):
  config, source = _opened(kind, tmp_path, samples(6))
  assert open_source(config, "a").sha256 == source.sha256
  _, more = _opened(kind, tmp_path / "more", samples(7))
  assert more.sha256 != source.sha256
  spec = dataclasses.replace(config.data.sources["a"], sha256=more.sha256)
  with pytest.raises(ConfigError, match="changed: index SHA-256"):
    open_source(config_of(a=spec), "a")


@pytest.mark.parametrize("kind", [k for k in WRITERS if k != "array_record"])
def test_where_selects(kind, tmp_path):
  rows = [
    dataclasses.replace(s, extra=(("fold", f"f{i % 3}"),))
    for i, s in enumerate(samples(6))
  ]
  spec = WRITERS[kind](tmp_path, rows)
  spec = dataclasses.replace(spec, where={"fold": ("f0", "f2")})
  source = open_source(config_of(a=spec), "a")
  assert [r.id for r in _records(source)] == ["s0", "s2", "s3", "s5"]
  nothing = config_of(a=dataclasses.replace(spec, where={"fold": "none"}))
  with pytest.raises(ConfigError, match=r"data\.sources\.a"):
    open_source(nothing, "a")
  spec = dataclasses.replace(spec, where={}, size=2)
  assert len(open_source(config_of(a=spec), "a")) == 2


# Kinds whose samples `split` does not choose.
WHOLE = ("webdataset", "energon", "array_record", "annotations")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_split_chooses_samples_or_that_is_told(kind, tmp_path, capsys):
  rows = [
    dataclasses.replace(s, extra=(("split", ("train", "val")[i % 2]),))
    for i, s in enumerate(samples(4))
  ]
  source = open_source(config_of(a=WRITERS[kind](tmp_path / "x", rows)), "a")
  chosen = len(_records(source)) == 2
  said = "sample of split 'val' is read, although split='train'"
  assert chosen is not (said in capsys.readouterr().err)
  assert chosen is (kind not in WHOLE)


@pytest.mark.parametrize(
  ("kind", "fields", "message"),
  [
    ("manifest", {"imgae": "rgb"}, r"fields names 'imgae'; known: image, vid"),
    ("webdataset", {"subtitle": "sub"}, r"'subtitle'.*texts.*\.captions"),
    ("csv", {"label": "class"}, r"'label'.*a label in evaluation\.label"),
    ("array_record", {"image": "rgb"}, r"holds its media by modality"),
  ],
)
def test_fields_that_nothing_reads(kind, fields, message, tmp_path):
  spec = WRITERS[kind](tmp_path / "x", samples(2))
  spec = dataclasses.replace(spec, fields=fields)
  with pytest.raises(ConfigError, match=message):
    open_source(config_of(a=spec), "a")


def test_scenes_are_not_mapped():
  for field in ("fields", "captions"):
    spec = SourceConfig(size=2, **{field: {"image": "x"}})
    with pytest.raises(ConfigError, match="fields or captions; remove them"):
      open_source(config_of(a=spec), "a")


@pytest.mark.parametrize("kind", REPEATED)
def test_equal_ids_stay_apart(kind, tmp_path, capsys):
  rows = [dataclasses.replace(s, id=f"k{i // 4}") for i, s in
          enumerate(samples(8))]  # fmt: skip
  if kind in ("webdataset", "energon"):  # keys repeat across shards alone
    rows = [dataclasses.replace(s, id=f"k{i % 4}") for i, s in enumerate(rows)]
  seen = []
  for mib in (0, 64):
    spec = WRITERS[kind](tmp_path / str(mib), rows)
    config = config_of(a=spec, batch=8, groups=("ti",), data={"cache_mib": mib})
    seen.append(np.concatenate([b["inputs"]["image"] for b in
                                _batches(config)[0]]))  # fmt: skip
  np.testing.assert_array_equal(*seen)
  assert len({picture.tobytes() for picture in seen[0]}) == 8
  if kind != "array_record":  # whose ids are in the records alone
    assert " ids occur " in capsys.readouterr().err


ODD = ("a b", "ünï [1]", "c,d", "it's {0}", "100%", "x" * 120)


@pytest.mark.parametrize("kind", WRITERS)
def test_odd_names(kind, tmp_path):
  rows = [Sample(name, png(20 * i)) for i, name in enumerate(sorted(ODD))]
  config, source = _opened(kind, tmp_path, rows)
  assert [r.id for r in _records(source)] == [r.id for r in rows]
  for i in range(len(rows)):
    assert (_picture(config, source, i) == 20 * i).all()


@pytest.mark.parametrize("kind", WRITERS)
def test_names_with_dots(kind, tmp_path):
  rows = [Sample(f"v1.{i} x", png(20 * i)) for i in range(4)]
  spec = WRITERS[kind](tmp_path, rows)
  if "key_dot" in SOURCES[kind].reads:
    if kind != "energon":
      with pytest.raises(ConfigError, match="key_dot='last'"):
        open_source(config_of(a=spec), "a")
    spec = dataclasses.replace(spec, key_dot="last")
  config = config_of(a=spec)
  source = open_source(config, "a")
  assert [r.id for r in _records(source)] == [r.id for r in rows]
  for i in range(4):
    assert (_picture(config, source, i) == 20 * i).all()


@pytest.mark.parametrize("kind", WRITERS)
def test_pictures_are_upright(kind, tmp_path, cases_dir):
  """EXIF orientation and transparency survive every way of storing."""
  folder = cases_dir / "exif_orientation"
  rows = [
    Sample("a", (folder / "exif6.jpg").read_bytes(), suffix=".jpg"),
    Sample("b", (folder / "exif6_upright.png").read_bytes()),
  ]
  config, source = _opened(kind, tmp_path, rows)
  one, two = (_picture(config, source, i).astype(int) for i in range(2))
  assert abs(one - two).mean() < 3  # a JPEG and a PNG of one picture
  assert abs(one[:, ::-1, :] - two).mean() > 5
  folder = cases_dir / "alpha_hidden_colour"
  names = ("alpha", "alpha_black", "alpha_on_white")
  rows = [Sample(n, (folder / f"{n}.png").read_bytes()) for n in names]
  config, source = _opened(kind, tmp_path / "alpha", rows)
  ids = [r.id for r in _records(source)]
  shown = {ids[i]: _picture(config, source, i) for i in range(3)}
  np.testing.assert_array_equal(shown["alpha"], shown["alpha_black"])
  np.testing.assert_array_equal(shown["alpha"], shown["alpha_on_white"])


@pytest.mark.parametrize("kind", WRITERS)
def test_broken_pictures_are_replaced(kind, tmp_path):
  rows = samples(8)
  rows[2] = dataclasses.replace(rows[2], data=HTML)
  rows[5] = dataclasses.replace(rows[5], data=None)
  rows[6] = dataclasses.replace(rows[6], data=rows[6].data[:40])
  config, source = _opened(kind, tmp_path, rows, batch=8)
  without = {"files"}  # a group without a medium is no sample of it
  assert len(source) == 8 - (kind in without)
  for i, record in enumerate(_records(source)):
    if record.id in ("s2", "s5", "s6"):
      with pytest.raises(DecodeError) as error:
        _picture(config, source, i)
      assert "\n" not in str(error.value)
  batches, bad = _batches(config, 1)
  assert bad.count == 3 - (kind in without)
  grey = batches[0]["inputs"]["image"][:, 0, 0, 0, 0].tolist()
  assert set(grey) <= {0, 20, 60, 80, 140}


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("path", ["../x.png", "/etc/x.png", "a/../../../x.png"])
def test_paths_stay_in_the_folder(kind, path, tmp_path):
  for folder in (tmp_path, tmp_path / "set"):
    folder.mkdir(exist_ok=True)
    (folder / "x.png").write_bytes(png(1))
  rows = samples(2)
  rows[0] = dataclasses.replace(
    rows[0], id=path.removesuffix(".png"), data=None
  )
  config, source = _opened(kind, tmp_path, rows)
  if kind == "imagefolder":
    assert [r.id for r in _records(source)] == ["s1"]
    return
  if kind == "coco" and path == "../x.png":
    path = ""  # inside its root
  index = [r.id for r in _records(source)].index(rows[0].id)
  if path:
    with pytest.raises(DecodeError, match=r"leaves the folder.*\.root"):
      _picture(config, source, index)


@pytest.mark.parametrize("kind", PATHS)
def test_links_stay_in_the_folder(kind, tmp_path):
  (tmp_path / "secret.png").write_bytes(png(1))
  config, source = _opened(kind, tmp_path, samples(2))
  for file in (tmp_path / "set").rglob("s0.png"):
    file.unlink()
    file.symlink_to(tmp_path / "secret.png")
  source = open_source(config, "a")
  with pytest.raises(DecodeError, match="leaves the folder"):
    _picture(config, source, 0)


@pytest.mark.parametrize("kind", WRITERS)
def test_captions(kind, tmp_path):
  """Several stay one sample; none and empty ones are never an empty text."""
  rows = samples(4)
  rows[0] = dataclasses.replace(rows[0], captions=("one", "two"))
  rows[1] = dataclasses.replace(rows[1], captions=())
  rows[2] = dataclasses.replace(rows[2], captions=("",))
  config, source = _opened(kind, tmp_path, rows, batch=4)
  assert len(source) == 4
  texts = [r.captions.get("omni", ()) for r in _records(source)]
  assert texts[0] == ("one", "two")
  assert texts[1] == ()
  assert texts[2] in ((), ("",))
  _, bad = _batches(config, 1)
  assert bad.count == 2


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("to", ["array_record", "webdataset"])
def test_convert_keeps_everything(kind, to, tmp_path):
  rows = samples(5)
  rows[1] = dataclasses.replace(rows[1], captions=("one", "two"))
  rows[3] = dataclasses.replace(rows[3], id="v1.5 (x)")
  if "key_dot" in SOURCES[kind].reads:
    rows[3] = dataclasses.replace(rows[3], id="v1 x")
  config, source = _opened(kind, tmp_path, rows)
  spec = config.data.sources["a"]
  report = convert(source, spec, tmp_path / "out", to=to, shard_samples=2)
  assert (report.samples, report.skipped, len(report.files)) == (5, 0, 3)
  assert not report.unmapped
  after = config_of(a=report.source)
  written = open_source(after, "a")
  for i in range(5):
    old, new = source.record(i), written.record(i)
    assert new.captions == old.captions
    assert new.fields["label"] == old.fields["label"]
    if to == "webdataset":  # its id is the key, which has no dots
      assert new.fields["id"] == old.id
    else:
      assert new.id == old.id
    assert new.media["image"]() == old.media["image"]()


FUZZED = {
  "manifest": "m.jsonl",
  "webdataset": "x-0.tar",
  "array_record": "x.array_record",
  "imagefolder": "train/metadata.jsonl",
  "files": "s0.json",
  "csv": "set.csv",
  "coco": "annotations/captions_val2017.json",
  "vast": "annotations.json",
  "parquet": "train-0.parquet",
  "hf_disk": "data-00000-of-00001.arrow",
  "energon": ".nv-meta/split.yaml",
  "mds": "shard.00000.mds",
  "annotations": "set.json",
}


def _errors(config):
  """What opening a source and reading its samples says."""
  said = []
  try:
    source = open_source(config, "a")
  except ConfigError as error:
    return [str(error)]
  for i in range(len(source)):
    try:
      _picture(config, source, i)
    except DecodeError as error:
      said.append(str(error))
  return said


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_files_are_one_line(kind, tmp_path):
  """Cut, overwritten and replaced bytes: an error of the config or a sample."""
  spec = WRITERS[kind](tmp_path / "set", samples(3))
  path = tmp_path / "set" / FUZZED[kind]
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  damaged = [b"", b"\0" * 64, HTML, b"[[[[", b'{"images": 3}', b"\xff\xfe" * 9]
  damaged += [whole[:n] for n in rng.integers(1, len(whole), 4)]
  for _ in range(8):
    data = bytearray(whole)
    at = int(rng.integers(0, len(data)))
    data[at : at + 4] = rng.bytes(4)
    damaged.append(bytes(data))
  config = config_of(a=spec)
  for data in damaged:
    path.unlink()  # a mapped file keeps its former bytes
    path.write_bytes(data)
    assert not any("\n" in text for text in _errors(config))


@pytest.mark.parametrize("kind", ["imagefolder", "files", "csv", "coco", "vast",
                                  "parquet", "hf_disk", "energon",
                                  "mds", "annotations"])  # fmt: skip
def test_nothing_there_is_an_error_of_the_config(kind, tmp_path):
  spec = WRITERS[kind](tmp_path / "set", samples(2))
  shutil.rmtree(tmp_path / "set")
  with pytest.raises(ConfigError, match=r"data\.sources\.a") as error:
    open_source(config_of(a=spec), "a")
  assert "\n" not in str(error.value)


def test_pictures_of_the_table_differ():
  """So that the tests above can fail."""
  shown = set()
  for row in samples(8):
    with Image.open(io.BytesIO(row.data)) as image:
      shown.add(image.tobytes())
  assert len(shown) == 8
