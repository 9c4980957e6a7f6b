"""Example files: what they show is what OmniWorld renders."""

from __future__ import annotations

import json

import numpy as np

import mico_jax
from mico_jax.cli.main import main
from mico_jax.testing import tiny_checkpoint
from mico_jax.world import FIELDS, World
from mico_jax.world.language import caption


def test_files_are_those_of_the_scenes(tmp_path, capsys):
  out, again = tmp_path / "samples", tmp_path / "again"
  for folder in (out, again):
    assert main(["samples", "--out", str(folder), "--count", "3"]) == 0
  names = sorted(path.name for path in out.iterdir())
  assert len(names) == 1 + 3 * len(FIELDS)
  for name in names:
    assert (out / name).read_bytes() == (again / name).read_bytes(), name
  records = [
    json.loads(line)
    for line in (out / "manifest.jsonl").read_text().splitlines()
  ]
  world = World(split="test")
  assert [r["captions"]["omni"] for r in records] == [
    caption(world.scene(i), "omni", 0) for i in range(3)
  ]
  tiny_checkpoint.save_tiny(tmp_path / "run")
  model = mico_jax.load(str(tmp_path / "run"), check="fast")
  arrays = [
    world.render(world.scene(i), size=64, num_frames={"video": 8})
    for i in range(3)
  ]
  file = lambda i, key: str(out / records[i][key])
  same = {  # modality -> file, array, and how near their embeddings are
    "image": ("", "image", 1e-6),
    "video": ("", "video", 0.05),  # compressed, half the resolution of colours
    "audio": ("", "audio", 2e-3),  # 16 bits
    "normal": ("", "normal", 2e-2),  # 8 bits
    "depth": ("m:", "depth", 1e-6),
  }
  for key, (prefix, name, limit) in same.items():
    files = [prefix + file(i, name) for i in range(3)]
    raw = [(a[name], 16000) if name == "audio" else a[name] for a in arrays]
    found, expected = model.embed(**{key: files}), model.embed(**{key: raw})
    np.testing.assert_allclose(found[key], expected[key], atol=limit)


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys):
  (tmp_path / "mine.txt").write_text("x")
  assert main(["samples", "--out", str(tmp_path)]) == 2
  assert "other files" in capsys.readouterr().err
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
  assert main(["samples", "--out", str(tmp_path / "a"), "--size", "16"]) == 2
