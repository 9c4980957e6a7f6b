"""The benchmark of decoders compares what it says."""

from __future__ import annotations

import json

from mico_jax.benchmarks import decoders
from mico_jax.testing import raw_videos


def test_pictures_and_videos(tmp_path, capsys):
  path = tmp_path / "v.mp4"
  path.write_bytes(raw_videos.raw_video(3, 1.0))
  argv = ["--sides", "256", "640", "--video", str(path), "--turns", "1"]
  assert decoders.main(argv) == 0
  small, large, video = map(json.loads, capsys.readouterr().out.splitlines())
  assert (small["decoded"], large["decoded"]) == (256, 320)
  assert small["difference_of_crops"] == 0 == small["difference_of_the_whole"]
  assert 0 < large["difference_of_the_whole"] < 3
  assert large["whole"]["ratio"] == 1
  assert large["draft"]["cpu_ms"] > 0
  assert video["frames"] == 10
  assert video["difference"] == 0
