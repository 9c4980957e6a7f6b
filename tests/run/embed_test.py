"""Embedding many files: what hangs, what fails, what repeats."""

from __future__ import annotations

import dataclasses
import json
import os
import time

import numpy as np
import pytest

import mico_jax
from mico_jax.data.guard import StalledDecoder
from mico_jax.modalities import MODALITIES, file_spec
from mico_jax.run.commands.embed import embed_files
from mico_jax.run.commands.entries import file_entries, source_entries
from mico_jax.testing import tiny_checkpoint
from mico_jax.testing.tiny_data import manifest_source, png, write_manifest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  root = tmp_path_factory.mktemp("model")
  tiny_checkpoint.save_tiny(root / "run")
  return mico_jax.load(str(root / "run"))


def _files(tmp_path, n=4):
  paths = [tmp_path / f"{i}.png" for i in range(n)]
  for i, path in enumerate(paths):
    path.write_bytes(png(20 * i))
  return [str(path) for path in paths]


def _rows(out):
  lines = out.with_suffix(".jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def _errors(report):
  with open(report.errors, encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def test_a_file_that_stalls_twice_is_left_out(tmp_path, model, monkeypatch):
  image, data = MODALITIES["image"], model.preparer.config.data

  def decode(raw, geometry):
    if raw == png(40):
      time.sleep(5)
    return image.decode(raw, geometry)

  monkeypatch.setitem(
    MODALITIES, "image", dataclasses.replace(image, decode=decode)
  )
  config = dataclasses.replace(
    model.preparer.config, data=dataclasses.replace(data, timeout=1.0)
  )
  monkeypatch.setattr(model.preparer, "config", config)
  names, out = _files(tmp_path), tmp_path / "out.npy"
  entries = file_entries([file_spec(name) for name in names])
  with pytest.raises(StalledDecoder, match=r"2\.png .*data\.timeout=1 s"):
    embed_files(model, entries, out)
  report = embed_files(model, entries, out)
  assert (report.items, report.failed) == (3, 1)
  (error,) = _errors(report)
  assert error["path"] == names[2]
  assert "stalled twice" in error["error"]
  assert [row["path"] for row in _rows(out)] == [
    n for n in names if n != names[2]
  ]


def test_bad_files_among_good_ones(tmp_path, model):
  names = _files(tmp_path)
  os.mkfifo(tmp_path / "pipe.png")
  (tmp_path / "folder.png").mkdir()
  bad = [
    str(tmp_path / "pipe.png"),
    str(tmp_path / "folder.png"),
    str(tmp_path / "a\0b.png"),
    str(tmp_path / ("x" * 5000 + ".png")),
    f"{names[0]}/x.png",
    str(tmp_path / "\udcff.png"),
  ]
  entries = file_entries([file_spec(name) for name in [*bad, *names]])
  report = embed_files(model, entries, tmp_path / "out.npy")
  assert (report.items, report.failed) == (4, len(bad))
  assert [e["index"] for e in _errors(report)] == list(range(len(bad)))
  assert all("\n" not in e["error"] for e in _errors(report))


def test_bad_records_and_equal_ids_of_a_manifest(tmp_path, model):
  path = write_manifest(
    tmp_path, 5, id=["same"] * 5, questions=[None, 5, None, None, None]
  )
  (tmp_path / "3.png").write_bytes(b"broken")
  source = manifest_source(path)
  entries = source_entries(source, ("image",))
  out = tmp_path / "out.npy"
  report = embed_files(model, entries, out)
  assert (report.items, report.failed) == (3, 2)
  rows = _rows(out)
  assert [(r["id"], r["source"], r["index"]) for r in rows] == [
    ("same", str(path), i) for i in (0, 2, 4)
  ]
  vectors = np.load(out)
  for row, vector in zip(rows, vectors, strict=True):
    alone = model.embed(image=[str(tmp_path / f"{row['index']}.png")])
    np.testing.assert_allclose(alone["image"][0], vector, atol=1e-5)
  assert [(e["index"], e["modality"]) for e in _errors(report)] == [
    *((1, "image"), (3, "image")),
  ]


def test_beams_are_bounded(model):
  for beams in (0, 65, 10**9):
    with pytest.raises(ValueError, match="at least 1 and at most 64"):
      model.caption(image=[png(1)], num_beams=beams)
