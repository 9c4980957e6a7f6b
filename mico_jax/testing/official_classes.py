"""Stand-ins of benchmarks with classes; see `official_copies`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np

from mico_jax.testing import tiny_data
from mico_jax.testing.official_files import (
  COUNT,
  LOST,
  SEEN,
  Folder,
  jpg,
  rotated_png,
  video,
)

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361")


def _synsets(f: Folder) -> None:
  lines = [f"{w} {SEEN[i]} cube, other name" for i, w in enumerate(WNIDS)]
  f.put("LOC_synset_mapping.txt", "\n".join(lines) + "\n")


def folders(folder: str, names: Sequence[str]) -> Callable[[Folder], list[str]]:
  """A folder of each class; nothing lists what is lost."""

  def write(f: Folder) -> list[str]:
    _synsets(f)
    ids = [f"{folder}/{name}/p{i}.JPEG" for i, name in enumerate(names)]
    for path in ids:
      f.put(path, jpg())
    return ids

  return write


def esc50(f: Folder) -> list[str]:
  """ESC-50."""
  ids = [f"1-{i}-A-0.wav" for i in range(COUNT)]
  rows = [
    {
      "filename": x,
      "fold": 1,
      "target": i % 2,
      "category": f"{SEEN[i % 2]}_cube",
    }
    for i, x in enumerate(ids)
  ]
  f.csv("meta/esc50.csv", rows)
  f.media([f"audio/{x}" for x in ids], tiny_data.wav())
  return ids


def audioset(f: Folder) -> list[str]:
  """AudioSet, evaluation."""
  ids = [f"--{i}aR" for i in range(COUNT)]
  lines = ["# Segments csv created Sun Mar  5 10:54:25 2017", "# num_ytids=4",
           "# YTID, start_seconds, end_seconds, positive_labels"]  # fmt: skip
  lines += [
    f'{x}, 0.000, 10.000, "/m/0{i % 2},/m/02"' for i, x in enumerate(ids)
  ]
  f.put("eval_segments.csv", "\n".join(lines) + "\n")
  names = ["red cube", "green, small cube", "ball", "cone"]
  f.csv(
    "class_labels_indices.csv",
    [
      {"index": i, "mid": f"/m/0{i}", "display_name": n}
      for i, n in enumerate(names)
    ],
  )
  f.media([f"eval/Y{x}.wav" for x in ids], tiny_data.wav())
  return ids


def kinetics(f: Folder) -> list[str]:
  """Kinetics-700."""
  rows = [
    {
      "label": f"{SEEN[i % 2]} cube",
      "youtube_id": f"-k{i}",
      "time_start": 5,
      "time_end": 15,
      "split": "val",
    }
    for i in range(COUNT)
  ]
  f.csv("val.csv", rows)
  ids = [f"-k{i}_000005_000015" for i in range(COUNT)]
  f.media([f"val/{x}.mp4" for x in ids], video())
  return ids


def _scenes(f: Folder, folders: Sequence[str], labels: Sequence[str]) -> None:
  for i, (folder, label) in enumerate(zip(folders, labels, strict=True)):
    f.put(f"{folder}/scene.txt", f"{label}\n")
    if i != LOST:
      f.put(f"{folder}/depth/d{i}.png", rotated_png(2345))


def nyu(f: Folder) -> list[str]:
  """NYU-D in the folders of SUN RGB-D."""
  from scipy import io as scipy_io

  ids = [f"NYU{i + 1:04}" for i in range(COUNT)]
  labels = ["bedroom", "kitchen", "study", "office", "office"]
  _scenes(f, [f"kv1/NYUdata/{x}" for x in (*ids, "NYU0077")], labels)
  out = io.BytesIO()
  scipy_io.savemat(out, {"testNdxs": np.arange(1, COUNT + 1)[:, None]})
  f.put("splits.mat", out.getvalue())
  return ids


def sun(f: Folder) -> list[str]:
  """SUN RGB-D."""
  from scipy import io as scipy_io

  ids = ["kv1/NYUdata/NYU0001", "xtion/sun3ddata/brown/brown_1/000103_2",
         "realsense/lg/2014_1/x", "kv2/kinect2data/1_2"]  # fmt: skip
  rare = "kv2/kinect2data/3_4"
  _scenes(
    f, [*ids, rare], ["bedroom", "lab", "office", "library", "coffee_room"]
  )
  listed = np.empty((1, COUNT + 1), object)
  listed[0, :] = [f"/n/fs/sun3d/data/SUNRGBD/{x}" for x in (*ids, rare)]
  out = io.BytesIO()
  scipy_io.savemat(out, {"alltest": listed, "alltrain": listed})
  f.put("SUNRGBDtoolbox/traintestSplit/allsplit.mat", out.getvalue())
  return ids
