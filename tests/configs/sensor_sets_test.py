"""Configs of sensor sets: from the files of a set to its measures.

The manifests are made by the commands in the docstrings of the configs.
"""

from __future__ import annotations

import math
import pathlib

import pytest

from mico_jax import config as config_lib
from mico_jax.run.pretrain import pretrain
from mico_jax.testing import tiny_sensor_sets

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
# What each is judged by.
MEASURES = {
  "adult": ("classifier/k/accuracy", "classifier/k/ROC AUC"),
  "ecg200": ("classifier/b/accuracy", "zero-shot/b/accuracy"),
  "esol": ("regressor/g/log_solubility/RMSE",),
  "etth1": ("forecasting/r/MSE",),
  "hyperspectral_jasper": ("classifier/y/accuracy", "zero-shot/y/accuracy"),
  "imu_basicmotions": ("classifier/m/accuracy", "nearest/m/accuracy"),
  "shapes_chair_monitor": ("classifier/p/accuracy", "zero-shot/p/accuracy"),
  "thermal_road": ("instance/i->h/R@1", "instance/h->i/R@1"),
}
# Small towers of each kind.
_BLOCK = ("model.vision.width=16", "model.vision.depth=1")
VIT = (*_BLOCK, "model.vision.num_heads=2", "model.vision.mlp_dim=16")
CONVNET = (
  *(*_BLOCK, "model.vision.stage_depths=(1,)"),
  *("model.vision.stage_widths=(16,)", "model.vision.mlp_dim=64"),
)


@pytest.fixture(autouse=True)
def _molecules(request):
  if "esol" in request.node.name:
    pytest.importorskip("rdkit", reason="SMILES need the extra `molecules`")


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_files_become_a_trained_and_measured_model(name, tmp_path):
  key = f"perception/{name}"
  path = tiny_sensor_sets.write_set(key, tmp_path / "set", FOLDER)
  config = config_lib.load(
    key,
    [
      "train.steps=2",
      "train.tensorboard=False",
      *(CONVNET if name == "thermal_road" else VIT),
      "model.text.width=16",
      "model.text.mlp_dim=16",
      f"tasks.{name}.batch_size=8",
      "evaluation.size=4",
      "evaluation.batch_size=8",
      "evaluation.examples=0",
    ],
    arg=str(path),
  )
  results = {r.name: r for r in pretrain(config, tmp_path / "run").results}
  for measure in MEASURES[name]:
    assert math.isfinite(results[measure].value)
    assert (results[measure].split, results[measure].total) == ("test", 4)
