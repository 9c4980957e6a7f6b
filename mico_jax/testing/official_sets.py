"""Tiny stand-ins of the data sets of the paper's single-modality table.

In the layout of their official files, training part included; see
`official_copies` for the benchmarks among them.
"""

from __future__ import annotations

import gzip
import io
import json
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from mico_jax.testing import official_copies, tiny_data
from mico_jax.testing.official_classes import WNIDS
from mico_jax.testing.official_files import (
  SEEN,
  Folder,
  jpg,
  rotated_png,
  video,
)

RNG = np.random.default_rng


def npy(array: np.ndarray) -> bytes:
  """The content of a .npy file."""
  out = io.BytesIO()
  np.save(out, array)
  return out.getvalue()


def grey(value: int, form: str) -> bytes:
  """A grey picture of a person's shape, in three channels."""
  out = io.BytesIO()
  frame = np.full((48, 24, 3), value % 256, np.uint8)
  Image.fromarray(frame).save(out, form)
  return out.getvalue()


def _benchmark(name: str, f: Folder) -> None:
  official_copies.write_copy(name, f.root)


def imagenet_1k(f: Folder) -> None:
  """Two pictures of each of four classes to train on."""
  _benchmark("imagenet_1k", f)
  for wnid in WNIDS:
    for i in range(2):
      f.put(f"train/{wnid}/{wnid}_{i}.JPEG", jpg())


def kinetics700(f: Folder) -> None:
  """Eight rows to train on, the clip of one of which is gone."""
  _benchmark("kinetics700", f)
  rows = [
    {
      "label": f"{SEEN[i % 2]} cube",
      "youtube_id": f"t{i}",
      "time_start": 1,
      "time_end": 11,
      "split": "train",
    }
    for i in range(8)
  ]
  f.csv("train.csv", rows)
  for i in range(7):
    f.put(f"train/t{i}_000001_000011.mp4", video())


def nyu_d_scenes(f: Folder) -> None:
  """Four scenes to test and eight to train on."""
  from scipy import io as scipy_io

  _benchmark("nyu_d_scenes", f)
  learn = np.arange(11, 19)
  for n in learn:
    folder = f"kv1/NYUdata/NYU{n:04}"
    f.put(f"{folder}/scene.txt", ("bedroom", "study")[n % 2])
    f.put(f"{folder}/depth/d.png", rotated_png(900 + 40 * int(n)))
  out = io.BytesIO()
  parts = {"testNdxs": np.arange(1, 5)[:, None], "trainNdxs": learn[:, None]}
  scipy_io.savemat(out, parts)
  f.put("splits.mat", out.getvalue())


def audioset(f: Folder) -> None:
  """Two balanced and six unbalanced segments to train on."""
  _benchmark("audioset", f)
  for part, count in (("balanced", 2), ("unbalanced", 6)):
    lines = ["# Segments csv", "# num_ytids", "# YTID, start, end, labels"]
    for i in range(count):
      lines.append(f'{part}{i}, 0.000, 10.000, "/m/0{i % 2},/m/02"')
      f.put(f"train/{part}{i}.wav", tiny_data.wav())
    f.put(f"{part}_train_segments.csv", "\n".join(lines) + "\n")


def regdb(f: Folder) -> None:
  """Two people to train on and two others, two pictures by either camera."""
  for s, split in enumerate(("train", "test")):
    for c, camera in enumerate(("Visible", "Thermal")):
      lines = []
      for person in range(2):
        for i in range(2):
          path = f"{camera}/{2 * s + person}/front_{camera[0]}_{i}.bmp"
          value = 20 + 60 * person + 100 * s + 30 * c + 3 * i
          f.put(path, grey(value, "bmp"))
          lines.append(f"{path} {person}")
      f.put(f"idx/{split}_{camera.lower()}_1.txt", "\n".join(lines) + "\n")


def sysu_mm01(f: Folder) -> None:
  """Three people to train on and two others, by all six cameras."""
  people = {"train_id": "1,4", "val_id": "2", "test_id": "3,5"}
  for name, numbers in people.items():
    f.put(f"exp/{name}.txt", numbers)
  for person in range(1, 6):
    for camera in range(1, 7):
      for i in range(2):
        value = 30 * person + 10 * camera + 3 * i
        path = f"cam{camera}/{person:04d}/{i + 1:04d}.jpg"
        f.put(path, grey(value, "jpeg"))


def indian_pines(f: Folder) -> None:
  """A scene of 12 x 12 pixels and three kinds of ground."""
  from scipy import io as scipy_io

  truth = np.zeros((12, 12), np.uint8)
  truth[:4], truth[4:7, 2:], truth[9:, 9:] = 2, 11, 16
  cube = RNG(0).integers(900, 1100, (12, 12, 200))
  cube += 300 * truth[..., None].astype(int)
  for name, key, array in (
    ("Indian_pines_corrected", "indian_pines_corrected", cube),
    ("Indian_pines_gt", "indian_pines_gt", truth),
  ):
    out = io.BytesIO()
    scipy_io.savemat(out, {key: array.astype("u2" if array is cube else "u1")})
    f.put(f"{name}.mat", out.getvalue())


def ego4d_imu(f: Folder) -> None:
  """Videos of two scenarios; one has several, one another unit."""
  names = ["a", "b", "c", "d", "e", "f", "g", "both", "feet"]
  scenarios = {
    name: [("Cooking", "Walking")[i % 2]] for i, name in enumerate(names)
  }
  scenarios["both"] = ["Cooking", "Walking"]
  videos = [{"video_uid": k, "scenarios": v} for k, v in scenarios.items()]
  f.json("ego4d.json", {"date": "x", "videos": videos})
  head = "component_idx,component_timestamp_ms,canonical_timestamp_ms,"
  head += "gyro_x,gyro_y,gyro_z,accl_x,accl_y,accl_z"
  for number, name in enumerate(names):
    rng, lines = RNG(number), [head]
    scale = 3.28 if name == "feet" else 1.0
    times = 1000 + 5.0 * np.arange(2450) + rng.uniform(-1, 1, 2450)
    for i, t in enumerate(times):
      if 600 <= i < 620:  # a gap of 0.1 s
        continue
      turn = f"{0.1 * np.sin(t / 90):.4f}"
      down = f"{scale * (9.8 + 0.3 * np.sin(t / 70)):.4f}"
      lines.append(f"0,{t:.3f},{t:.3f},{turn},,{turn},0.1,{down},0.2")
    f.put(f"imu/{name}.csv", "\n".join(lines) + "\n")


def pcqm4mv2(f: Folder) -> None:
  """Twelve molecules: eight, three, and one whose gap is hidden."""
  smiles = ["C" * n for n in range(1, 8)] + ["CCO", "c1ccccc1", "CN", "C#N"]
  lines = ["idx,smiles,homolumogap"]
  lines += [f"{i},{s},{5 + 0.25 * i}" for i, s in enumerate(smiles)]
  lines.append("11,CO,")
  f.put("raw/data.csv.gz", gzip.compress("\n".join(lines).encode()))
  out = io.BytesIO()
  parts = {"train": np.arange(8), "valid": np.arange(8, 11)}
  np.savez(out, **parts, **{"test-dev": np.array([11])})
  f.put("split.npz", out.getvalue())


def global_temperature(f: Folder) -> None:
  """Three stations."""
  rng = RNG(1)
  for part, hours in (("train", 130), ("val", 80), ("test", 100)):
    day = 8 * np.sin(np.arange(hours) * 2 * np.pi / 24)[:, None, None]
    noise = rng.standard_normal((hours, 3, 1))
    f.put(f"temp_global_hourly_{part}.npy", npy(15 + day + noise))


def credit_card_fraud(f: Folder) -> None:
  """Twenty payments, one of five is fraud."""
  names = ["Time", *(f"V{i}" for i in range(1, 29)), "Amount", "Class"]
  rng, lines = RNG(2), [",".join(f'"{n}"' for n in names)]
  for i in range(20):
    values = rng.standard_normal(28) + 3 * (i % 5 == 1)
    cells = [str(i), *(f"{v:.5f}" for v in values), f"{10 + i}"]
    lines.append(",".join([*cells, f'"{int(i % 5 == 1)}"']))
  f.put("creditcard.csv", "\n".join(lines) + "\n")


# Name of the config -> writes the stand-in into a folder.
SETS: dict[str, Callable[[Folder], None]] = {
  "imagenet_1k": imagenet_1k,
  "kinetics700": kinetics700,
  "nyu_d_scenes": nyu_d_scenes,
  "audioset": audioset,
  "sysu_mm01": sysu_mm01,
  "regdb": regdb,
  "ego4d_imu": ego4d_imu,
  "pcqm4mv2": pcqm4mv2,
  "global_temperature": global_temperature,
  "indian_pines": indian_pines,
  "credit_card_fraud": credit_card_fraud,
}


def write_set(name: str, root: pathlib.Path) -> pathlib.Path:
  """Writes the stand-in of a set; returns its folder."""
  root.mkdir(parents=True, exist_ok=True)
  SETS[name](Folder(root))
  return root


def lines_of(manifest: str | pathlib.Path) -> list[dict]:
  """The lines of a manifest."""
  text = pathlib.Path(manifest).read_text()
  return [json.loads(line) for line in text.splitlines()]
