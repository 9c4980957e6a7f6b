"""Every shipped config resolves, has a model, and the demo learns."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from mico_jax import config as config_lib
from mico_jax.config import Config
from mico_jax.data.pipeline import Pipeline, batch_spec
from mico_jax.objectives import compute
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.testing.tiny_data import write_manifest
from mico_jax.train.state import abstract_params, init_state
from mico_jax.train.step import make_train_step

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
# Recipes for many chips (`mico_*`) are tested by their plans.
NAMES = sorted(
  path.stem
  for path in FOLDER.glob("*.py")
  if not path.stem.startswith(("_", "mico_"))
)
# Configs that take the path of a manifest, and the fields of its records.
MANIFESTS = {
  "omni_digits": {
    "image_caption": "the digit {}",
    "audio_caption": "a voice says {}",
    "caption": "the number {}",
    "pair": 0,
  },
  "grid_av": {"caption": "bin blue at {} now", "video": "{}.png"},
  "esc10": {"caption": "the sound of rain number {}"},
  "rgbd_normal": {"rgb": "{}.png", "normal": "{}.png", "depth": "{}.d.png"},
}


def shipped(name: str, folder: pathlib.Path) -> Config:
  """A shipped config, with a manifest of its form where it takes one."""
  if name not in MANIFESTS:
    return config_lib.load(name)
  # Half of the records are for training, half for testing.
  extra: dict[str, list] = {"split": ["train"] * 8 + ["test"] * 8}
  for field, value in MANIFESTS[name].items():
    text = isinstance(value, str)
    extra[field] = [value.format(i) if text else value for i in range(16)]
  path = write_manifest(folder / "set", 16, **extra)
  for i in range(16):
    depth = np.full((32, 32), 500 + 10 * i, np.uint16)
    Image.fromarray(depth).save(folder / "set" / f"{i}.d.png")
  return config_lib.load(name, arg=str(path))


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


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_first_batch_of_real_sets(name, tmp_path):
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
