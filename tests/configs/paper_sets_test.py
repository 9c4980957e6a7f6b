"""Configs of the paper's data sets, on stand-ins in their official layouts."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pytest

from mico_jax import config as config_lib
from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.config.loading import call
from mico_jax.data.build.sets import SETS
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.sources import open_source
from mico_jax.evaluation.evaluators import find_measure
from mico_jax.evaluation.results import Result
from mico_jax.evaluation.suites import evaluate
from mico_jax.objectives import compute
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.testing import official_copies, official_sets
from mico_jax.testing.official_classes import WNIDS
from mico_jax.testing.official_sets import write_set
from mico_jax.train import perception
from mico_jax.train.state import init_state
from mico_jax.train.step import make_train_step

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs" / "perception"
# Samples, or classes, that are measured, and that there are.
MEASURED = {
  "imagenet_1k": (4, 4),
  "kinetics700": (3, 4),
  "nyu_d_scenes": (3, 4),
  "audioset": (3, 4),
  "sysu_mm01": (8, 8),
  "regdb": (4, 4),
  "ego4d_imu": (4, 4),
  "pcqm4mv2": (3, 3),
  "global_temperature": (6, 6),
  "indian_pines": (78, 78),
  "credit_card_fraud": (4, 4),
}
SMALL = (
  "model.vision.image_size=16",
  "model.vision.width=16",
  "model.vision.depth=1",
  "model.vision.num_heads=2",
  "model.vision.mlp_dim=16",
  "model.text.width=16",
  "model.text.depth=1",
  "model.text.num_heads=2",
  "model.text.mlp_dim=16",
  "model.embed_dim=8",
  "model.scan=False",
  "evaluation.batch_size=8",
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
    (*SMALL, f"tasks.{name}.batch_size=8", *more),
    arg=f"{folder},omniworld,mico_tiny",
  )


def measured(config: config_lib.Config) -> list[Result]:
  """What is measured after two steps, on one device."""
  session = setup.resolve(config)
  session.check_training()
  config = session.config
  (task,) = config.tasks.values()
  mesh = make_mesh(config.parallel, jax.devices()[:1])
  state = init_state(session.model, config, mesh, optimizer=session.optimizer)
  step = make_train_step(
    *(session.model, config, task, session.tokenizer.info, mesh),
    optimizer=session.optimizer,
  )
  sources = dict(session.sources)
  for _, _, batch in Pipeline(
    config, session.tokenizer, end_step=2, sources=sources
  ):
    state, metrics = step(state, sharding.put_batch(batch, mesh))
    assert np.isfinite(float(compute(metrics["loss"])))
  return evaluate(session.model, state.params, config, session.tokenizer)


def test_every_set_has_a_config_and_a_stand_in():
  rows = {
    path.stem for path in FOLDER.glob("*.py") if "PaperSet(" in path.read_text()
  }
  assert rows == {*official_sets.SETS} == {*perception.SETS}
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
    told = json.loads(capsys.readouterr().out)
    assert f"perception/{name}:{copy}" in told["train"]
  _, paper = call(f"perception/{name}", "paper")
  found = {result.name: result for result in measured(load(name, copy))}
  result = found[paper.result]
  assert np.isfinite(result.value)
  assert (result.n, result.total) == MEASURED[name]
  measure = find_measure(result.name)
  assert measure is not None
  assert measure.lower_is_better == paper.lower_is_better


def test_the_command_that_a_build_tells(tmp_path, capsys):
  """Of a manifest elsewhere, whose files only the command lets be read."""
  copy = write_set("credit_card_fraud", tmp_path / "copy")
  more = ("--other-split", "--out", tmp_path / "out")
  assert build("credit_card_fraud", copy, *more) == 0
  words = json.loads(capsys.readouterr().out)["train"].split()
  assert words[:2] == ["mico-jax", "pretrain"]
  where = words.index("--config") + 1
  words[where] += ",omniworld,mico_tiny"
  small = (*SMALL, "tasks.credit_card_fraud.batch_size=8")
  argv = [*words[1:], *(f"--config.{text}" for text in small)]
  assert main([*argv, "--workdir", str(tmp_path / "run")]) == 0
  (path,) = (tmp_path / "run").rglob("evaluation.json")
  assert "classifier/k/F1" in path.read_text()


def test_settings_are_those_of_the_paper(tmp_path):
  copy = write_set("imagenet_1k", tmp_path)
  giant = config_lib.load("perception/imagenet_1k", arg=str(copy))
  assert giant.model.vision.width == 1408
  assert giant.data.tokenizer.path == "vocab.txt"
  assert giant.tasks["imagenet_1k"].batch_size == 512
  assert giant.optimizer.learning_rate == 5e-5
  assert giant.optimizer.weight_decay == 1e-8
  assert giant.train.steps == round(30 * 1_281_167 / 512)
  large = config_lib.load("perception/imagenet_1k", arg=f"{copy},,mico_l14")
  assert large.tasks["imagenet_1k"].batch_size == 4096
  assert large.optimizer.learning_rate == 4e-3
  assert large.optimizer.weight_decay == 0.05
  assert large.train.steps == round(90 * 1_281_167 / 4096)
  targets = large.objectives.options["classification"]["targets"]["i"]
  assert targets["classes"] == WNIDS
  with pytest.raises(ConfigError, match="no preset 'x'"):
    config_lib.load("perception/imagenet_1k", arg=f"{copy},,x")
  with pytest.raises(ConfigError, match='expected "FOLDER"'):
    config_lib.load("perception/imagenet_1k", arg=f"{copy},a,mico_g14,b")


@pytest.mark.parametrize(
  ("name", "lost", "words"),
  [
    ("imagenet_1k", "LOC_synset_mapping.txt", "train/WNID/"),
    ("kinetics700", "val.csv", "columns label, youtube_id"),
    ("audioset", "class_labels_indices.csv", "balanced_train_segments"),
  ],
)
def test_a_missing_list_of_classes_is_named(name, lost, words, tmp_path):
  copy = write_set(name, tmp_path)
  (copy / lost).unlink()
  with pytest.raises(ConfigError, match=f"none of these files: {lost}") as said:
    load(name, copy)
  assert words in str(said.value)


def test_a_missing_part_to_train_on_is_named(tmp_path):
  copy = write_set("nyu_d_scenes", tmp_path)
  official_copies.write_copy("nyu_d_scenes", copy)  # splits.mat without it
  with pytest.raises(ConfigError, match="no list 'trainNdxs', but testNdxs"):
    open_source(load("nyu_d_scenes", copy), "train")


def test_shards_of_the_parts_are_the_official_files(tmp_path):
  copy, packed = write_set("audioset", tmp_path / "copy"), tmp_path / "packed"
  for part in ("balanced_train", "unbalanced_train", "eval"):
    more = ("--split", part, "--out", packed / part, "--other-split")
    assert build("audioset", copy, *more) == 0
  first, again = load("audioset", copy), load("audioset", packed)
  options = lambda config: config.objectives.options
  assert options(first) == options(again)
  for part in ("balanced_train", "unbalanced_train", "test"):
    one, two = open_source(first, part), open_source(again, part)
    assert len(one) == len(two)
    for i in range(len(one)):
      a, b = one.record(i), two.record(i)
      assert (a.id, a.fields["labels"]) == (b.id, b.fields["labels"])
      assert a.read(["audio"]) == b.read(["audio"])
  # The split cannot stand for a part, nor the reverse.
  (packed / "eval").rename(packed / "x")
  (packed / "balanced_train").rename(packed / "eval")
  with pytest.raises(ConfigError, match="in another way than when"):
    load("audioset", packed)


def test_a_part_that_a_protocol_lacks_is_refused(tmp_path, capsys):
  copy = write_set("imagenet_1k", tmp_path)
  assert build("imagenet_1k", copy, "--split", "dev", "--out", "x") == 2
  assert "no part 'dev' to train on; known: train" in capsys.readouterr().err
