"""Conversions: resumed after any kill, nothing lost without a word."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.convert import convert
from mico_jax.data.media_files import describe_medium, file_type
from mico_jax.data.perceptual import alike, difference_hash
from mico_jax.data.plain_fields import fields_of, storable
from mico_jax.data.records import Record
from mico_jax.data.samples import load_inputs
from mico_jax.data.shard_writers import WRITERS
from mico_jax.data.sources import open_source
from mico_jax.data.survey import in_order
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  wav,
  write_manifest,
)


def _opened(spec):
  return open_source(config_of(a=spec), "a")


def _bytes(folder):
  return {
    p.name: p.read_bytes()
    for p in pathlib.Path(folder).iterdir()
    if p.is_file()
  }


class _Killed(BaseException):
  """As a kill: nothing catches it."""


@pytest.mark.parametrize("to", ["array_record", "webdataset"])
def test_interrupted_conversions_end_in_the_same_bytes(to, tmp_path):
  spec = manifest_source(write_manifest(tmp_path, 9))
  source = _opened(spec)
  options = {"to": to, "shard_samples": 2}
  convert(source, spec, tmp_path / "one", **options)
  counts = []
  for stop in (3, 1, 5):

    def progress(done, total, stop=stop, seen=[]):  # noqa: B006
      del total
      seen.append(done)
      if len(seen) == stop:
        raise _Killed

    with pytest.raises(_Killed):
      convert(source, spec, tmp_path / "two", progress=progress, **options)
    counts.append(len(_bytes(tmp_path / "two")))
    assert not list((tmp_path / "two").glob(".*"))
  assert counts == sorted(counts)
  assert counts[0] < 5
  report = convert(source, spec, tmp_path / "two", **options)
  assert report.resumed == counts[-1]
  assert report.samples == 9
  assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
  again = convert(source, spec, tmp_path / "two", **options)
  assert (again.resumed, again.samples) == (5, 9)


KILLED = """
import os, signal, sys
from mico_jax.config import SourceConfig, Config, DataConfig
from mico_jax.data.convert import convert
from mico_jax.data.shard_writers import WRITERS
from mico_jax.data.sources import open_source
spec = SourceConfig(kind="manifest", path=sys.argv[1])
source = open_source(Config(data=DataConfig(sources={"a": spec})), "a")
def progress(done, total):
  if done == int(sys.argv[3]):
    os.kill(os.getpid(), signal.SIGKILL)
convert(source, spec, sys.argv[2], shard_samples=2, progress=progress)
"""


def test_a_real_kill(tmp_path):
  spec = manifest_source(write_manifest(tmp_path, 5))
  command = [sys.executable, "-P", "-c", KILLED, spec.path, tmp_path / "out"]
  killed = subprocess.run([*map(str, command), "4"], check=False)
  assert killed.returncode == -9
  source = _opened(spec)
  report = convert(source, spec, tmp_path / "out", shard_samples=2)
  assert report.samples == 5
  convert(source, spec, tmp_path / "whole", shard_samples=2)
  assert _bytes(tmp_path / "out") == _bytes(tmp_path / "whole")


def test_what_cannot_be_read_is_counted(tmp_path):
  path = write_manifest(
    tmp_path, 6, audio=["sound.tar:s0.wav"] * 4 + ["gone.wav"] * 2
  )
  (tmp_path / "1.png").unlink()
  (tmp_path / "5.png").unlink()
  lines = path.read_text().splitlines()
  lines[2] = "no json"
  lines[3] = '{"id": "s3", "caption": "words only"}'
  path.write_text("\n".join(lines))
  spec = manifest_source(path)
  report = convert(_opened(spec), spec, tmp_path / "out", shard_samples=4)
  assert (report.samples, report.skipped, report.bare) == (4, 2, 1)
  assert report.reasons == {"audio": 2, "image": 2, "record": 1}
  assert [(e[0], e[1]) for e in report.errors] == [
    ("s1", "image"), ("sample 2", "record"), ("s4", "audio"),
    ("s5", "image"), ("s5", "audio"),
  ]  # fmt: skip
  records = _opened(report.source)
  kept = [records.record(i) for i in range(4)]
  assert [(r.id, sorted(r.media)) for r in kept] == [
    ("s0", ["audio", "image"]), ("s1", ["audio"]), ("s3", []),
    ("s4", ["image"]),
  ]  # fmt: skip
  with pytest.raises(ConfigError, match=r"sample s1: image: .*1\.png"):
    convert(_opened(spec), spec, tmp_path / "strict", strict=True)
  assert not _bytes(tmp_path / "strict")


def test_nothing_readable_and_other_conversions(tmp_path):
  spec = manifest_source(write_manifest(tmp_path, 2))
  source = _opened(spec)
  convert(source, spec, tmp_path / "out")
  for changes, options in (
    ({}, {"to": "webdataset"}),
    ({"size": 1}, {}),
    ({"root": ".."}, {}),  # other files of the same names
    ({"require": ("image",)}, {}),
  ):
    other = dataclasses.replace(spec, **changes)
    with pytest.raises(ConfigError, match="of another conversion"):
      convert(_opened(other), other, tmp_path / "out", **options)
  (tmp_path / "free").mkdir()
  taken = tmp_path / "free" / "train-00000-of-00007.tar"
  taken.write_bytes(b"")
  with pytest.raises(ConfigError, match=r"00007\.tar exists"):
    convert(source, spec, tmp_path / "free")
  for i in range(2):
    (tmp_path / f"{i}.png").unlink()
  (tmp_path / "sound.tar").unlink()
  with pytest.raises(DecodeError, match="none of 2 samples could be read"):
    convert(_opened(spec), spec, tmp_path / "none")


def test_arrays_of_omniworld(tmp_path):
  spec = SourceConfig(kind="omniworld", size=2, split="test")
  config = config_of(a=spec)
  source = open_source(config, "a")
  with pytest.raises(ConfigError, match=r"is an array.*--to array_record"):
    convert(source, spec, tmp_path / "tar", to="webdataset")
  report = convert(source, spec, tmp_path / "out")
  assert report.lost == {"scene": 2}
  after = config_of(a=report.source)
  written = open_source(after, "a")
  for i in range(2):
    old, new = source.record(i), written.record(i)
    assert set(new.media) == set(old.media)
    assert new.captions == old.captions
    assert tuple(new.questions) == tuple(old.questions)
    assert dict(new.negatives) == dict(old.negatives)
    for key in old.media:
      one = load_inputs(config, old, "a", (key,), None)[key]
      two = load_inputs(after, new, "a", (key,), None)[key]
      np.testing.assert_array_equal(one, two)


def test_frames_of_several_files_need_array_record(tmp_path):
  path = write_manifest(tmp_path, 2, video=[["0.png", "1.png"]] * 2)
  spec = manifest_source(path, frame_rate=4.0)
  with pytest.raises(ConfigError, match="--to array_record"):
    convert(_opened(spec), spec, tmp_path / "out", to="webdataset")
  report = convert(_opened(spec), spec, tmp_path / "records")
  record = _opened(report.source).record(0)
  assert record.media["video"]() == [png(0), png(20)]
  assert report.source.frame_rate == 4.0  # which the files do not hold


def test_tar_members_are_what_others_read(tmp_path):
  names = ["0.png", "1.png", "0.png"]
  path = write_manifest(tmp_path, 3, depth=names, id=["s.0", "s1", "s1"])
  spec = manifest_source(path, depth_unit="metre")
  report = convert(_opened(spec), spec, tmp_path / "out", to="webdataset")
  with tarfile.open(report.files[0]) as tar:
    names = tar.getnames()
    assert names == [
      f"{key}.{suffix}"
      for key in ("s%2E0", "s1", "s1~2")
      for suffix in ("json", "png", "wav", "depth.png")
    ]
    ids = [json.load(tar.extractfile(n))["id"] for n in names[::4]]
  assert ids == ["s.0", "s1", "s1"]
  assert report.source.fields == {"depth": "depth.png"}
  assert report.source.depth_unit == "metre"


@pytest.mark.parametrize(
  ("suffixes", "fields"),
  [
    ({"jpg", "png", "depth.png"}, {"depth": "depth.png"}),
    ({"depth.png", "depth.npy"}, None),
    ({"jpg", "image.tif"}, None),  # the one would hide the other
  ],
)
def test_a_tar_has_one_field_for_each_modality(suffixes, fields):
  if fields is not None:
    assert WRITERS["webdataset"].fields(suffixes) == fields
    return
  with pytest.raises(ConfigError, match="is stored both as"):
    WRITERS["webdataset"].fields(suffixes)


def test_fields_that_json_cannot_hold():
  array = np.float32([1.5])
  record = Record("a", fields={"n": array, "t": b"\xef\xbb\xbfx", "m": {1: 2}})
  assert fields_of(record) == ({"n": [1.5], "t": "x", "m": {"1": 2}}, [])
  for value in (b"\xff", object(), [object()]):
    assert fields_of(Record("a", fields={"x": value, "y": 1})) == (
      {"y": 1},
      ["x"],
    )
  sound = (np.int16([1, -2, 3]), 16000)
  assert file_type(storable(sound)) == ".wav"
  with pytest.raises(DecodeError, match="sound of int64"):
    storable((np.int64([1]), 16000))


# ------------------------------------------------------------ sizes and hashes
def test_media_describe_themselves(cases_dir):
  assert describe_medium(png(3))["width"] == 32
  assert describe_medium(wav(8000))["seconds"] == pytest.approx(0.5)
  clip = (cases_dir / "av_one_file" / "av.mp4").read_bytes()
  facts = describe_medium(clip)
  assert facts["type"] == ".mp4"
  assert facts["seconds"] > 0
  assert facts["height"] > 0
  assert describe_medium([png(1), png(2)])["frames"] == 2
  assert describe_medium(b"<html>") == {"bytes": 6, "type": "?"}
  for n in range(0, len(clip), 997):
    assert describe_medium(clip[:n])["bytes"] == n


def _rows(levels):
  """A picture whose columns have these grey values."""
  grey = np.repeat(np.uint8([levels]), 8, 0).repeat(4, 0).repeat(4, 1)
  out = io.BytesIO()
  Image.fromarray(grey).save(out, "png")
  return out.getvalue()


def test_the_hash_is_the_documented_one():
  falling = _rows([90, 80, 70, 60, 50, 40, 30, 20, 10])
  assert difference_hash(falling) == 2**64 - 1
  rising = _rows([10, 20, 30, 40, 50, 60, 70, 80, 90])
  assert difference_hash(rising) == 0
  one = _rows([90, 10, 20, 30, 40, 50, 60, 70, 80])
  assert difference_hash(one) == int.from_bytes(b"\x80" * 8, "big")
  assert difference_hash(png(7)) is None  # flat
  assert difference_hash(b"nothing") is None


def test_pictures_that_look_alike():
  rng = np.random.default_rng(0)
  hashes = {i: int(rng.integers(0, 2**63)) for i in range(60)}
  hashes[60] = hashes[3]
  hashes[61] = hashes[5] ^ (1 << 60 | 1 << 30 | 1)
  hashes[62] = hashes[7] ^ (1 << 60 | 1 << 40 | 1 << 20 | 1)
  assert alike(hashes) == [[3, 60]]
  assert alike(hashes, 2) == [[3, 60]]
  assert alike(hashes, 3) == [[3, 60], [5, 61]]
  far = [
    [i, j]
    for i in hashes
    for j in hashes
    if i < j and (hashes[i] ^ hashes[j]).bit_count() <= 3
  ]
  assert far == [[3, 60], [5, 61]]
  with pytest.raises(ValueError, match="distance=4"):
    alike(hashes, 4)


def test_samples_come_in_order():
  import threading
  import time

  names = set()

  def call(i):
    names.add(threading.current_thread().name)
    time.sleep(0.002 * (i % 3))
    return i

  assert list(in_order(call, range(40), 4)) == list(range(40))
  assert len(names) > 1
