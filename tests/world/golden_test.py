"""Worlds v1 and v2 are frozen: released data never changes.

Facts, sentences and pictures are equal bit by bit everywhere (integer draws,
correctly rounded arithmetic), so their hashes are kept. Sound passes through a
matrix product, whose last bits depend on the machine, so it is kept as 16-bit
samples at a few hundred places and compared within two steps; recordings and
points, which pass through sines, likewise.

`MICO_JAX_WRITE_GOLDEN=1` rewrites the file; a change means a new version.
"""

import hashlib
import json
import os
import pathlib

import numpy as np
import pytest

from mico_jax import world

PATH = pathlib.Path(__file__).parent / "golden_v1.json"
PATH_V2 = PATH.with_name("golden_v2.json")
CASES = [
  (split, seed, index)
  for split in world.SPLITS
  for seed, index in ((0, 0), (0, 7), (1, 123456789))
]


def digest(*parts):
  out = hashlib.sha256()
  for part in parts:
    if isinstance(part, np.ndarray):
      out.update(f"{part.dtype.str}{part.shape}".encode())
      out.update(np.ascontiguousarray(part).tobytes())
    else:
      out.update(json.dumps(part, sort_keys=True).encode())
  return out.hexdigest()


def record(split, seed, index):
  w = world.World(split=split, seed=seed)
  scene = w.scene(index)
  words = w.language(scene, index)
  pictures = {
    str(size): digest(
      a["video"],
      a["image"],
      np.rint(a["depth"] / a["depth"].max() * 1e4).astype(np.int32),
      np.rint(a["normal"] * 100).astype(np.int8),
    )
    for size in (32, 48)
    for a in [w.render(scene, size=size, fields=world.FIELDS[:4])]
  }
  audio = w.render(scene, fields=("audio",))["audio"][:: 16 * 5 + 1]
  return {
    "case": [split, seed, index],
    "scene": digest(scene.to_dict()),
    "captions": digest(dict(words.captions)),
    "negatives": digest(dict(words.negatives)),
    "questions": digest([[q, a, sorted(n)] for q, a, n in words.questions]),
    "hard": digest([s.to_dict() for s in w.hard_gallery(index)]),
    "pictures": pictures,
    "audio": np.rint(audio * 32767).astype(int).tolist(),
    "omni": words.captions["omni"][0],
  }


def record_v2(split, seed, index):
  """What v2 has beside v1, of the same scenes."""
  w = world.World(version="v2", split=split, seed=seed)
  scene = w.scene(index)
  words = w.language(scene, index)
  more = {k: words.captions[k] for k in words.captions if k not in world.STATED}
  arrays = w.render(scene, num_frames=5)
  points = arrays["pointcloud"] / np.abs(arrays["pointcloud"]).max(axis=0)
  return {
    "case": [split, seed, index],
    "scene": digest(scene.to_dict()),
    "captions": digest(more),
    "video": digest(arrays["video"]),
    "thermal": digest(np.rint(arrays["thermal"] * 100).astype(np.int32)),
    "imu": np.rint(arrays["imu"][::7] * 1e4).astype(int).tolist(),
    "pointcloud": np.rint(points[::41] * 1e4).astype(int).tolist(),
  }


def dump(records):
  return json.dumps(records, separators=(",", ":")).replace(
    '{"case', '\n{"case'
  )


def test_write_or_find_the_file():
  if os.environ.get("MICO_JAX_WRITE_GOLDEN"):
    PATH.write_text(dump([record(*c) for c in CASES]) + "\n")
    PATH_V2.write_text(dump([record_v2(*c) for c in CASES]) + "\n")
  assert len(json.loads(PATH.read_text())) == len(CASES)
  assert len(json.loads(PATH_V2.read_text())) == len(CASES)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_world_v1_is_frozen(number):
  expected = json.loads(PATH.read_text())[number]
  found = record(*CASES[number])
  audio = np.array(found.pop("audio")) - np.array(expected.pop("audio"))
  assert np.abs(audio).max() <= 2
  assert found == expected


@pytest.mark.parametrize("number", range(len(CASES)))
def test_world_v2_is_frozen(number):
  expected = json.loads(PATH_V2.read_text())[number]
  found = record_v2(*CASES[number])
  for key in ("imu", "pointcloud"):
    gap = np.array(found.pop(key)) - np.array(expected.pop(key))
    assert np.abs(gap).max() <= 2
  assert found == expected
