"""Configs of the paper's data sets, each on a stand-in in its official layout."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from mico_jax import config as config_lib
from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.config.loading import call
from mico_jax.data.build.sets import SETS
from mico_jax.data.build.sets.ego4d_imu import split_of, windows_of
from mico_jax.data.sources import open_source
from mico_jax.run.pretrain import pretrain
from mico_jax.testing import official_sets
from mico_jax.testing.official_sets import lines_of, write_set

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs" / "perception"
SMALL = (
  "model.vision.width=16",
  "model.vision.depth=1",
  "model.vision.num_heads=2",
  "model.vision.mlp_dim=16",
  "model.text.width=16",
  "model.text.depth=1",
  "model.text.num_heads=2",
  "model.text.mlp_dim=16",
  "model.embed_dim=8",
  "evaluation.batch_size=4",
  "evaluation.bootstrap=10",
  "train.steps=2",
  "train.tensorboard=False",
)


def build(name: str, folder: pathlib.Path, *more: str) -> int:
  """Runs `data build`; its exit status."""
  argv = ["data", "build", "--protocol", name, "--from", folder, "--json"]
  return main([str(x) for x in (*argv, *more)])


def load(name: str, folder: pathlib.Path, *more: str) -> config_lib.Config:
  return config_lib.load(
    f"perception/{name}",
    (*SMALL, f"tasks.{name}.batch_size=4", *more),
    arg=f"{folder},omniworld,mico_tiny",
  )


def test_every_set_has_a_config_and_a_stand_in():
  rows = {
    path.stem
    for path in FOLDER.glob("*.py")
    if "PaperSet(" in path.read_text()
  }
  assert rows == {*official_sets.SETS}
  assert {*SETS} < rows


@pytest.mark.parametrize("name", official_sets.SETS)
def test_official_files_are_trained_on_and_measured(name, tmp_path, capsys):
  if name == "pcqm4mv2":
    pytest.importorskip("rdkit")
  copy = write_set(name, tmp_path / "copy")
  if name in SETS:
    with pytest.raises(ConfigError, match=f"--protocol {name} --from COPY"):
      load(name, copy)
    assert build(name, copy, "--other-split") == 0
    assert f"perception/{name}:{copy}" in json.loads(capsys.readouterr().out)["train"]
  _, paper = call(f"perception/{name}", "paper")
  found = {r.name: r for r in pretrain(load(name, copy), tmp_path / "run").results}
  assert paper.result in found
  assert np.isfinite(found[paper.result].value)
  assert found[paper.result].n
