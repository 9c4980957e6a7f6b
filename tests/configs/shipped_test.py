"""Every shipped config resolves, has a model, and the demo learns."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from mico_jax import config as config_lib
from mico_jax.config import Config
from mico_jax.data.pipeline import Pipeline, batch_spec
from mico_jax.data.sources import open_source
from mico_jax.objectives import compute
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.run.pretrain import pretrain
from mico_jax.testing import tiny_sensor_sets
from mico_jax.testing.tiny_data import write_manifest
from mico_jax.train import perception, small_sets
from mico_jax.train.state import abstract_params, init_state
from mico_jax.train.step import make_train_step

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
# Recipes for many chips (`mico_*`) are tested by their plans, those of the
# paper's data sets in `paper_sets_test`.
NAMES = sorted(
  path.relative_to(FOLDER).with_suffix("").as_posix()
  for pattern in ("*.py", "perception/*.py")
  for path in FOLDER.glob(pattern)
  if not path.stem.startswith(("_", "mico_"))
  and path.stem not in perception.SETS
)
# Configs that take the path of a manifest, and the fields of its records.
RECORDS = 16  # half for training, half for testing
MANIFESTS: dict[str, dict[str, Any]] = {
  "perception/caltech101": {"caption": "a photo of a thing {}"},
  "perception/cifar10": {"caption": "a photo of a ship {}"},
  "perception/coco_captions_mini": {
    "captions": [[f"ships at sea {i}", "a harbour"] for i in range(RECORDS)],
  },
  "perception/esc10": {
    "caption": "the sound of rain number {}",
    "fold": [1, 1, 2, 2, 3, 3, 3, 3] + [4] * 8,
  },
  "perception/grid_av": {
    "caption": "bin blue at {} now",
    "video": "{}.png",
    "speaker": ["s1", "s2"] * 8,
  },
  "perception/mnist": {"caption": "a handwritten {}", "image": "digits[{}]"},
  "perception/omni_digits": {
    "image_caption": "the digit {}",
    "audio_caption": "a voice says {}",
    "class_name": "number {}",
    "pair": 0,
  },
  "perception/omni_sound_image": {"class_name": "thing {}"},
  "perception/rgbd_normal": {
    "rgb": "{}.png",
    "normal": "{}.png",
    "depth": "{}.d.png",
    "frame": [0, 3, 6, 564, 567, 600, 603, 699] + [900] * 8,
  },
  "perception/spoken_digits": {
    "class_name": "digit {}",
    "take": [5, 9, 10, 11, 12, 48, 49, 49] + [0] * 8,
    "speaker": ["george", "jackson", "nicolas", "yweweler"] * 4,
  },
}
REAL_SETS = sorted({*MANIFESTS, *tiny_sensor_sets.FILES})


def shipped(name: str, folder: pathlib.Path, part: str = "") -> Config:
  """A shipped config, with a manifest of its form where it takes one."""
  if name in tiny_sensor_sets.FILES:
    path = tiny_sensor_sets.write_set(name, folder / "set", FOLDER)
    return config_lib.load(name, arg=f"{path}{part}")
  if name not in MANIFESTS:
    return config_lib.load(name)
  extra: dict[str, list] = {"split": ["train"] * 8 + ["test"] * 8}
  for field, value in MANIFESTS[name].items():
    if isinstance(value, str):
      value = [value.format(i) for i in range(RECORDS)]
    extra[field] = value if isinstance(value, list) else [value] * RECORDS
  path = write_manifest(folder / "set", RECORDS, **extra)
  for i in range(RECORDS):
    depth = np.full((32, 32), 500 + 10 * i, np.uint16)
    Image.fromarray(depth).save(folder / "set" / f"{i}.d.png")
  digits = np.zeros((RECORDS, 28, 28), np.uint8)
  np.savez(folder / "set" / "mnist.npz", digits=digits)
  return config_lib.load(name, arg=f"{path}{part}")


@pytest.mark.parametrize("name", NAMES)
def test_config_resolves_and_has_a_model(name, tmp_path):
  config = shipped(name, tmp_path)
  if name == "base":  # all defaults; names no vocabulary, data or task
    with pytest.raises(config_lib.ConfigError, match="path is empty"):
      setup.resolve(config)
    return
  session = setup.resolve(config)
  session.check_training()
  shapes = abstract_params(session.model, session.config)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
  assert 1e5 < count < 3e6
  for source in session.config.data.sources.values():
    assert source.count > 0
  for task in session.config.tasks:
    assert batch_spec(session.config, task)["inputs"]
  assert session.config.evaluation.source in session.config.data.sources


@pytest.mark.parametrize("name", REAL_SETS)
def test_first_batch_of_real_sets(name, tmp_path):
  if name == "perception/esol":
    pytest.importorskip("rdkit", reason="SMILES need the extra `molecules`")
  session = setup.resolve(shipped(name, tmp_path))
  (_, task, batch), *_ = list(
    Pipeline(
      session.config,
      session.tokenizer,
      end_step=1,
      sources=dict(session.sources),
    )
  )
  size = session.config.tasks[task].batch_size
  assert batch["row"].shape == (size,)
  assert all(present.all() for present in batch["present"].values())


@pytest.mark.parametrize("name", REAL_SETS)
def test_settings_are_chosen_on_training_samples(name, tmp_path):
  """No part is of the test split, and they share no sample."""
  if name in ("perception/omni_digits", "perception/omni_sound_image"):
    with pytest.raises(config_lib.ConfigError, match="no part of its own"):
      shipped(name, tmp_path, ",validation")
    return
  with pytest.raises(config_lib.ConfigError, match="'valid' behind the comma"):
    shipped(name, tmp_path, ",valid")
  config = shipped(name, tmp_path, ",validation")
  found = {}
  for part in ("train", "test"):
    source = open_source(config, part)
    records = [source.record(i) for i in range(len(source))]
    assert "test" not in {r.fields["split"] for r in records}
    found[part] = {r.id for r in records}
  assert found["train"]
  assert found["test"]
  assert not found["train"] & found["test"]


def test_a_speaker_is_left_out(tmp_path):
  config = shipped("perception/spoken_digits", tmp_path, ",without=jackson")
  found = {}
  for part in ("train", "test"):
    source = open_source(config, part)
    records = [source.record(i).fields for i in range(len(source))]
    found[part] = {(r["speaker"], r["split"]) for r in records}
  assert found["test"] == {("jackson", "train"), ("jackson", "test")}
  others = ("george", "nicolas", "yweweler")
  assert found["train"] == {(speaker, "train") for speaker in others}
  with pytest.raises(config_lib.ConfigError, match="no speaker 'bob'"):
    shipped("perception/spoken_digits", tmp_path, ",without=bob")


def test_a_small_set_is_learned_and_measured(tmp_path):
  """Two steps and all measures, with an encoder of two blocks."""
  config = shipped("perception/omni_sound_image", tmp_path)
  (task,) = config.tasks.values()
  size = config.model.vision.image_size
  vision = small_sets.convnet(size, 8, (1, 1), patch_size=size // 4)
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, vision=vision),
    tasks={config.name: dataclasses.replace(task, batch_size=8)},
    train=dataclasses.replace(config.train, steps=2, tensorboard=False),
  )
  results = pretrain(config, tmp_path / "run").results
  names = {result.name for result in results}
  for letter in config.evaluation.groups:
    for measure in ("zero-shot", "linear probe", "nearest"):
      assert f"{measure}/{letter}/accuracy" in names
  for pair in config.evaluation.item_pairs:
    assert any(pair.replace(":", "->") in n for n in names)


def test_a_few_steps_of_the_demo_lower_its_loss():
  config = config_lib.load("demo")
  model = config.model
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(
      model,
      vision=dataclasses.replace(model.vision, depth=1, width=48, mlp_dim=96),
      text=dataclasses.replace(model.text, depth=1, width=48, mlp_dim=96),
    ),
    # Its first task, on few samples.
    tasks={
      name: dataclasses.replace(task, batch_size=8)
      for name, task in list(config.tasks.items())[:1]
    },
    optimizer=dataclasses.replace(
      config.optimizer, schedule="constant", warmup=0.0
    ),
  )
  session = setup.resolve(config)
  config = session.config
  (name,) = config.tasks
  mesh = make_mesh(config.parallel, jax.devices()[:1])
  state = init_state(session.model, config, mesh, optimizer=session.optimizer)
  step = make_train_step(
    session.model,
    config,
    config.tasks[name],
    session.tokenizer.info,
    mesh,
    optimizer=session.optimizer,
  )
  (_, _, batch), *_ = list(
    Pipeline(
      config, session.tokenizer, end_step=1, sources=dict(session.sources)
    )
  )
  batch = sharding.put_batch(batch, mesh)
  losses = []
  for _ in range(8):
    state, metrics = step(state, batch)
    losses.append(float(compute(metrics["loss"])))
  assert np.isfinite(losses).all()
  assert losses[-1] < losses[0]
