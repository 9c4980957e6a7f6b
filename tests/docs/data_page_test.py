"""Every command of docs/data.md, run in its order on twenty raw videos."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import shlex

import pytest

import mico_jax
from mico_jax import extras
from mico_jax.cli.main import main
from mico_jax.testing import raw_videos
from mico_jax.testing.tiny_data import write_manifest, write_tar

PAGE = pathlib.Path(mico_jax.__file__).parent / "docs" / "data.md"
BLOCKS = re.findall(r"```(\S+)([^\n]*)\n(.*?)```", PAGE.read_text(), re.DOTALL)
SUBTITLES = "WEBVTT\n\n00:01.000 --> 00:03.000\na bar number {}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder as the page supposes it."""
  folder = tmp_path_factory.mktemp("page")
  names = raw_videos.write_videos(folder / "raw", 20, 6.0)
  for i, name in enumerate(names[::2]):
    (folder / "raw" / f"{name}.vtt").write_text(SUBTITLES.format(i))
  (folder / "hdvila").mkdir()
  spans = [(0.5, 5.75), (0.0, 3.0)]
  raw_videos.write_hdvila(folder / "hdvila" / "part0.jsonl", names, spans)
  lines = ["clip,from,to,caption", "v000,0,00:00:02.5,a", "v001,1,2.25,b"]
  (folder / "list.csv").write_text("\n".join(lines))
  data = (folder / "raw" / "v001.mp4").read_bytes()
  (folder / "download").mkdir()
  write_tar(
    folder / "download" / "00000.tar",
    [("000.mp4", data), ("000.txt", b"one"), ("000.json", b"{}")],
  )
  write_manifest(folder / "set")
  return folder


def _run(command: str, capsys) -> str:
  """Runs one command of the page; returns its standard output."""
  program, *argv = shlex.split(command)
  assert program == "mico-jax"
  status = main(argv)
  text = capsys.readouterr()
  if "--engine ray" in command and importlib.util.find_spec("ray") is None:
    assert (status, extras.install("ray") in text.err) == (2, True)
    return ""
  assert status == 0, text.err
  return text.out


def test_the_page(place, capsys, monkeypatch):
  monkeypatch.chdir(place)
  printed, values = {}, {}
  for kind, name, code in BLOCKS:
    if name.strip().startswith("tests/"):  # code of another test
      assert code in (PAGE.parents[2] / name.strip()).read_text()
    elif kind == "python" and name.strip():
      pathlib.Path(name.strip()).write_text(code)
    elif kind == "python":
      exec(code, values)
    elif kind == "bash":
      for command in code.strip().splitlines():
        one = "" if "--engine" in command else " --processes 1"
        more = f"{one} --json" if "data build" in command else ""
        text = _run(command + more, capsys)
        folder = command.split("--out ")[-1]
        printed[folder] = json.loads(text) if more and text else text

  clips, shards = printed["clips"], printed["shards"]
  assert clips["samples"] == 19
  assert clips["skipped_by_kind"] == {"clips": 21}
  assert clips["without"] == {"audio": 2, "subtitle": 10}
  assert "v006.0" in values["failed"]
  assert values["failed"]["v000.1"] == (
    "3.00 s, shorter than clips.min_seconds=5."
  )
  assert values["silent"] == ["v004.0", "v009.0"]
  # The config of the page says what the build printed.
  source, config = shards["source"], pathlib.Path("my_run.py").read_text()
  for value in (source["path"], *source["captions"].values()):
    assert f'"{value}"' in config
  assert source["depth_unit"] == "relative"
  assert pathlib.Path("sheet.png").stat().st_size > 1000
  assert any(pathlib.Path("runs/first/checkpoints").iterdir())
  assert printed["frames"]["samples"] == 38
  assert "shards_left" not in printed["frames"]
  assert printed["listed"]["samples"] == 2
  assert printed["from_tars"]["samples"] == 1
  assert printed["packed"]["samples"] == 8
