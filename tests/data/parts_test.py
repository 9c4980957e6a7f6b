"""Manifest lines for parts of files: what they name is what is read."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from mico_jax.config import Config, DataConfig, SourceConfig
from mico_jax.data import parts
from mico_jax.data.sources import open_source


def lines_of(folder, monkeypatch, capsys, *argv):
  monkeypatch.chdir(folder)
  parts.main(list(argv))
  text = capsys.readouterr().out
  (folder / "set.jsonl").write_text(text)
  return [json.loads(line) for line in text.splitlines()]


def records(folder, split, **options):
  spec = SourceConfig(
    kind="manifest", path=str(folder / "set.jsonl"), split=split, **options
  )
  source = open_source(Config(data=DataConfig(sources={"a": spec})), "a")
  return [source.record(i) for i in range(len(source))]


def test_entries(tmp_path, monkeypatch, capsys):
  arrays = {
    "train_x": np.arange(12.0).reshape(3, 4),
    "train_y": np.array([1, 0, 1]),
    "test_x": np.arange(8.0).reshape(2, 4) + 50,
    "test_y": np.array([0, 1]),
    "classes": np.array(["ill", "well"]),
  }
  np.savez(tmp_path / "beats.npz", **arrays)
  lines = lines_of(
    *(tmp_path, monkeypatch, capsys, "entries", "beats.npz"),
    *("--splits", "train", "test", "--media", "signal={split}_x"),
    *("--field", "state={split}_y", "--names", "state=classes"),
    *("--captions", "an ill heart", "a sound one"),
  )
  assert lines[3] == {
    "id": "test0",
    "signal": "beats.npz:test_x[0]",
    "state": "ill",
    "caption": "an ill heart",
    "split": "test",
  }
  for split, count in (("train", 3), ("test", 2)):
    found = records(tmp_path, split)
    assert len(found) == count
    for i, record in enumerate(found):
      want = arrays[f"{split}_x"][i]
      np.testing.assert_array_equal(record.media["signal"](), want)
      assert record.fields["state"] == ["ill", "well"][arrays[f"{split}_y"][i]]


def test_pixels(tmp_path, monkeypatch, capsys):
  cube = np.arange(24.0).reshape(3, 4, 2)
  mask = np.arange(12).reshape(3, 4) % 5 == 0
  labels = np.arange(12).reshape(3, 4)
  np.savez(tmp_path / "scene.npz", cube=cube, labels=labels, mask=mask)
  lines_of(
    *(tmp_path, monkeypatch, capsys, "pixels", "scene.npz"),
    *("--media", "hyperspectral=cube", "--field", "label=labels"),
    *("--test", "mask"),
  )
  for split, wanted in (("train", ~mask), ("test", mask)):
    found = records(tmp_path, split)
    places = [(r.fields["row"], r.fields["column"]) for r in found]
    assert sorted(places) == sorted(zip(*np.nonzero(wanted), strict=True))
    for record, place in zip(found, places, strict=True):
      assert record.fields["label"] == labels[place]
      middle = record.media["hyperspectral"]()[7, 7]
      np.testing.assert_array_equal(middle, cube[place])


def test_windows_and_rows(tmp_path, monkeypatch, capsys):
  rows = [f"{i},{i % 2}" for i in range(10)]
  (tmp_path / "load.csv").write_text("\n".join(["a,b", *rows]))
  lines_of(
    *(tmp_path, monkeypatch, capsys, "windows", "load.csv"),
    *("--media", "timeseries", "--length", "4", "--step", "2"),
    *("--rows", "train=0:8", "--rows", "test=6:10"),
  )
  found = {
    split: [
      r.media["timeseries"]().decode().split() for r in records(tmp_path, split)
    ]
    for split in ("train", "test")
  }
  assert found["train"] == [["a,b", *rows[i : i + 4]] for i in (0, 2, 4)]
  assert found["test"] == [["a,b", *rows[6:]]]
  lines_of(
    *(tmp_path, monkeypatch, capsys, "rows", "load.csv"),
    *("--media", "tabular", "--field", "b"),
  )
  found = records(tmp_path, "train")
  assert [r.fields["b"] for r in found] == list("0101010101")
  assert found[3].media["tabular"]() == b"a,b\n3,1\n"


ARRAYS = ("entries", "a.npz", "--media", "signal=x")
TABLE = ("windows", "a.csv", "--media", "timeseries", "--length", "4")


@pytest.mark.parametrize(
  ("argv", "words"),
  [
    ((*ARRAYS[:3], "signl=x"), "unknown modality 'signl'; known: image"),
    ((*ARRAYS[:3], "signal=z"), "no array 'z', but x, y, names"),
    ((*ARRAYS, "--field", "y"), "'y'; expected NAME=VALUE"),
    ((*ARRAYS, "--field", "l=names"), "different numbers: {'x': 3, 'l': 2}"),
    (
      (*ARRAYS, "--field", "l=y", "--names", "l=names"),
      r"l 2 has none of \['cat', 'dog'\]",
    ),
    (
      (*ARRAYS, "--field", "l=y", "--names", "l=names", "--captions", "a cat"),
      "1 captions; expected one for each name",
    ),
    ((*ARRAYS, "--names", "l=names"), "names of 'l', which is none"),
    (
      ("pixels", "a.npz", "--media", "hyperspectral=x", "--test", "y"),
      "rows and columns differ",
    ),
    ((*TABLE, "--rows", "train=0:3"), "holds no window of 4 of its 5 rows"),
    ((*TABLE, "--rows", "train=0:6"), "holds no window of 4 of its 5 rows"),
    ((*TABLE, "--rows", "train"), "expected SPLIT=FIRST:END|NAME=VALUE"),
    (("rows", "a.csv", "--media", "tabular", "--field", "c"), "no column 'c'"),
    (("rows", "b.csv", "--media", "tabular"), "No such file"),
  ],
)
def test_what_is_wrong_is_said(argv, words, tmp_path, monkeypatch, capsys):
  np.savez(
    tmp_path / "a.npz",
    x=np.zeros((3, 4)),
    y=np.arange(3),
    names=np.array(["cat", "dog"]),
  )
  (tmp_path / "a.csv").write_text("a,b\n" + "1,2\n" * 5)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit):
    parts.main(list(argv))
  assert re.search(words, capsys.readouterr().err)
