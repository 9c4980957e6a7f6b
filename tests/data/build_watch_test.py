"""Stages that hang, libraries that crash: a row fails, the build goes on."""

from __future__ import annotations

import importlib
import re
import sys
import time

import pytest

from mico_jax.config import Config, ConfigError, DataConfig
from mico_jax.data import build
from mico_jax.data.build.inputs import VideosInput
from mico_jax.data.build.job import Job
from mico_jax.data.build.stages import STAGES
from mico_jax.data.sources import open_source
from mico_jax.failures import TransientError
from mico_jax.testing import raw_videos
from mico_jax.testing.media import file_of, greys

# A stage and a captioner that a worker, another process, finds too. Each try of
# a row is a line of $TRIES.
STAGE = """
import os, signal, time
from mico_jax.data.build.inputs import VideosInput
from mico_jax.data.build.stages import STAGES, Stage

def note(text):
  with open(os.environ["TRIES"], "a") as file:
    file.write(text + "\\n")

class Odd(Stage):
  name = "odd"
  def one(self, row):
    note(f"odd {row.id}")
    if row.id == "v001":
      time.sleep(1e6)
    if row.id == "v002":
      os.kill(os.getpid(), signal.SIGSEGV)
    return [row]

STAGES["odd"] = Odd

class Videos(VideosInput):
  pass

def load(options):
  def write(pictures):
    note(f"batch of {len(pictures)}")
    if any(p.mean() < 1 for p in pictures):
      time.sleep(1e6)
    return [f"{p.shape[0]} rows" for p in pictures]
  return write

def never(options):
  time.sleep(1e6)
"""


@pytest.fixture
def odd(tmp_path, monkeypatch):
  """The module above, and the function that gives the tries so far."""
  path = tmp_path / "modules" / "odd_stage.py"
  path.parent.mkdir()
  path.write_text(STAGE)
  monkeypatch.syspath_prepend(str(path.parent))
  monkeypatch.setenv("TRIES", str(tmp_path / "tries.txt"))
  (tmp_path / "tries.txt").touch()
  module = importlib.import_module("odd_stage")
  yield module, lambda: (tmp_path / "tries.txt").read_text().split("\n")[:-1]
  STAGES.pop("odd")
  sys.modules.pop("odd_stage")


def files(out):
  return sorted(p.name for p in out.iterdir())


def test_rows_that_hang_or_crash_fail(tmp_path, odd):
  module, tries = odd
  raw_videos.write_videos(tmp_path / "raw", 4, 1.0)
  make = lambda name, shards=2, **more: Job(
    module.Videos(str(tmp_path / "raw")),
    str(tmp_path / name),
    ("odd", "audio"),
    shards=shards,
    timeout=1.5,
    **more,
  )
  seen = []
  report = build.run(make("a"), workers=2, progress=lambda *x: seen.append(x))
  assert report.count == 2
  assert dict(report.skipped) == {
    "v001": "not done within 1.5 s (--timeout), 2 times.",
    "v002": "its process crashed with SIGSEGV, 2 times.",
  }
  assert report.kinds == {"odd": 2}
  assert [tries().count(f"odd v00{i}") for i in range(4)] == [3, 2, 2, 1]
  assert seen[-1] == (4, 4)
  assert [done for done, _ in seen] == sorted(done for done, _ in seen)
  source = open_source(
    Config(data=DataConfig(sources={"a": report.source})), "a"
  )
  assert [source.record(i).id for i in range(2)] == ["v000", "v003"]
  assert len(files(tmp_path / "a")) == 5  # and no notes, no parts
  # A build that was ended in between knows what it had found out.
  for i in (2, 3):
    (tmp_path / "raw" / f"v00{i}.mp4").unlink()
  before = len(tries())
  for _ in range(2):
    with pytest.raises(ConfigError, match=r"v001: not done within 1\.5 s"):
      build.run(make("b", 1, strict=True), workers=1)
  report = build.run(make("b", 1), workers=1)
  assert tries()[before:].count("odd v001") == 2
  assert (report.count, len(report.skipped)) == (1, 1)
  assert len(files(tmp_path / "b")) == 3


def test_a_batch_that_hangs_is_tried_row_by_row(tmp_path, odd):
  _, tries = odd
  raw = tmp_path / "raw"
  raw_videos.write_videos(raw, 3, 1.0)
  (raw / "v001.mp4").write_bytes(file_of("mp4", greys([0] * 4, (48, 64))))
  job = Job(
    odd[0].Videos(str(raw)),
    str(tmp_path / "out"),
    ("frames", "vision_captions"),
    {"vision_captions": {"model": "python:odd_stage:load"}},
    timeout=1.5,
  )
  report = build.run(job, workers=1)
  assert tries() == ["batch of 3", *["batch of 1"] * 2, *["batch of 1"] * 2]
  assert report.kinds == {"vision_captions": 1}
  assert [name for name, _ in report.skipped] == ["v001"]
  assert report.count == 2


def test_a_model_that_never_loads_is_no_fault_of_a_row(tmp_path, odd):
  raw_videos.write_videos(tmp_path / "raw", 2, 1.0)
  options = {"model": "python:odd_stage:never"}
  job = Job(
    odd[0].Videos(str(tmp_path / "raw")),
    str(tmp_path / "out"),
    ("frames", "vision_captions"),
    {"vision_captions": options},
    timeout=1.0,
  )
  begin = time.monotonic()
  message = re.escape("loading python:odd_stage:never: not done within 1 s")
  with pytest.raises(TransientError, match=message):
    build.run(job, workers=1)
  assert time.monotonic() - begin < 60
  assert not list((tmp_path / "out").glob("*.array_record"))


def test_a_limit_that_is_none(tmp_path):
  raw_videos.write_videos(tmp_path / "raw", 1, 1.0)
  for value in (0, float("nan"), float("inf")):
    job = Job(
      VideosInput(str(tmp_path / "raw")),
      str(tmp_path / "out"),
      ("audio",),
      timeout=value,
    )
    with pytest.raises(ConfigError, match="expected seconds over 0"):
      build.run(job)
  assert not list(tmp_path.glob("out/*"))
