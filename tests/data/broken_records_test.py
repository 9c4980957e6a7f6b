"""One bad record among good ones: named, counted, replaced, in every door."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile

import numpy as np
import pytest

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data import build
from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.gallery import evaluation_batches
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.sources import open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  write_manifest,
  write_tar,
)

BAD = 3  # the sample that is made bad, of 8
TASK = {"max_bad_fraction": 0.5}


def _npy(text: bytes, data: bytes = b"") -> bytes:
  """A .npy file with any header."""
  padded = text + b" " * (-(len(text) + 11) % 64) + b"\n"
  return (
    b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + data
  )


def _npz(folder, name="x", data=None):
  out = io.BytesIO()
  np.save(out, np.float32(3))
  with zipfile.ZipFile(folder / "x.npz", "w") as archive:
    archive.writestr(f"{name}.npy", out.getvalue() if data is None else data)


def _bomb(folder):
  """An array whose header promises 373 GiB."""
  shape = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100, 10**9)}"
  _npz(folder, data=_npy(shape.replace(b"10**9", b"1000000000"), b"\0" * 64))


def _objects(folder):
  _npz(
    folder,
    data=_npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
  )


def _edit(**fields):
  return lambda folder: fields


def _with(make, **fields):
  def apply(folder):
    make(folder)
    return fields

  return apply


def _fifo(folder):
  os.mkfifo(folder / "pipe.png")
  return {"image": "pipe.png"}


def _outside(folder):
  os.symlink("/etc/hostname", folder / "link.png")
  return {"image": "link.png"}


def _loop(folder):
  os.symlink("loop.png", folder / "loop.png")
  return {"image": "loop.png"}


def _folder(folder):
  (folder / "folder.png").mkdir()
  return {"image": "folder.png"}


KINDS = {
  "questions of a wrong type": _edit(questions=5),
  "question without an answer": _edit(questions=["why?"]),
  "question of numbers": _edit(questions=[[1, 2]]),
  "NUL in a name": _edit(image="a\0b.png"),
  "5,000 characters": _edit(image="x" * 5000 + ".png"),
  "10,000 folders": _edit(image="d/" * 10_000 + "x.png"),
  "a file as a folder": _edit(image="1.png/x"),
  "lone surrogate in a name": _edit(image="\ud800.png"),
  "lone surrogate in a caption": _edit(caption="a \ud800 cube"),
  "scalar array": _with(_npz, image="x.npz:x[0]"),
  "no such array": _with(_npz, image="x.npz:y"),
  "array of 373 GiB": _with(_bomb, image="x.npz:x"),
  "array of objects": _with(_objects, image="x.npz:x"),
  "negative index": _with(_npz, image="x.npz:x[-1]"),
  "pipe": _fifo,
  "folder": _folder,
  "link out of the folder": _outside,
  "link to itself": _loop,
  "path out of the folder": _edit(image="../../etc/hostname"),
  "number in place of a path": _edit(image=7),
  "mapping in place of a path": _edit(image={"path": "1.png"}),
  "caption of a wrong type": _edit(caption=17),
  "captions of a wrong type": _edit(captions={"omni": {"a": "b"}}),
  "negatives of a wrong type": _edit(negatives=3),
  "id of a wrong type": _edit(id=["s3"]),
  "split of a wrong type": _edit(split=2),
}


def _set(folder, kind):
  """A manifest of eight whose record 3 is bad."""
  path = write_manifest(folder)
  lines = path.read_text().splitlines()
  fields = json.loads(lines[BAD])
  fields.update(KINDS[kind](folder))
  lines[BAD] = json.dumps(fields)
  path.write_text("\n".join(lines))
  return manifest_source(path)


def _one_line(text):
  assert text
  assert "\n" not in text
  assert len(text) < 600
  return text


@pytest.mark.parametrize("kind", KINDS)
def test_training_replaces_it_and_names_it(tmp_path, kind):
  config = config_of(a=_set(tmp_path, kind), data=TASK, groups=("ti",))
  tokenizer = make_tokenizer(config.data.tokenizer)
  work = tmp_path / "run"
  pipeline = Pipeline(config, tokenizer, workdir=work, end_step=2)
  batches = [batch for _, _, batch in pipeline]
  (entry,) = read_bad_samples(str(work))  # two steps of four read all once
  assert (entry["source"], entry["index"]) == ("a", BAD)
  assert entry["substitute_index"] != BAD
  _one_line(entry["reason"])
  seen = [
    int(value)
    for batch in batches
    for value in batch["inputs"]["image"][:, 0, 0, 0, 0]
  ]
  wanted = [20 * i for i in range(8) if i != BAD]
  assert sorted(seen) == sorted([*wanted, 20 * entry["substitute_index"]])
  assert pipeline.bad_samples.count == 1
  assert sum(pipeline.bad_samples.modalities.values()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_counts_it_out(tmp_path, kind):
  config = config_of(a=_set(tmp_path, kind))
  ((batch, records),) = evaluation_batches(
    config, "a", batch_size=8, keys=("image",)
  )
  lost = [i for i, r in enumerate(records) if r is None]
  if "surrogate in a caption" in kind:  # the picture is good
    assert lost == []
  else:
    assert lost == [BAD]
    assert batch["weight"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_packing_leaves_it_out(tmp_path, kind):
  report = build.build(_set(tmp_path, kind), tmp_path / "out")
  if "surrogate in a caption" in kind:  # a text is packed as it is
    assert report.count == 8
    return
  assert report.count == 7
  ((name, reason),) = report.skipped
  assert name
  _one_line(reason)
  assert sum(report.kinds.values()) == 1
  config = config_of(a=report.source)
  ((batch, records),) = evaluation_batches(
    config, "a", batch_size=7, keys=("image",)
  )
  assert [r and r.id for r in records] == [
    f"s{i}" for i in range(8) if i != BAD
  ]
  assert batch["weight"].all()


@pytest.mark.parametrize(
  "line",
  [
    b"[1, 2]",
    b"7",
    b"{",
    b"null",
    b"[" * 20_000,
    b'{"caption": "caf\xe9", "image": "1.png"}',
    b"\x00\x01",
  ],
)
def test_a_line_that_is_no_record(tmp_path, line, capsys):
  path = write_manifest(tmp_path)
  lines = path.read_bytes().splitlines()
  lines[BAD] = line
  path.write_bytes(b"\n".join(lines))
  config = config_of(a=manifest_source(path), data=TASK, groups=("ti",))
  tokenizer = make_tokenizer(config.data.tokenizer)
  list(Pipeline(config, tokenizer, workdir=tmp_path, end_step=2))
  (entry,) = read_bad_samples(str(tmp_path))
  assert (entry["index"], entry["modalities"]) == (BAD, ["record"])
  assert "line 4" in _one_line(entry["reason"])
  if not line.startswith(b'{"'):
    assert "1 of 8 lines are no JSON objects" in capsys.readouterr().err


@pytest.mark.parametrize("what", [{}, {"max_file_bytes": 200}])
def test_a_file_that_is_too_large(tmp_path, what):
  path = write_manifest(tmp_path)
  (tmp_path / "3.png").write_bytes(png(60) + b"\0" * 1000)
  config = config_of(
    a=manifest_source(path), data={**TASK, **what}, groups=("ti",)
  )
  tokenizer = make_tokenizer(config.data.tokenizer)
  list(Pipeline(config, tokenizer, workdir=tmp_path, end_step=2))
  found = read_bad_samples(str(tmp_path))
  assert [e["index"] for e in found] == ([BAD] if what else [])
  if what:
    assert "exceed data.max_file_bytes=200" in found[0]["reason"]


def test_no_good_record_is_an_error(tmp_path):
  path = write_manifest(tmp_path, 2, image=["no.png", "no.png"])
  with pytest.raises(DecodeError, match=r"none of 2 samples.*s0") as error:
    build.build(manifest_source(path), tmp_path / "out")
  _one_line(str(error.value))
  assert not list((tmp_path / "out").iterdir())
  with pytest.raises(ConfigError, match="shards=9 must be from 1"):
    build.build(manifest_source(write_manifest(tmp_path)), tmp_path, shards=9)


# ------------------------------------------------ what is good of a bad sample
def _half(tmp_path, groups, bad="audio"):
  extra = {bad: ["nope"] * 4 + [f"{i}.png" for i in range(4, 8)]}
  if bad == "audio":
    extra = {
      bad: ["nope.wav"] * 4 + [f"sound.tar:s{i}.wav" for i in range(4, 8)]
    }
  path = write_manifest(tmp_path, **extra)
  config = config_of(
    a=manifest_source(path), data={"max_bad_fraction": 1.0}, groups=groups
  )
  tokenizer = make_tokenizer(config.data.tokenizer)
  pipeline = Pipeline(config, tokenizer, workdir=tmp_path, end_step=2)
  return list(pipeline), pipeline.bad_samples, read_bad_samples(str(tmp_path))


def test_one_unreadable_modality_keeps_the_others(tmp_path):
  batches, counts, entries = _half(tmp_path, ("ti", "tia"))
  assert len(entries) == 4
  assert all(e["modalities"] == ["audio"] for e in entries)
  assert not any("substitute" in e for e in entries)
  assert (counts.count, counts.modalities["audio"]) == (4, 4)
  values = []
  for _, _, batch in batches:
    assert batch["present"]["image"].all()
    sounds = batch["present"]["audio"]
    assert not batch["inputs"]["audio"][~sounds].any()
    values += zip(
      batch["inputs"]["image"][:, 0, 0, 0, 0].tolist(), sounds, strict=True
    )
  assert sorted(values) == [(20 * i, i >= 4) for i in range(8)]


def test_a_sample_that_no_group_can_use_is_replaced(tmp_path):
  batches, counts, entries = _half(tmp_path, ("tia", "ta"))
  assert len(entries) == 4
  assert all(e["substitute_index"] >= 4 for e in entries)
  assert all(batch["present"]["audio"].all() for _, _, batch in batches)
  assert counts.modalities["audio"] == 4


# ------------------------------------------------------------------ other files
def _packed(tmp_path, n=8):
  path = write_manifest(tmp_path, n)
  report = build.build(manifest_source(path), tmp_path / "out")
  return report, report.files[0]


def test_a_damaged_array_record_is_refused_or_replaced(tmp_path):
  """A flipped byte anywhere: one line, or the run goes on without a sample."""
  report, file = _packed(tmp_path)
  with open(file, "rb") as stream:
    good = stream.read()
  tokenizer = None
  named = refused = 0
  for place in np.linspace(0, len(good) - 1, 40).astype(int):
    data = bytearray(good)
    data[place] ^= 0x55
    with open(file, "wb") as stream:
      stream.write(data)
    config = config_of(a=report.source, data=TASK, groups=("ti",))
    tokenizer = tokenizer or make_tokenizer(config.data.tokenizer)
    work = tmp_path / str(place)
    try:
      list(Pipeline(config, tokenizer, workdir=work, end_step=2))
    except ConfigError as error:
      _one_line(str(error))
      refused += 1
    else:
      named += len(read_bad_samples(str(work)))
  assert named > 5
  assert refused < 35


@pytest.mark.parametrize("left", [0, 100, 0.5, 0.95, -1])
def test_a_cut_array_record_is_one_line(tmp_path, left):
  report, file = _packed(tmp_path)
  with open(file, "rb") as stream:
    good = stream.read()
  size = int(left * len(good)) if 0 < left < 1 else left
  with open(file, "wb") as stream:
    stream.write(good[:size])
  with pytest.raises(ConfigError, match="not readable as ArrayRecord") as error:
    open_source(config_of(a=report.source), "a")
  _one_line(str(error.value))


def _webdataset(tmp_path, text):
  members = []
  for i in range(8):
    members.append((f"{i}.png", png(20 * i)))
    members.append((f"{i}.txt", b"a small cube"))
    members.append((f"{i}.json", text if i == BAD else b"{}"))
  write_tar(tmp_path / "x.tar", members)
  return SourceConfig(kind="webdataset", path=str(tmp_path / "x.tar"))


@pytest.mark.parametrize(
  "text", [b"[1]", b"5", b"null", b"{", b"[" * 20_000, b'{"questions": 5}']
)
def test_json_of_a_webdataset_that_is_no_object(tmp_path, text):
  config = config_of(a=_webdataset(tmp_path, text), data=TASK, groups=("ti",))
  tokenizer = make_tokenizer(config.data.tokenizer)
  list(Pipeline(config, tokenizer, workdir=tmp_path, end_step=2))
  (entry,) = read_bad_samples(str(tmp_path))
  assert (entry["index"], entry["modalities"]) == (BAD, ["record"])
  _one_line(entry["reason"])


def test_a_filter_does_not_hide_a_broken_sample(tmp_path):
  spec = _webdataset(tmp_path, b"[1]")
  spec = dataclasses.replace(spec, where={"fold": 1})
  source = open_source(config_of(a=spec), "a")
  assert len(source) == 1  # the others say no fold
  with pytest.raises(DecodeError, match="expected a JSON object, got list"):
    source.record(0)


def test_a_field_that_is_said_twice_is_no_guess(tmp_path):
  path = tmp_path / "m.jsonl"
  lines = [
    '\ufeff{"id": "a", "caption": "one"}',
    '{"id": "b", "caption": "one", "caption": "two"}',
    '{"id": "c", "captions": {"vision": "one", "vision": "two"}}',
  ]
  path.write_text("\n".join(lines))
  source = open_source(config_of(a=manifest_source(path)), "a")
  assert source.record(0).id == "a"
  for index, name in ((1, "caption"), (2, "vision")):
    with pytest.raises(DecodeError, match=f"'{name}' stands twice"):
      source.record(index)
