"""Manifests of the official files of data sets: splits, labels, refusals."""

from __future__ import annotations

import collections
import json
import math

import numpy as np
import pytest
from scipy import io as scipy_io

from mico_jax.cli.main import main
from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig
from mico_jax.data.build.sets import SETS
from mico_jax.data.build.sets.ego4d_imu import windows_of
from mico_jax.data.build.sets.indian_pines import CLASSES, WAVELENGTHS
from mico_jax.data.build.sets.manifest import build
from mico_jax.data.sources import open_source
from mico_jax.testing.official_sets import lines_of, write_set


def built(name, tmp_path, **options):
  """Lines of the manifest of a stand-in by split, and its note."""
  copy = str(write_set(name, tmp_path / name))
  report = build(name, SETS[name](**options), copy, copy, other_split=True)
  by_split = collections.defaultdict(list)
  for line in lines_of(report.manifest):
    by_split[line["split"]].append(line)
  assert {k: len(v) for k, v in by_split.items()} == report.samples
  note = json.loads((tmp_path / name / "set.json").read_text())
  assert note["samples"] == report.samples
  return by_split, note


def read(tmp_path, name, split, key):
  """What a source reads of the samples of a split."""
  path = str(tmp_path / name / "manifest.jsonl")
  spec = SourceConfig(kind="manifest", path=path, split=split)
  source = open_source(Config(data=DataConfig(sources={"s": spec})), "s")
  return [source.record(i).media[key]() for i in range(len(source))]


def test_people_of_sysu(tmp_path):
  lines, _ = built("sysu_mm01", tmp_path)
  people = lambda split: {x["identity"] for x in lines[split]}
  assert people("train") == {"0001", "0002", "0004"}  # with those of val_id
  assert people("test") == {"0003", "0005"}
  for line in lines["train"] + lines["test"]:
    key = "thermal" if line["camera"] in ("cam3", "cam6") else "image"
    other = {"thermal": "image", "image": "thermal"}[key]
    assert line[key].startswith(f"{line['camera']}/{line['identity']}/")
    assert other not in line
  places = {x["camera"]: x["place"] for x in lines["test"]}
  assert places["cam2"] == places["cam3"]
  assert len(set(places.values())) == 5


def test_people_of_regdb(tmp_path):
  lines, note = built("regdb", tmp_path)
  people = {k: {x["identity"] for x in v} for k, v in lines.items()}
  assert not people["train"] & people["test"]
  assert len(people["train"]) == len(people["test"]) == 2
  kinds = collections.Counter(
    (split, "thermal" in x) for split, v in lines.items() for x in v
  )
  assert set(kinds.values()) == {4}
  assert len(note["files"]["idx/train_visible_1.txt"]) == 64
  with pytest.raises(ConfigError, match=r"no idx/train_visible_2\.txt"):
    built("regdb", tmp_path, trial=2)


def test_pixels_of_indian_pines(tmp_path):
  lines, _ = built("indian_pines", tmp_path, seed=3)
  folder = tmp_path / "indian_pines"
  truth = scipy_io.loadmat(folder / "Indian_pines_gt.mat")["indian_pines_gt"]
  place = lambda line: tuple(map(int, line["id"].split(",")))
  train, test = (set(map(place, lines[x])) for x in ("train", "test"))
  assert not train & test
  assert train | test == set(map(tuple, np.argwhere(truth).tolist()))
  for line in lines["train"] + lines["test"]:
    assert line["class_name"] == CLASSES[truth[place(line)] - 1]
  drawn = collections.Counter(x["class_name"] for x in lines["train"])
  for number in (2, 11, 16):
    assert drawn[CLASSES[number - 1]] == math.ceil(
      0.1 * (truth == number).sum()
    )
  again, _ = built("indian_pines", tmp_path, seed=3)
  assert again == lines
  other, _ = built("indian_pines", tmp_path, seed=4)
  assert other["train"] != lines["train"]
  # Bands of water are left out: 104 to 108, 150 to 163, and 220.
  assert len(WAVELENGTHS) == 200
  assert (WAVELENGTHS[0], WAVELENGTHS[102]) == (400.0, 1378.1)
  assert WAVELENGTHS[103] == round(400 + 2100 * 108 / 219, 1)
  assert WAVELENGTHS[-1] == round(400 + 2100 * 218 / 219, 1)


def test_molecules_of_pcqm(tmp_path):
  lines, note = built("pcqm4mv2", tmp_path)
  gaps = np.array([x["homolumogap"] for x in lines["train"]])
  np.testing.assert_allclose(gaps, 5 + 0.25 * np.arange(8))
  assert note["mean"] == pytest.approx(gaps.mean())
  assert note["scale"] == pytest.approx(gaps.std())
  assert [x["id"] for x in lines["valid"]] == ["8", "9", "10"]
  assert lines["valid"][0]["graph"] == "c1ccccc1"


def test_payments(tmp_path):
  lines, note = built("credit_card_fraud", tmp_path)
  assert [x["id"] for x in lines["test"]] == ["16", "17", "18", "19"]
  fraud = [
    int(x["id"])
    for v in lines.values()
    for x in v
    if x["class_name"] == "fraud"
  ]
  assert fraud == [1, 6, 11, 16]
  columns = {name: values for name, *values in note["columns"]}
  assert columns["Time"] == columns["Class"] == []
  # Quantiles are of the payments to learn from, whose amounts end at 25.
  assert (columns["Amount"][0], columns["Amount"][-1]) == (10.0, 25.0)
  text = read(tmp_path, "credit_card_fraud", "test", "tabular")[0].decode()
  assert text.splitlines()[1].split(",")[-2] == "26"


def test_temperatures(tmp_path):
  lines, _ = built("global_temperature", tmp_path)
  folder = tmp_path / "global_temperature"
  parts = {
    part: np.load(folder / f"temp_global_hourly_{part}.npy")[..., 0]
    for part in ("train", "val", "test")
  }
  before = {"train": 0, "val": 130, "test": 210}
  for part, array in parts.items():
    starts = range(0, len(array) - 71, 24)
    found = read(tmp_path, "global_temperature", part, "timeseries")
    assert len(found) == len(lines[part]) == 3 * len(starts)
    for line, data in zip(lines[part], found, strict=True):
      first = int(line["id"].split("/")[1]) - before[part]
      assert first in starts
      rows = [x.split(",") for x in data.decode().splitlines()[1:]]
      want = array[first : first + 72, line["station"]]
      np.testing.assert_allclose([float(x[1]) for x in rows], want, rtol=1e-6)
  dates = read(tmp_path, "global_temperature", "val", "timeseries")[0].decode()
  assert dates.splitlines()[1].startswith("2019-01-06T10:00,")  # hour 130


def test_windows_of_motion(tmp_path):
  """Against `numpy.interp`, with a gap, and a channel that nothing measured."""
  times = np.sort(np.random.default_rng(0).uniform(0, 11_000, 2600))
  times = np.delete(times, np.arange(500, 620))
  values = np.stack([np.sin(times / 80), times, 0 * times + np.nan], axis=1)
  windows, lost = windows_of(times, values)
  assert windows.shape == (2 - lost, 1000, 3)
  grid = times[0] + 5.0 * np.arange(2000).reshape(2, 1000)
  i = np.searchsorted(times, grid)
  wide = times[np.clip(i, 1, None)] - times[np.clip(i, 1, None) - 1] > 15
  assert lost == (wide.mean(axis=1) > 0.1).sum()
  kept = wide.mean(axis=1) <= 0.1
  want = np.where(wide, np.nan, np.interp(grid, times, values[:, 0]))[kept]
  np.testing.assert_allclose(windows[..., 0], want, atol=1e-6)
  assert np.isnan(windows[..., 2]).all()


def test_videos_of_ego4d(tmp_path, capsys):
  lines, note = built("ego4d_imu", tmp_path)
  videos = {k: {x["video_uid"] for x in v} for k, v in lines.items()}
  assert not videos["train"] & videos["test"]
  # One video has two scenarios, another's acceleration is in feet.
  assert videos["train"] | videos["test"] == set("abcdefg")
  assert (
    "not about 9.8 m/s2 are left out, such as feet" in capsys.readouterr().err
  )
  assert note["scenarios"] == ["Cooking", "Walking"]
  (window, *_) = read(tmp_path, "ego4d_imu", "test", "imu")
  assert window.shape == (1000, 6)
  assert 9 < np.nanmedian(window[:, 1]) < 11  # acc_y
  assert np.isnan(window[:, 4]).all()  # gyro_y


# -------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
  ("name", "lost", "words"),
  [
    ("sysu_mm01", "exp/val_id.txt", "exp/train_id.txt, exp/val_id.txt"),
    ("regdb", "idx/test_thermal_1.txt", "idx/train_visible_1.txt a path and"),
    ("indian_pines", "Indian_pines_gt.mat", "indian_pines_gt [145, 145]"),
    ("ego4d_imu", "ego4d.json", "videos with video_uid and scenarios"),
    ("pcqm4mv2", "split.npz", "arrays train and valid, made of split_dict"),
    ("credit_card_fraud", "creditcard.csv", "columns Time, V1 ... V28"),
    (
      "global_temperature",
      "temp_global_hourly_val.npy",
      "[hours, stations, 1]",
    ),
  ],
)
def test_a_missing_file_tells_the_layout(name, lost, words, tmp_path, capsys):
  folder = write_set(name, tmp_path / "copy")
  (folder / lost).unlink()
  argv = ["data", "build", "--protocol", name, "--from", str(folder)]
  assert main([*argv, "--other-split"]) == 2
  said = capsys.readouterr().err
  assert f"there is no {lost}" in said
  assert "Expected: " in said
  assert words in said
  assert not (folder / "manifest.jsonl").exists()


def test_files_that_are_not_as_published(tmp_path):
  def wrong(name, path, content):
    folder = write_set(name, tmp_path / f"{name}{path.replace('/', '')}")
    (folder / path).write_bytes(content)
    with pytest.raises(ConfigError) as raised:
      build(name, SETS[name](), str(folder), str(folder), other_split=True)
    return str(raised.value)

  assert "person 1 is in training and in testing" in wrong(
    "sysu_mm01", "exp/test_id.txt", b"1,3"
  )
  assert "holds 'a,b'" in wrong("sysu_mm01", "exp/val_id.txt", b"a,b")
  assert "has a line 'Visible/0/x'" in wrong(
    "regdb", "idx/train_visible_1.txt", b"Visible/0/x\n"
  )
  assert "split.npz is not readable" in wrong(
    "pcqm4mv2", "split.npz", b"PK pickled"
  )
  assert "has the columns a, b" in wrong(
    "credit_card_fraud", "creditcard.csv", b"a,b\n1,2\n"
  )
  objects = write_set("global_temperature", tmp_path / "objects")
  name = "temp_global_hourly_val.npy"
  np.save(objects / name, np.array([{"a": 1}]), allow_pickle=True)
  assert "not readable" in wrong(  # nothing is unpickled
    "global_temperature", name, (objects / name).read_bytes()
  )
  np.save(objects / name, np.full((90, 3, 1), 290.0))
  assert "290 to 290: not Celsius" in wrong(
    "global_temperature", name, (objects / name).read_bytes()
  )


def test_another_number_of_samples_is_refused(tmp_path, capsys):
  folder = write_set("regdb", tmp_path / "copy")
  argv = ["data", "build", "--protocol", "regdb"]
  assert main([*argv, "--from", str(folder)]) == 2
  assert "8 samples of 'train', expected 4120" in capsys.readouterr().err
  assert not (folder / "manifest.jsonl").exists()
  assert main(argv) == 2
  said = capsys.readouterr().err
  assert "1. ask the publisher" in said
  assert "idx/train_visible_1.txt    a path" in said
  more = ["--from", str(folder), "--other-split"]
  assert main([*argv, *more, "--set", "regdb.trial=11"]) == 2
  assert "at least 1 and at most 10" in capsys.readouterr().err
  assert main([*argv, *more, "--set", "other.trial=1"]) == 2
  assert "expected regdb.OPTION=VALUE" in capsys.readouterr().err


def test_a_manifest_elsewhere_needs_the_root_of_the_copy(tmp_path, capsys):
  folder, out = write_set("regdb", tmp_path / "copy"), tmp_path / "out"
  argv = ["data", "build", "--protocol", "regdb", "--from", str(folder)]
  argv += ["--out", str(out), "--other-split", "--json"]
  assert main(argv) == 0
  command = json.loads(capsys.readouterr().out)["train"]
  assert f"--config.data.sources.test.root={folder}" in command
  spec = SourceConfig(kind="manifest", path=str(out / "manifest.jsonl"))
  config = lambda s: Config(data=DataConfig(sources={"s": s}))
  inside = open_source(config(spec), "s").record(0)
  with pytest.raises(ValueError, match="leaves the folder"):
    inside.media["image"]()
  spec = SourceConfig(kind="manifest", path=spec.path, root=str(folder))
  assert open_source(config(spec), "s").record(0).media["image"]()[:2] == b"BM"
