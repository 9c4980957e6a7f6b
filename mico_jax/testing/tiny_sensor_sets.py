"""Tiny files in the layouts of the sensor sets of `configs/perception`.

What the sets do not bring, a manifest of their samples, is made by the commands
that the docstring of the config gives, so these are run as they stand there.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mico_jax.data import parts
from mico_jax.testing.tiny_data import write_manifest

_TOOL = "python -m mico_jax.data.parts "
CENSUS = (
  *("age", "workclass", "fnlwgt", "education", "education_num"),
  *("marital_status", "occupation", "relationship", "race", "sex"),
  *("capital_gain", "capital_loss", "hours_per_week", "native_country"),
  "income",
)


def run_commands(text: str, folder: pathlib.Path) -> list[pathlib.Path]:
  """Runs the commands of `mico_jax.data.parts` in a text; what they wrote.

  Windows of a table begin at every 400th row, as they are too many otherwise.

  Args:
    text: with commands that end in "> FILE" or ">> FILE".
    folder: which they are run in.
  """
  written = []
  lines = text.replace("\\\n", " ").splitlines()
  for line in lines:
    if not line.strip().startswith(_TOOL):
      continue
    *argv, arrow, name = shlex.split(line.strip().removeprefix(_TOOL))
    if arrow not in (">", ">>"):
      raise ValueError(f"{line.strip()!r} writes no file.")
    if argv[0] == "windows":
      argv += ["--step", "400"]
    out = io.StringIO()
    before = os.getcwd()
    os.chdir(folder)
    try:
      with contextlib.redirect_stdout(out):
        parts.main(argv)
    finally:
      os.chdir(before)
    with open(folder / name, "w" if arrow == ">" else "a") as file:
      file.write(out.getvalue())
    written.append(folder / name)
  return written


def _arrays(
  path: pathlib.Path,
  name: str,
  shape: Sequence[int],
  classes: Sequence[str],
  most: int = 0,
) -> None:
  """An .npz of 10 samples for training and 4 for testing.

  Args:
    path: of the folder.
    name: of the file.
    shape: of a sample.
    classes: their names; samples have them in turn.
    most: largest value of integers; 0: floats.
  """
  rng = np.random.default_rng(0)
  arrays: dict[str, Any] = {"classes": np.array(classes)}
  for split, count in (("train", 10), ("test", 4)):
    values = rng.standard_normal((count, *shape)).astype(np.float32)
    if most:
      values = rng.integers(0, most + 1, (count, *shape)).astype(np.uint8)
    arrays[f"{split}_{'points' if most else 'x'}"] = values
    arrays[f"{split}_y"] = (np.arange(count) % len(classes)).astype(np.uint8)
  np.savez(path / f"{name}.npz", **arrays)


def _beats(folder: pathlib.Path) -> None:
  names = ("abnormal heartbeat (myocardial infarction)", "normal heartbeat")
  _arrays(folder, "ecg200", (96,), names)


def _activities(folder: pathlib.Path) -> None:
  names = ("Standing", "Running", "Walking", "Badminton")
  _arrays(folder, "imu_basicmotions", (6, 100), names)


def _shapes(folder: pathlib.Path) -> None:
  names = ("chair", "monitor")
  _arrays(folder, "shapes_chair_monitor", (80, 3), names, most=31)


def _scene(folder: pathlib.Path) -> None:
  """A strip of 100 rows and a column; the last four are the test part."""
  rng = np.random.default_rng(0)
  mask = np.arange(100)[:, None] >= 96
  np.savez(
    folder / "hyperspectral_jasper.npz",
    cube=rng.integers(0, 5000, (100, 1, 198)).astype(np.uint16),
    labels=(np.arange(100) % 4)[:, None].astype(np.uint8),
    test_mask=mask,
    classes=np.array(["tree", "water", "soil", "road"]),
  )


def _census(folder: pathlib.Path) -> None:
  """Rows of which some have no occupation and most no gain."""
  for split, count in (("train", 12), ("test", 4)):
    with open(folder / f"adult_{split}.csv", "w", newline="") as file:
      out = csv.writer(file)
      out.writerow(CENSUS)
      for i in range(count):
        work, job = ("Private", "State-gov")[i % 2], ("Sales", "?", "Tech")
        out.writerow([
          *(20 + i, work, 1000 * i, ("9th", "10th")[i % 2], 5 + i % 2),
          *(("Divorced", "Widowed")[i % 2], job[i % 3], ("Wife", "Own")[i % 2]),
          *(("White", "Black")[i % 2], ("Male", "Female")[i % 2]),
          *(2000 * (i % 4 == 3), 100 * (i % 5 == 4), 30 + i),
          *(("Peru", "Cuba")[i % 2], ("<=50K", ">50K")[i % 2]),
        ])  # fmt: skip


def _hours(folder: pathlib.Path) -> None:
  """Hours of ETTh1, as many as its splits name."""
  first = np.datetime64("2016-07-01T00:00:00")
  with open(folder / "ETTh1.csv", "w") as file:
    file.write("date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n")
    for i in range(14_400):
      date = str(first + np.timedelta64(i, "h")).replace("T", " ")
      cells = [f"{np.sin(i / k):.3f}" for k in range(2, 9)]
      file.write(",".join([date, *cells]) + "\n")


def _roads(folder: pathlib.Path) -> None:
  """Pairs of grey pictures, and their manifest."""
  write_manifest(
    folder,
    14,
    rgb=[f"{i}.png" for i in range(14)],
    thermal=[f"{i}.png" for i in range(14)],
    split=["train"] * 10 + ["test"] * 4,
  )


def _molecules(folder: pathlib.Path) -> None:
  chains = [f"{'C' * n}{end}" for n in (1, 2, 3, 4) for end in ("", "O", "=O")]
  rings = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "CC(=O)[O-]"]
  with open(folder / "esol_molecules.csv", "w") as file:
    file.write("name,smiles,log_solubility,split\n")
    for i, smiles in enumerate((*chains, *rings)):
      split = "train" if i < 12 else "test"
      file.write(f"molecule {i},{smiles},{-0.5 * i:.2f},{split}\n")


# Config -> what writes the files of its set.
FILES: dict[str, Callable[[pathlib.Path], None]] = {
  "perception/adult": _census,
  "perception/ecg200": _beats,
  "perception/esol": _molecules,
  "perception/etth1": _hours,
  "perception/hyperspectral_jasper": _scene,
  "perception/imu_basicmotions": _activities,
  "perception/shapes_chair_monitor": _shapes,
  "perception/thermal_road": _roads,
}


def write_set(
  name: str, folder: pathlib.Path, configs: pathlib.Path
) -> pathlib.Path:
  """The files of a set, and the argument of its config.

  Args:
    name: of the config, a key of `FILES`.
    folder: where they are written.
    configs: folder of the configs.
  """
  folder.mkdir(parents=True, exist_ok=True)
  FILES[name](folder)
  source = (configs / f"{name}.py").read_text()
  written = run_commands(source.split('"""')[1], folder)
  files = [*written, *folder.glob("*.jsonl"), *folder.glob("*.csv")]
  return files[0]
