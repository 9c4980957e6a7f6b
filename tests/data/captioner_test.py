"""A checkpoint as the captioner of a build."""

from __future__ import annotations

import pytest

from mico_jax.config import Config, ConfigError, DataConfig
from mico_jax.data import build
from mico_jax.data.build.inputs import VideosInput
from mico_jax.data.build.job import Job
from mico_jax.data.build.models import model
from mico_jax.data.sources import open_source
from mico_jax.inference import captioner
from mico_jax.testing.raw_videos import write_videos
from mico_jax.testing.tiny_checkpoint import save_tiny


@pytest.mark.slow  # compiles a search for captions
def test_a_checkpoint_writes_captions_of_clips(tmp_path):
  save_tiny(tmp_path / "run")
  write_videos(tmp_path / "raw", 2, 1.0)
  name = f"mico:{tmp_path / 'run'}"
  options = {"model": name, "max_new_tokens": 3, "batch": 2}
  job = Job(
    VideosInput(str(tmp_path / "raw")),
    str(tmp_path / "out"),
    ("frames", "vision_captions"),
    {"vision_captions": options, "frames": {"fps": 2}},
    require=("vision",),
  )
  report = build.run(job)
  assert report.count == 2
  assert report.source.captions == {"vision": "vision_caption"}
  with pytest.raises(ConfigError, match="takes no 'smell' input"):
    model(name, {**options, "modality": "smell"})


def test_what_a_checkpoint_is_asked(tmp_path, monkeypatch):
  calls = []

  class Model:
    modalities = ("video", "audio")

    def caption(self, *, max_new_tokens, **inputs):
      ((key, values),) = inputs.items()
      calls.append((key, len(values), max_new_tokens))
      return [f"{type(value).__name__} {len(value)}" for value in values]

  def load(path, *, batch_size):
    assert (path, batch_size) == ("runs/x", 2)
    return Model()

  monkeypatch.setattr(captioner, "load", load)
  write_videos(tmp_path / "raw", 3, 1.0)
  shared = {"model": "mico:runs/x", "batch": 2}
  job = Job(
    VideosInput(str(tmp_path / "raw")),
    str(tmp_path / "out"),
    ("frames", "vision_captions", "audio_captions"),
    {
      "vision_captions": {**shared, "max_new_tokens": 3},
      "audio_captions": shared,
      "frames": {"fps": 2},
    },
  )
  report = build.run(job)
  assert calls == [
    ("video", 2, 3),
    ("video", 1, 3),
    ("audio", 2, None),
    ("audio", 1, None),
  ]
  source = open_source(
    Config(data=DataConfig(sources={"a": report.source})), "a"
  )
  assert source.record(0).captions == {
    "vision": ("list 2",),
    "audio": ("tuple 2",),
  }
