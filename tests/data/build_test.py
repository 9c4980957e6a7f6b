"""Raw material to shards: what is cut, stored, named and read back."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
import types
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig
from mico_jax.config.fields import Range
from mico_jax.data import build
from mico_jax.data.build import engines
from mico_jax.data.build.inputs import ManifestInput, TarsInput, VideosInput
from mico_jax.data.build.job import Job
from mico_jax.data.build.raw import Raw
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages import STAGES, Stage
from mico_jax.data.build.stages.base import span_of
from mico_jax.data.build.stages.subtitles import cues
from mico_jax.data.sources import open_source
from mico_jax.modalities import MODALITIES, DecodeError, Geometry
from mico_jax.modalities.spatial import resize_smooth
from mico_jax.testing import raw_videos
from mico_jax.testing.media import file_of, greys
from mico_jax.testing.tiny_data import write_manifest, write_tar

GEOMETRY = Geometry(frames=4, size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("raw")
  raw_videos.write_videos(path, 15, 2.0)
  return path


def job_of(raw, out, *stages, options=None, **others):
  chosen = raw if not isinstance(raw, pathlib.Path) else VideosInput(str(raw))
  return Job(chosen, str(out), stages, options or {}, **others)


def read(report, **depth):
  """Records of a result, through the source that the report names."""
  config = Config(data=DataConfig(sources={"a": report.source}))
  source = open_source(config, "a")
  return {r.id: r for r in (source.record(i) for i in range(len(source)))}


def status(out):
  tables = sorted(pathlib.Path(out).glob("*.status.parquet"))
  return [row for t in tables for row in pq.read_table(t).to_pylist()]


def shards(out):
  return {p.name: p.read_bytes() for p in sorted(pathlib.Path(out).iterdir())}


CUT = ("shots", "clips", "h264", "audio")
SHORT = {"clips": {"min_seconds": 0.5}}


@pytest.fixture(scope="module")
def cut(folder, tmp_path_factory):
  out = tmp_path_factory.mktemp("cut") / "out"
  return build.run(job_of(folder, out, *CUT, options=SHORT, shards=3)), out


# ------------------------------------------------------------------ raw videos
def test_each_video_becomes_its_shots(cut):
  report, out = cut
  records = read(report)
  assert len(records) == report.count == 28
  assert sorted(records)[:4] == ["v000-000", "v000-001", "v001-000", "v001-001"]
  ((name, reason),) = report.skipped
  assert name == "v006"
  assert "cut short" in reason
  assert report.lacks == {"audio": 4}
  for i in raw_videos.SILENT:
    assert set(records[f"v{i:03d}-000"].media) == {"video"}
  rows = status(out)
  assert len(rows) == 29
  assert [r["id"] for r in rows if r["reason"]] == ["v006"]
  assert sum(r["lacks"] == "audio: the file has no sound" for r in rows) == 4
  for row in rows:
    if not row["reason"]:
      assert row["end"] - row["start"] == pytest.approx(1.0, abs=0.11)
      assert records[row["id"]].fields["span"] == [row["start"], row["end"]]


def test_a_shot_shows_one_scene_upright_with_its_sound(cut):
  records = read(cut[0])
  for name, number in (("v003-000", 6), ("v003-001", 7), ("v011-001", 23)):
    clip = MODALITIES["video"].decode(records[name].media["video"](), GEOMETRY)
    frames = clip.take(range(len(clip)))
    expected = np.stack(raw_videos.scene(number, 10))
    if "v011" in name:
      expected = expected.swapaxes(1, 2)[:, :, ::-1]
    assert frames.shape == expected.shape
    assert np.abs(frames.astype(int) - expected).mean() < 12, name
    sound = records[name].media["audio"]()
    samples, rate = soundfile.read(io.BytesIO(sound))
    assert (len(samples), rate) == (16000, 16000)
    assert 0.2 < np.abs(samples).max() < 0.7


def test_engines_and_orders_give_the_same_bytes(cut, folder, tmp_path):
  _, out = cut
  make = lambda name: job_of(
    folder, tmp_path / name, *CUT, options=SHORT, shards=3
  )
  ticks = []
  build.run(make("two"), workers=2, progress=lambda *x: ticks.append(x))
  assert ticks[-1] == (15, 15)
  assert shards(tmp_path / "two") == shards(out)
  for i in (2, 0, 1):
    report = build.run(make("array"), part=(i, 3))
  assert report.left == 0
  assert shards(tmp_path / "array") == shards(out)


DEVICE = """
import os, time

def load(options):
  seen = os.environ.get("CUDA_VISIBLE_DEVICES")
  def write(pictures):
    if any(p[0, 0, 0] < 3 for p in pictures):
      time.sleep(1e6)
    return [f"device {seen}" for _ in pictures]
  return write
"""


# Ray's modules and threads warn of their own.
@pytest.mark.filterwarnings("ignore")
def test_two_ray_workers_give_the_bytes_of_one_process(cut, folder, tmp_path):
  ray = pytest.importorskip("ray")
  (tmp_path / "device.py").write_text(DEVICE)
  # Ray counts GPUs and shows them; that this one is not there is not its care.
  ray.init(num_cpus=2, num_gpus=1, log_to_driver=False, include_dashboard=False)
  try:
    job = job_of(folder, tmp_path / "ray", *CUT, options=SHORT, shards=3)
    report = build.run(job, engine="ray", workers=2)
    assert shards(tmp_path / "ray") == shards(cut[1])
    assert report.count == cut[0].count
    strict = job_of(folder, tmp_path / "s", *CUT, options=SHORT, strict=True)
    with pytest.raises(ConfigError, match="v006"):
      build.run(strict, engine="ray")
    few = tmp_path / "few"
    raw_videos.write_videos(few, 3, 1.0)
    (few / "v001.mp4").write_bytes(file_of("mp4", greys([0] * 4, (48, 64))))
    options = {
      "vision_captions": {"model": f"python:{tmp_path / 'device.py'}:load"}
    }
    make = lambda name, gpus: job_of(
      few, tmp_path / name, "h264", "vision_captions", options=options,
      shards=3, gpus=gpus, timeout=15.0,
    )  # fmt: skip
    report = build.run(make("gpus", 0.5), engine="ray", workers=2)
    texts = {k: r.captions["vision"] for k, r in read(report).items()}
    assert texts == {"v000": ("device 0",), "v002": ("device 0",)}
    assert "not done within 15 s" in dict(report.skipped)["v001"]
    with pytest.raises(ConfigError, match="Ray knows of 1 GPUs"):
      build.run(make("more", 2.0), engine="ray", workers=1)
  finally:
    ray.shutdown()


def test_a_missing_engine_or_table_is_said_up_front(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(ConfigError, match=r"\[ray\]"):
    engines.ray_data(job_of(folder, tmp_path / "a"), [], 0, 1, print)
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  with pytest.raises(ConfigError, match=r"eval.*--status jsonl"):
    build.run(job_of(folder, tmp_path / "b", "audio"))
  assert not (tmp_path / "b").exists()
  few = tmp_path / "few"
  raw_videos.write_videos(few, 2, 1.0)
  report = build.run(job_of(few, tmp_path / "c", "audio", status="jsonl"))
  assert report.count == 2


# ------------------------------------------------------------------ exactness
def _ramp(seconds, rate=16000):
  """Samples that are all different in any second."""
  return ((np.arange(round(seconds * rate)) % 16000) - 8000).astype(
    np.float32
  ) / 32768


def _exact(times, values, seconds):
  return file_of(
    "mov",
    greys(values, (32, 32)),
    _ramp(seconds),
    codec="libx264",
    codec_options={"qp": "0", "bf": "2", "g": "250"},
    pixels="yuv420p",
    times=times,
    sound_codec="pcm_s16le",
  )


def _durations(data):
  import av

  with av.open(io.BytesIO(data)) as file:
    (stream,) = file.streams
    assert stream.time_base == Fraction(1, 90000)
    return sum(p.duration for p in file.demux(stream) if p.size)


def test_clips_share_no_sample_and_lose_none(tmp_path):
  values = [10 * i for i in range(24)]
  times = [40 * i for i in range(12)] + [480 + 160 * i for i in range(12)]
  (tmp_path / "raw").mkdir()
  (tmp_path / "raw" / "x.mov").write_bytes(_exact(times, values, 2.4))
  spans = [(0.0, 0.3701), (0.3701, 1.3), (1.3, 2.4)]
  raw_videos.write_hdvila(tmp_path / "clips.jsonl", ["x"], spans)
  raw = VideosInput(
    str(tmp_path / "raw"),
    metadata=str(tmp_path / "clips.jsonl"),
    layout="hdvila",
  )
  lossless = {"h264": {"crf": 0, "gop": 4}}
  report = build.run(
    job_of(raw, tmp_path / "out", "h264", "audio", options=lossless)
  )
  records = read(report)
  assert list(records) == ["x.0", "x.1", "x.2"]
  pieces = []
  for (start, end), record in zip(spans, records.values(), strict=True):
    start, end = round(start, 3), round(end, 3)
    data = record.media["audio"]()
    pieces.append(soundfile.read(io.BytesIO(data))[0])
    assert len(pieces[-1]) == round(end * 16000) - round(start * 16000)
    clip = Raw("clip", record.media["video"], key="video").video
    assert _durations(record.media["video"]()) == round(90000 * (end - start))
    inside = [t / 1000 for t in times if start < t / 1000 < end - 1e-6]
    at_start = max(t / 1000 for t in times if t / 1000 <= start + 1e-6)
    expected = [0.0, *(t - start for t in inside)]
    np.testing.assert_allclose(clip.times, expected, atol=2e-5)
    greyness = [f.mean() for _, f in clip.between(0, end)]
    wanted = [values[times.index(round(1000 * t))] for t in [at_start, *inside]]
    np.testing.assert_allclose(greyness, wanted, atol=2)
  np.testing.assert_array_equal(
    np.concatenate(pieces), _ramp(2.4).astype(np.float64)
  )


def test_frames_are_what_is_shown_at_their_time(tmp_path):
  times = [0, 100, 200, 700, 1500]
  data = _exact(times, [0, 50, 100, 150, 200], 2.3)
  (tmp_path / "raw").mkdir()
  (tmp_path / "raw" / "x.mov").write_bytes(data)
  job = job_of(
    tmp_path / "raw",
    tmp_path / "out",
    "frames",
    options={"frames": {"fps": 4, "size": 16}},
  )
  (record,) = read(build.run(job)).values()
  frames = record.media["video"]()
  clip = MODALITIES["video"].decode(frames, GEOMETRY)
  shown = clip.take(range(len(clip)))
  assert shown.shape[1:] == (16, 16, 3)
  # Of 2.3 s, at 0, 0.25, ..., 2.25 s: the last frame stays for 0.8 s.
  wanted = [0, 100, 100, 150, 150, 150, 200, 200, 200, 200]
  np.testing.assert_allclose(shown.mean(axis=(1, 2, 3)), wanted, atol=3)


def test_short_gops_and_even_sides(tmp_path):
  import av

  raw = tmp_path / "raw"
  raw.mkdir()
  data = file_of("mp4", greys(range(0, 240, 8), (50, 66)), codec="mpeg4")
  (raw / "x.mp4").write_bytes(data)
  options = {"h264": {"gop": 6, "size": 33}}
  report = build.run(
    job_of(raw, tmp_path / "o", "h264", options=options, format="webdataset")
  )
  (record,) = read(report).values()

  with av.open(io.BytesIO(record.media["video"]())) as file:
    (stream,) = file.streams
    assert (stream.height, stream.width) == (32, 44)
    keys = [p.is_keyframe for p in file.demux(stream) if p.size]
  assert keys == [i % 6 == 0 for i in range(30)]


@pytest.mark.parametrize("kind", ["flac", "opus"])
def test_sound_alone_is_cut_too(tmp_path, kind):
  raw = tmp_path / "raw"
  raw.mkdir()
  soundfile.write(raw / "x.wav", _ramp(4.0, 8000), 8000)
  options = {
    "audio": {"format": kind, "rate": 8000},
    "clips": {"min_seconds": 1, "max_seconds": 2.5},
  }
  report = build.run(
    job_of(raw, tmp_path / "o", "clips", "audio", options=options)
  )
  records = read(report)
  assert list(records) == ["x-000", "x-001"]
  lengths = [Raw("", r.media["audio"], key="audio").seconds
             for r in records.values()]  # fmt: skip
  np.testing.assert_allclose(lengths, [2.0, 2.0], atol=0.02)


# ------------------------------------------------------------------ lists
def test_a_csv_names_files_captions_and_spans(folder, tmp_path):
  rows = [
    ["name", "says", "from", "to", "more"],
    ["v000", "a bar moves", "0.5", "1.5", "x"],
    ["v001", "another", "0:00:00.25", "1.25", ""],
    ["absent", "lost", "0", "1", ""],
    ["v002", "bad", "later", "1", ""],
    ["v003", "behind", "1", "9", ""],
    ["v000", "again", "", "", ""],
  ]
  with open(tmp_path / "list.csv", "w", newline="") as file:
    csv.writer(file).writerows(rows)
  columns = {"stem": "name", "vision": "says", "start": "from", "end": "to"}
  raw = VideosInput(
    str(folder), metadata=str(tmp_path / "list.csv"), columns=columns
  )
  report = build.run(job_of(raw, tmp_path / "out", "h264", shards=1))
  records = read(report)
  assert list(records) == ["v000", "v000", "v001"] or len(records) == 2
  assert records["v001"].captions == {"vision": ("another",)}
  assert records["v001"].fields["span"] == [0.25, 1.25]
  assert report.source.captions == {"vision": "vision_caption"}
  reasons = dict(report.skipped)
  assert "no such file" in reasons["absent"]
  assert "expected a time" in reasons["v002"]
  assert "ends behind the file" in reasons["v003"]
  with pytest.raises(ConfigError, match="no line has the column"):
    VideosInput(
      str(folder),
      metadata=str(tmp_path / "list.csv"),
      columns={"stem": "names"},
    )


def test_the_layout_of_vast(folder, tmp_path):
  line = {
    "clip_id": "v002.3",
    "clip_span": ["00:00:00.500", "00:00:01.500"],
    "vision_cap": ["one", "two"],
    "audio_cap": ["a tone"],
    "vast_cap": "both",
    "subtitle": "hello",
    "url": "https://example.org",
  }
  (tmp_path / "list.json").write_text(json.dumps([line]))
  raw = VideosInput(
    str(folder), metadata=str(tmp_path / "list.json"), layout="vast"
  )
  (record,) = read(
    build.run(job_of(raw, tmp_path / "out", "frames", "audio"))
  ).values()
  assert record.id == "v002.3"
  assert record.captions == {
    "vision": ("one", "two"),
    "audio": ("a tone",),
    "omni": ("both",),
    "subtitle": ("hello",),
  }
  assert record.fields["metadata"] == {"url": "https://example.org"}
  assert len(record.media["audio"]()) > 1000


def test_tar_shards_of_a_download(folder, tmp_path):
  members = []
  for i in range(3):
    data = (folder / f"v00{i}.mp4").read_bytes()
    members += [
      (f"{i:05d}.mp4", data),
      (f"{i:05d}.txt", f"caption {i}".encode()),
      (f"{i:05d}.json", json.dumps({"key": str(i), "title": "t"}).encode()),
    ]
  write_tar(tmp_path / "00000.tar", members)
  (tmp_path / "00001.tar").write_bytes(
    (tmp_path / "00000.tar").read_bytes()[:3000]
  )
  report = build.run(
    job_of(
      TarsInput(str(tmp_path / "0*.tar")),
      tmp_path / "out",
      "frames",
      "audio",
      options={"frames": {"fps": 2}},
    )
  )
  records = read(report)
  assert sorted(records) == ["00000", "00001", "00002"]
  assert records["00001"].captions == {"omni": ("caption 1",)}
  assert records["00001"].fields["metadata"]["title"] == "t"
  assert len(records["00001"].media["video"]()) == 4
  ((name, reason),) = report.skipped
  assert (name, "cut short" in reason) == ("00001.tar", True)


def test_what_lies_beside_a_video(tmp_path):
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 2, 1.0)
  (raw / "v000.txt").write_text("beside")
  (raw / "v000.json").write_text('{"url": "u"}')
  (raw / "v001.json").write_text("{")
  job = job_of(VideosInput(str(raw), sidecars=True), tmp_path / "out")
  report = build.run(job)
  (record,) = read(report).values()
  assert record.captions == {"omni": ("beside",)}
  assert record.fields["metadata"] == {"url": "u"}
  assert record.media["video"]() == (raw / "v000.mp4").read_bytes()
  assert "not JSON" in dict(report.skipped)["v001"]


def test_subtitles_go_to_the_clip_of_their_middle(tmp_path):
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 2, 2.0)
  (raw / "v000.en.vtt").write_text(
    "WEBVTT\n\n00:00.200 --> 00:00.800\n<c>one</c>\n\n"
    "00:00.800 --> 00:01.300 align:start\none\ntwo &amp; more\n\n"
    "2\n00:00:01.500 --> 00:00:01.900\n<i>three</i>\n"
  )
  options = {"subtitles": {"language": "en"}, **SHORT}
  job = job_of(
    raw, tmp_path / "out", *CUT, "subtitles", options=options, shards=1
  )
  report = build.run(job)
  texts = {k: r.captions.get("subtitle") for k, r in read(report).items()}
  assert texts == {
    "v000-000": ("one",),
    "v000-001": ("two & more three",),
    "v001-000": None,
    "v001-001": None,
  }
  assert report.lacks["subtitle"] == 2
  for text in ("", "no times", "00:00:02,000 --> 00:00:01,000\nx\n"):
    with pytest.raises(DecodeError):
      cues(text)


# ------------------------------------------------------------------ models
@pytest.fixture
def models(monkeypatch):
  """A module `fake_models` of this test: python:fake_models:NAME."""
  module = types.ModuleType("fake_models")
  monkeypatch.setitem(sys.modules, "fake_models", module)
  return module


def test_captions_and_their_joining(tmp_path, models):
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 5, 1.0)
  calls = []

  def see(options):
    def call(pictures):
      calls.append(len(pictures))
      if any(p.mean() > 1000 for p in pictures):
        raise ValueError("never")
      return [f"a picture of {p.shape[0]} rows" for p in pictures]

    assert options["modality"] == "video"
    return call

  def hear(options):
    def call(sounds):
      if len(sounds) > 1:
        raise RuntimeError("one at a time")
      ((samples, rate),) = sounds
      return ["" if len(samples) < 10 else f"{len(samples) / rate:.0f} s"]

    return call

  models.see, models.hear = see, hear
  models.write = lambda options: lambda prompts: [p.upper() for p in prompts]
  names = ("vision_captions", "audio_captions", "omni")
  options = {
    "vision_captions": {"model": "python:fake_models:see", "batch": 2},
    "audio_captions": {"model": "python:fake_models:hear"},
    "omni": {"template": "See {vision}, hear {audio}"},
  }
  job = job_of(raw, tmp_path / "a", *names, options=options)
  records = read(build.run(job))
  assert calls == [2, 2, 1]
  assert records["v001"].captions == {
    "vision": ("a picture of 48 rows",),
    "audio": ("1 s",),
    "omni": ("See a picture of 48 rows, hear 1 s",),
  }
  assert "audio" not in records["v004"].captions
  assert records["v004"].captions["omni"] == ("See a picture of 48 rows, hear",)
  assert records["v001"].fields["captioners"] == {
    "vision_caption": "python:fake_models:see",
    "audio_caption": "python:fake_models:hear",
    "omni_caption": "template: See {vision}, hear {audio}",
  }
  options["omni"]["model"] = "python:fake_models:write"
  job = job_of(raw, tmp_path / "b", *names, options=options)
  assert read(build.run(job))["v001"].captions["omni"] == (
    "SEE A PICTURE OF 48 ROWS, HEAR 1 S",
  )


def test_depth_and_normals_of_an_estimator(tmp_path, models):
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 2, 1.0)
  ramp = np.linspace(2, 6, 32 * 48).reshape(32, 48)

  def tilted(options):
    del options
    normal = np.zeros((32, 48, 3))
    normal[..., 0], normal[..., 2] = 0.6, 0.8
    return lambda pictures: [normal for _ in pictures]

  models.depth = lambda options: lambda pictures: [ramp for _ in pictures]
  models.normal = tilted
  for kind, unit in (("inverse", "relative"), ("metre", "millimetre")):
    options = {
      "depth": {
        "model": "python:fake_models:depth",
        "values": kind,
        "fps": 2.0,
      },
      "normal": {"model": "python:fake_models:normal", "values": "-1..1",
                 "signs": "-++"},
    }  # fmt: skip
    job = job_of(
      raw, tmp_path / kind, "frames", "depth", "normal", options=options
    )
    report = build.run(job)
    assert report.source.depth_unit == unit
    record = read(report)["v000"]
    geometry = dataclasses.replace(GEOMETRY, unit=unit)
    clip = MODALITIES["depth"].decode(record.media["depth"](), geometry)
    assert len(clip) == 2
    values = clip.take([0])[0]
    if kind == "metre":
      np.testing.assert_allclose(values, ramp, atol=1e-3)
    else:
      np.testing.assert_allclose(values, (6 - ramp) / 4, atol=1e-4)
      how = record.fields["estimators"]["depth"]
      assert (how["low"], how["high"], how["values"]) == (2.0, 6.0, "inverse")
    normal = MODALITIES["normal"].decode(record.media["normal"](), GEOMETRY)
    colour = normal.take([0])[0, 5, 5].astype(int)
    np.testing.assert_allclose(colour, [51, 128, 230], atol=1)


def test_estimates_that_cannot_be_right(tmp_path, models):
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 1, 1.0)
  make = lambda value: lambda options: lambda xs: [value for _ in xs]
  models.far = make(np.full((8, 8), 5000.0))
  models.nan = make(np.full((8, 8), np.nan))
  models.long = make(np.full((8, 8, 3), 90.0))
  for stage, name, values, message in (
    ("depth", "far", "metre", "are the values metres"),
    ("depth", "nan", "relative", "not finite"),
    ("depth", "long", "relative", "shape"),
    ("normal", "long", "-1..1", "median length"),
  ):
    options = {stage: {"model": f"python:fake_models:{name}",
                       "values": values}}  # fmt: skip
    job = job_of(raw, tmp_path / f"{stage}-{name}", stage, options=options)
    with pytest.raises(DecodeError, match=message):
      build.run(job)


def test_models_of_transformers_are_checked_up_front(
  folder, tmp_path, monkeypatch
):
  """What they give is tested by `build_hf_test.py`, where they are."""
  monkeypatch.setitem(
    sys.modules, "transformers", types.ModuleType("transformers")
  )
  for stage, values, message in (
    ("vision_captions", {}, "one of image-to-text, image-text-to-text"),
    ("vision_captions", {"task": "depth-estimation"}, "one of image-to-text"),
    ("vision_captions", {"task": "image-text-to-text"}, "needs a prompt"),
    ("vision_captions", {"task": "image-to-text", "prompt": "x"}, "takes none"),
    ("audio_captions", {"task": "image-to-text"}, "one of automatic-speech"),
    ("normal", {"values": "-1..1"}, "one of onnx:..., python:"),
  ):
    options = {stage: {"model": "hf:me/it", **values}}
    job = job_of(folder, tmp_path / "out", "h264", stage, options=options)
    with pytest.raises(ConfigError, match=message) as error:
      build.run(job)
    assert "\n" not in str(error.value)
  assert not (tmp_path / "out").exists()


def _field(number, value):
  """A field of a protocol buffer."""
  if isinstance(value, int):
    return _varint(number << 3) + _varint(value)
  data = value.encode() if isinstance(value, str) else value
  return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value):
  out = b""
  while value > 127:
    out, value = out + bytes([value & 127 | 128]), value >> 7
  return out + bytes([value])


def _mean_graph():
  """An ONNX file: the mean over the channels of [1, 3, 16, 24]."""
  dims = b"".join(_field(1, _field(1, n)) for n in (1, 3, 16, 24))
  tensor = _field(1, _field(1, 1) + _field(2, dims))
  axes = _field(1, "axes") + _field(8, 1) + _field(20, 7)
  keep = _field(1, "keepdims") + _field(3, 0) + _field(20, 2)
  node = _field(1, "x") + _field(2, "y") + _field(4, "ReduceMean")
  node += _field(5, axes) + _field(5, keep)
  graph = _field(1, node) + _field(2, "g")
  graph += _field(11, _field(1, "x") + _field(2, tensor))
  graph += _field(12, _field(1, "y") + _field(2, _field(1, _field(1, 1))))
  return _field(1, 8) + _field(8, _field(2, 11)) + _field(7, graph)


def test_a_graph_of_onnx(tmp_path):
  pytest.importorskip("onnxruntime")
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 2, 1.0)
  (tmp_path / "mean.onnx").write_bytes(_mean_graph())
  options = {
    "depth": {
      "model": f"onnx:{tmp_path / 'mean.onnx'}",
      "values": "relative",
      "mean": (0.0, 0.0, 0.0),
      "std": (1.0, 1.0, 1.0),
    },
    "frames": {"fps": 2},
  }
  job = job_of(raw, tmp_path / "out", "frames", "depth", options=options)
  report = build.run(job)
  record = read(report)["v001"]
  geometry = dataclasses.replace(GEOMETRY, unit="relative")
  values = MODALITIES["depth"].decode(record.media["depth"](), geometry)
  assert values.take([0]).shape == (1, 16, 24)
  frame = MODALITIES["video"].decode(record.media["video"](), GEOMETRY)
  grey = resize_smooth(frame.take([1]), (16, 24))[0].mean(axis=-1)
  seen = values.take([0])[0]
  assert np.corrcoef(grey.ravel(), seen.ravel())[0, 1] > 0.99
  options = {"depth": {"model": "onnx:absent.onnx", "values": "relative"}}
  with pytest.raises(ConfigError, match="no such file"):
    build.run(job_of(raw, tmp_path / "b", "depth", options=options))


def test_shots_by_pyscenedetect(folder, tmp_path):
  pytest.importorskip("scenedetect")
  pytest.importorskip("cv2")
  few = tmp_path / "few"
  few.mkdir()
  for name in ("v000.mp4", "v005.mp4"):
    (few / name).write_bytes((folder / name).read_bytes())
  options = {"shots": {"detector": "scenedetect"}}
  report = build.run(
    job_of(few, tmp_path / "o", "shots", "frames", options=options)
  )
  assert list(read(report)) == ["v000-000", "v000-001", "v005-000", "v005-001"]


# ------------------------------------------------------------------ formats
def test_tar_files_hold_the_same(cut, folder, tmp_path):
  job = job_of(
    folder, tmp_path / "tar", *CUT, options=SHORT, format="webdataset"
  )
  ours, theirs = read(cut[0]), read(build.run(job))
  assert list(theirs) == list(ours)
  for name, record in ours.items():
    assert set(record.media) == set(theirs[name].media)
    for key, get in record.media.items():
      assert theirs[name].media[key]() == get()
    assert theirs[name].fields["span"] == record.fields["span"]


def test_maps_in_a_tar_have_their_field(tmp_path, models):
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 2, 1.0)
  models.depth = lambda options: lambda xs: [np.eye(8) for _ in xs]
  options = {"depth": {"model": "python:fake_models:depth",
                       "values": "relative"}}  # fmt: skip
  job = job_of(
    raw, tmp_path / "o", "h264", "depth", options=options, format="webdataset"
  )
  report = build.run(job)
  assert report.source.fields == {"depth": "depth.png"}
  assert set(read(report)["v001"].media) == {"video", "depth"}


# ------------------------------------------------------------------ manifests
def test_files_of_no_modality_are_not_lost(tmp_path):
  path = write_manifest(tmp_path, 3, rgb=[f"{i}.png" for i in range(3)],
                        image=[None] * 3, url=["http://a/b.png"] * 3,
                        caption_file=["list.txt"] * 3)  # fmt: skip
  source = SourceConfig(kind="manifest", path=str(path))
  with pytest.raises(ConfigError, match=r"'rgb' of 3 of 3 .*--field MODALITY"):
    build.build(source, tmp_path / "a")
  named = dataclasses.replace(source, fields={"image": "rgb"})
  assert set(read(build.build(named, tmp_path / "b"))["s0"].media) == {
    "image",
    "audio",
  }
  report = build.build(source, tmp_path / "c", drop=("rgb",))
  assert set(read(report)["s0"].media) == {"audio"}
  with pytest.raises(ConfigError, match="no sample has a field 'rgbd'"):
    build.build(source, tmp_path / "d", drop=("rgb", "rgbd"))


def test_a_late_field_fails_its_sample(tmp_path, monkeypatch):
  from mico_jax.data.build.inputs import manifest

  monkeypatch.setattr(manifest, "_LOOKED_AT", 2)
  late = [None, None, "2.png"]
  path = write_manifest(tmp_path, 3, mask=late)
  report = build.build(
    SourceConfig(kind="manifest", path=str(path)), tmp_path / "a"
  )
  assert report.count == 3  # the same file as its image: nothing is lost
  (tmp_path / "m.png").write_bytes((tmp_path / "1.png").read_bytes())
  path = write_manifest(tmp_path, 3, mask=[None, None, "m.png"])
  report = build.build(
    SourceConfig(kind="manifest", path=str(path)), tmp_path / "b"
  )
  ((name, reason),) = report.skipped
  assert (name, "'mask'" in reason) == ("s2", True)


def test_a_manifest_goes_through_stages(folder, tmp_path):
  lines = [
    {"id": f"m{i}", "video": f"v00{i}.mp4", "caption": f"c{i}"} for i in (0, 1)
  ]
  path = folder / "list.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  source = SourceConfig(kind="manifest", path=str(path), split="")
  raw = ManifestInput(source, open_files=True)
  report = build.run(job_of(raw, tmp_path / "o", "frames", "audio"))
  path.unlink()
  records = read(report)
  assert set(records["m1"].media) == {"video", "audio"}
  assert len(records["m1"].media["video"]()) == 2
  assert records["m1"].captions == {"omni": ("c1",)}


# ------------------------------------------------------------------ resuming
def test_what_is_there_is_not_built_again(cut, folder, tmp_path):
  make = lambda: job_of(folder, tmp_path / "o", *CUT, options=SHORT, shards=3)
  build.run(make())
  out = tmp_path / "o"
  stem = "all-00001-of-00003"
  before = (out / "all-00000-of-00003.array_record").stat().st_mtime_ns
  (out / f"{stem}.status.parquet").unlink()
  (out / f"{stem}.array_record.host-1.part").write_bytes(b"half")
  (out / f"{stem}.array_record").write_bytes(b"torn")
  build.run(make())
  assert shards(out) == shards(cut[1])
  assert (out / "all-00000-of-00003.array_record").stat().st_mtime_ns == before
  (out / f"{stem}.array_record").write_bytes(b"torn again")
  build.run(make())
  assert shards(out) == shards(cut[1])


@pytest.mark.parametrize(
  ("change", "what"),
  [
    ({"shards": 2}, "shards"),
    ({"options": {"clips": {"min_seconds": 0.4}}}, "options"),
    ({"require": ("audio",)}, "require"),
  ],
)
def test_another_build_in_the_folder_is_refused(cut, folder, change, what):
  _, out = cut
  before = shards(out)
  values = {"options": SHORT, "shards": 3, **change}
  with pytest.raises(ConfigError, match=f"exists for another build: {what}"):
    build.run(job_of(folder, out, *CUT, **values))
  assert shards(out) == before


def test_required_modalities(folder, tmp_path):
  job = job_of(
    folder, tmp_path / "o", "frames", "audio", require=("video", "audio")
  )
  report = build.run(job)
  assert report.count == 12
  assert dict(report.skipped)["v004"] == (
    "it has no audio: the file has no sound."
  )
  assert report.kinds == {"require": 2, "frames": 1}


# ------------------------------------------------------------------ mistakes
@pytest.mark.parametrize(
  ("stages", "options", "others", "message"),
  [
    (("shot",), {}, {}, "no stage 'shot'; known: shots"),
    (("audio",), {"audio": {"rates": 1}}, {}, "rates"),
    (("audio",), {"frames": {"fps": 1}}, {}, "no stage 'frames' in --stages"),
    (("audio", "audio"), {}, {}, "each may stand once"),
    (("clips",), {}, {}, "names parts of files, and nothing stores them"),
    (("frames", "h264"), {}, {}, "both store video"),
    (("frames",), {}, {"format": "webdataset"}, "lists of frames"),
    (("frames",), {}, {"format": "zip"}, "known: array_record, webdataset"),
    (("frames",), {}, {"require": ("sound",)}, "require='sound'; known"),
    (("clips", "audio"), {"clips": {"max_seconds": 6}}, {}, "at most half"),
    (("depth",), {}, {}, "name the model as one of onnx:"),
    (("depth",), {"depth": {"model": "mico:x"}}, {}, "name the model"),
    (("vision_captions",), {"vision_captions": {"model": "python:x"}}, {},
     "MODULE:FUNCTION"),
    (("omni",), {"omni": {"template": "{sight}"}}, {}, "known: vision"),
    (("omni",), {"omni": {"template": "plain"}}, {}, "names no kind"),
    (("audio",), {"audio": {"format": "opus", "rate": 9000}}, {}, "Opus takes"),
    (("audio",), {}, {"shards": 99}, "shards=99 must be from 1"),
    (("audio",), {}, {"gpus": 1.0}, "gpus=1 is for engine=ray"),
    (("audio",), {}, {"gpus": 1.5}, "a share up to 1, or a whole number"),
  ],
)  # fmt: skip
def test_mistakes_are_one_line_up_front(
  folder, tmp_path, stages, options, others, message
):
  job = job_of(folder, tmp_path / "o", *stages, options=options, **others)
  with pytest.raises(ConfigError, match=message) as error:
    build.run(job)
  assert "\n" not in str(error.value)
  assert not list(tmp_path.glob("o/*"))


def test_every_stage_says_what_it_does():
  for name, stage in STAGES.items():
    assert name == stage.name
    assert len(stage.summary()) > 20
    stage(stage.Options())


def test_damage_anywhere_is_a_row_or_a_sample(tmp_path):
  raw, rng = tmp_path / "raw", np.random.default_rng(5)
  raw.mkdir()
  data = raw_videos.raw_video(3, 1.0)
  for i in range(24):
    broken = bytearray(data)
    for at in rng.integers(0, len(data), 1 + i % 8):
      broken[at] ^= 1 << int(rng.integers(8))
    if i % 6 == 5:
      del broken[int(rng.integers(100, len(data))) :]
    (raw / f"{i}.mp4").write_bytes(broken)
  job = job_of(raw, tmp_path / "o", "frames", "audio")
  report = build.run(job)
  assert report.count + len(report.skipped) == 24
  assert report.count > 2
  assert len(report.skipped) > 2
  assert all("\n" not in reason for _, reason in report.skipped)


def test_stores_are_refused_where_files_are_needed(tmp_path, folder):
  with pytest.raises(ConfigError, match="mount it"):
    VideosInput("gs://bucket/raw")
  with pytest.raises(ConfigError, match="local or mounted"):
    build.run(job_of(folder, "memory://x", "audio"))


@dataclasses.dataclass(frozen=True)
class LoudnessOptions:
  """What counts as sound."""

  # of full scale; a quieter clip is a failed row
  least: Annotated[float, Range(0.0, 1.0)] = 0.01


class Loudness(Stage):
  """Notes how loud a clip is, and fails what is silent."""

  name: ClassVar[str] = "loudness"
  Options: ClassVar[type] = LoudnessOptions

  def one(self, row: Row) -> Iterable[Row]:
    """See `Stage`."""
    samples = row.raw.sound_between(*span_of(row), 16000, "mean")
    loudness = float(np.sqrt(np.mean(samples**2)))
    if loudness < self.options.least:
      raise DecodeError(f"loudness {loudness:.4f}, expected more.")
    row.fields["loudness"] = loudness
    return [row]


def test_a_stage_of_ones_own(folder, tmp_path, monkeypatch):
  monkeypatch.setitem(STAGES, "loudness", Loudness)
  few = tmp_path / "few"
  few.mkdir()
  for name in ("v000.mp4", "v004.mp4"):
    (few / name).write_bytes((folder / name).read_bytes())
  options = {"loudness": {"least": 0.1}}
  report = build.run(
    job_of(few, tmp_path / "o", "loudness", "audio", options=options)
  )
  (record,) = read(report).values()
  assert 0.2 < record.fields["loudness"] < 0.5
  assert report.kinds == {"loudness": 1}
  assert "no sound" in dict(report.skipped)["v004"]


def test_bad_files_are_rows(tmp_path, cases_dir):
  """Whatever a folder holds under the name of a video."""
  raw = tmp_path / "raw"
  raw.mkdir()
  kinds = (".mp4", ".mp3", ".wav", ".flac", ".m4a")
  for path in sorted(cases_dir.rglob("*")):
    if path.suffix in kinds:
      (raw / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
  (raw / "page.mp4").write_bytes(b"<!DOCTYPE html><html>not found</html>")
  (raw / "empty.mp4").write_bytes(b"")
  (raw / "zeros.mp4").write_bytes(b"\0" * 5000)
  (raw / "leads nowhere.mp4").symlink_to("absent.mp4")
  os.mkfifo(raw / "pipe.mp4")
  (raw / os.fsdecode(b"odd \xff\n.mp4")).write_bytes(b"")
  count = len(list(raw.iterdir()))
  options = {"clips": {"min_seconds": 0.1}}
  job = job_of(
    raw, tmp_path / "o", "shots", "clips", "frames", "audio", options=options
  )
  report = build.run(job)
  assert report.count + len(report.skipped) >= count
  reasons = dict(report.skipped)
  assert {"page", "empty", "zeros", "leads nowhere", "pipe"} <= reasons.keys()
  assert len(status(tmp_path / "o")) == report.count + len(report.skipped)
  assert all("\n" not in reason for reason in reasons.values())
  assert len(read(report)) == report.count
