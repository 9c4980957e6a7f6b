"""`data convert | inspect | stats | verify`, sources by --from and --path."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex

import numpy as np
import pytest
from PIL import Image

from mico_jax import config as config_lib
from mico_jax.cli.main import main
from mico_jax.data.sources import open_source
from mico_jax.run.commands.entries import source_entries
from mico_jax.testing.tiny_data import config_of, png, wav, write_manifest
from mico_jax.testing.tiny_sources import WRITERS, samples


def _run(capsys, *argv, status=0):
  assert main([str(a) for a in argv]) == status
  return capsys.readouterr()


def _json(capsys, *argv, status=0):
  return json.loads(_run(capsys, *argv, "--json", status=status).out)


def _flags(spec):
  """The arguments that name a source of the table."""
  flags = ["--from", spec.kind, "--path", spec.path]
  for key, field in spec.fields.items():
    flags += ["--field", f"{key}={field}"]
  for name, value in spec.options.items():
    flags += ["--option", f"{name}={json.dumps(value)}"]
  return [*flags, *(["--root", spec.root] if spec.root else [])]


def _picture(seed, size=(48, 32), kind="png"):
  """A picture with structure."""
  values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
  image = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
  out = io.BytesIO()
  image.save(out, kind, quality=90)
  return out.getvalue()


@pytest.mark.parametrize("kind", WRITERS)
def test_every_source_by_flags(kind, capsys, tmp_path):
  """Convert, read back by the printed config, and verify."""
  spec = WRITERS[kind](tmp_path / "set", samples(4))
  split = "" if kind not in ("energon",) else "train"
  base = [*_flags(spec), *(["--split", split] if split else [])]
  out = tmp_path / "out [1]"
  result = _json(capsys, "data", "convert", *base, "--out", out)
  assert (result["samples"], result["skipped"]) == (4, 0)
  texts = [
    a.removeprefix("--config.").replace("NAME", "a")
    for a in shlex.split(result["config"])
  ]
  config = config_lib.override(config_of(a=config_lib.SourceConfig()), texts)
  source = open_source(config, "a")
  assert [source.record(i).id for i in range(4)] == ["s0", "s1", "s2", "s3"]
  checked = _json(capsys, "data", "verify", *base)
  assert (checked["read"], checked["broken"]) == (4, 0)
  _run(
    capsys, "data", "verify", *base, "--sha256", checked["sha256"], "--samples",
    2,
  )  # fmt: skip
  said = _run(capsys, "data", "verify", *base, "--sha256", "0" * 64, status=2)
  assert checked["sha256"] in said.err


def test_verify_lists_what_is_broken(capsys, tmp_path):
  (tmp_path / "m").mkdir()
  path = write_manifest(
    tmp_path / "m", 6, audio=["sound.tar:s0.wav"] * 5 + ["sound.tar:x.wav"],
    caption=["a", "b", "", "d", "e", "f"],
  )  # fmt: skip
  (path.parent / "1.png").write_bytes(b"<html>404</html>")
  (path.parent / "3.png").unlink()
  base = ["data", "verify", "--from", "manifest", "--path", path]
  result = _json(capsys, *base, status=1)
  assert result["broken"] == 4
  kinds = {(e["id"], e["modality"]) for e in result["errors"]}
  assert kinds == {
    ("s1", "image"), ("s2", "omni caption"), ("s3", "image"), ("s5", "audio"),
  }  # fmt: skip
  out = _run(capsys, *base, status=1).out
  assert "s1 (data[1]): image: " in out
  assert "broken: 4" in out


def test_verify_needs_the_unit_of_depth(capsys, tmp_path):
  path = write_manifest(tmp_path, 2, depth=["0.png", "1.png"])
  base = ["data", "verify", "--from", "manifest", "--path", path]
  said = _run(capsys, *base, status=2).err
  assert "depth_unit is empty" in said
  grey = io.BytesIO()
  Image.fromarray(np.full((8, 8), 700, np.uint16)).save(grey, "png")
  for i in range(2):
    (tmp_path / f"d{i}.png").write_bytes(grey.getvalue())
  path = write_manifest(tmp_path, 2, depth=["d0.png", "d1.png"])
  _run(capsys, *base, "--depth-unit", "millimetre")


def test_inspect(capsys, tmp_path):
  path = write_manifest(tmp_path, 5)
  (tmp_path / "2.png").unlink()
  base = ["data", "inspect", "--from", "manifest", "--path", path]
  result = _json(capsys, *base, "--sheet", tmp_path / "sheet.png")
  assert (result["samples"], result["looked_at"]) == (5, 5)
  media = {row["modality"]: row for row in result["media"]}
  assert media["image"]["samples"] == 4
  assert media["image"]["broken"] == 1
  assert media["image"]["width"]["median"] == 32
  assert media["image"]["types"] == {".png": 4}
  assert media["audio"]["seconds"]["least"] == pytest.approx(2000 / 16000)
  assert media["audio"]["seconds"]["largest"] == pytest.approx(2400 / 16000)
  (captions,) = result["captions"]
  assert (captions["kind"], captions["samples"]) == ("omni", 5)
  assert captions["words"]["median"] == 4
  fields = {row["field"]: row for row in result["fields"]}
  assert fields["label"] == {
    "field": "label", "samples": 5, "example": "0", "type": "int",
  }  # fmt: skip
  with Image.open(tmp_path / "sheet.png") as sheet:
    assert sheet.width > 300
  text = _run(capsys, *base).out
  for word in ("fields", "media", "captions", "broken", "0.125..0.1375..0.15"):
    assert word in text


def test_stats(capsys, tmp_path):
  path = write_manifest(tmp_path, 8, id=[*"abcdefg", "a"])
  for i in range(8):
    (tmp_path / f"{i}.png").write_bytes(_picture(i))
  (tmp_path / "4.png").write_bytes(_picture(1))  # the same file
  (tmp_path / "5.png").write_bytes(
    _picture(2, (96, 64), "jpeg")
  )  # the same look
  (tmp_path / "6.png").write_bytes(png(7))  # flat ones have no hash
  (tmp_path / "7.png").write_bytes(png(9))
  base = ["data", "stats", "--from", "manifest", "--path", path]
  result = _json(capsys, *base, "--distance", 3)
  groups = result["duplicates"]
  assert groups["ids"] == {"a": [0, 7]}
  assert groups["files"] == {"image": [[1, 4]]}
  assert groups["pictures"] == {"image": [[1, 4], [2, 5]]}
  assert result["coverage"] == {"audio + image + omni caption": 8}
  out = _run(capsys, *base).out
  assert "equal ids: a: samples 0, 7" in out
  assert "  samples 1, 4" in out


def test_stats_counts_tokens(capsys):
  result = _json(
    capsys, "data", "stats", "--config", "demo", "--source", "train",
    "--samples", 3, "--config.data.sources.train.size=8",
  )  # fmt: skip
  kinds = {row["kind"]: row for row in result["captions"]}
  assert kinds["omni"]["tokens"]["least"] >= kinds["omni"]["words"]["least"] > 2


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["verify"], "give both --from KIND and --path PATH"),
    (["verify", "--from", "csv"], "give both"),
    (["stats", "--from", "zip", "--path", "x"], "known: omniworld, manifest"),
    (["verify", "--config", "demo", "--path", "x"], "not both"),
    (
      ["verify", "--from", "csv", "--path", "x", "--option", "a"],
      "--option a: write NAME=VALUE",
    ),
    (
      ["verify", "--from", "csv", "--path", "x", "--option", "a=1"],
      "unknown config key 'a'",
    ),
    (["inspect", "--config", "demo", "--sheet", "x.jpg"], "must end in .png"),
    (["convert", "--from", "csv", "--path", "x.csv", "--out", "o"], "x.csv"),
  ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, argv, message):
  monkeypatch.chdir(tmp_path)
  said = _run(capsys, "data", *argv, status=2).err
  assert message in said
  assert said.count("\n") == 1


def test_unmapped_media_are_named(capsys, tmp_path):
  path = write_manifest(tmp_path, 3, rgb=["0.png", "1.png", "2.png"])
  base = ["data", "convert", "--from", "manifest", "--path", path]
  out = _run(capsys, *base, "--out", tmp_path / "out").out
  assert (
    "not written, as no modality is mapped to it: rgb (3 samples); map it with "
    "--field MODALITY=rgb"
  ) in out
  tar = WRITERS["webdataset"](tmp_path / "set", samples(2))
  config = dataclasses.replace(tar, path=str(tmp_path / "set" / "x-0.tar"))
  import tarfile

  with tarfile.open(config.path, "a") as archive:
    info = tarfile.TarInfo("s0.seg.npy")
    archive.addfile(info, io.BytesIO())
  result = _json(
    capsys, "data", "convert", *_flags(config), "--out", tmp_path / "tar"
  )
  assert result["unmapped"] == {"*.seg.npy": 1}


def test_entries_of_every_source_are_the_same(tmp_path):
  """What `embed` and `score` read, whatever the format."""
  rows = samples(3)
  for kind, write in WRITERS.items():
    spec = dataclasses.replace(write(tmp_path / kind, rows), split="")
    if kind == "energon":
      spec = dataclasses.replace(spec, split="train")
    entries = source_entries(spec, ("image", "audio"))
    assert [(e.id, e.key, e.index) for e in entries] == [
      (row.id, "image", i) for i, row in enumerate(rows)
    ]
    assert [e.item().value() for e in entries] == [row.data for row in rows]


def test_sound_of_a_table(capsys, tmp_path):
  """AudioCaps: files named by ids, five captions each, start times ignored."""
  lines = ["audiocap_id,youtube_id,start_time,caption"]
  for i in range(2):
    (tmp_path / f"y{i}.wav").write_bytes(wav(4000))
    lines += [f"{5 * i + j},y{i},30,sound {i} text {j}" for j in range(5)]
  (tmp_path / "test.csv").write_text("\n".join(lines))
  base = ["--from", "csv", "--path", tmp_path / "test.csv"]
  base += ["--option", 'files={"audio": "{youtube_id}.wav"}']
  result = _json(capsys, "data", "inspect", *base)
  assert result["samples"] == 2
  assert result["captions"][0]["texts"] == 10
  _run(capsys, "data", "verify", *base)
