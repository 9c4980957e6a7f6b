"""A tiny initialised checkpoint of every modality, for tests."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from mico_jax.checkpoint import manager, manifest
from mico_jax.config import (
  Config,
  DataConfig,
  EvaluationConfig,
  InputConfig,
  SourceConfig,
  TaskConfig,
  TokenizerConfig,
  TrainConfig,
)
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.inference.prepare import Preparer
from mico_jax.inference.self_check import make_self_check
from mico_jax.models import build
from mico_jax.testing.tiny_model import tiny_model

# One config text for tests that need a file: `tiny(**changes)` as Python.
CONFIG_FILE = """\
from mico_jax import config as c
from mico_jax.testing.tiny_checkpoint import tiny_config


def get_config():
  return c.to_config_dict(tiny_config())
"""


def tiny_config(**changes: Any) -> Config:
  """All modalities of OmniWorld at 16 pixels, two layers of width 32."""
  world = lambda split: SourceConfig(kind="omniworld", split=split, size=64)
  wide = {"width": 32, "mlp_dim": 64}
  config = Config(
    name="tiny",
    model=tiny_model(
      vision={"image_size": 16, "patch_size": 8, **wide},
      text={"vocab_size": 512, "max_positions": 48, **wide},
      embed_dim=32,
      heads=("t", "s", "v", "a", "d", "n", "va"),
    ),
    data=DataConfig(
      sources={"train": world("train"), "test": world("test")},
      inputs={"video": InputConfig(frames=2), "audio": InputConfig(frames=2)},
      tokenizer=TokenizerConfig(
        kind="omniworld", max_length={"default": 40, "omni": 40}
      ),
      num_threads=1,
    ),
    tasks={
      "av": TaskConfig(
        sources={"train": 1},
        batch_size=8,
        objectives={"contrastive": ("tva",)},
      )
    },
    train=TrainConfig(
      steps=4, checkpoint_every=2, log_every=1, tensorboard=False
    ),
    evaluation=EvaluationConfig(
      source="test", size=8, batch_size=8, groups=("va",), bootstrap=10
    ),
  )
  return dataclasses.replace(config, **changes)


@dataclasses.dataclass
class Weights:
  """A state of parameters alone."""

  params: Mapping[str, Any]
  opt_state: Any = None
  ema: Any = None


def save_tiny(
  workdir: pathlib.Path,
  *,
  step: int = 1,
  seed: int = 0,
  config: Config | None = None,
) -> pathlib.Path:
  """Saves fresh parameters as a checkpoint; returns the step folder."""
  config = config or tiny_config()
  tokenizer = make_tokenizer(config.data.tokenizer)
  model = build(config.model)
  extras = manager.Extras(
    logical_axes=model.logical_axes(),
    tokenizer_files=tokenizer.files(),
    tokenizer_info=dataclasses.asdict(tokenizer.info),
    preprocessing=Preparer(config, tokenizer).describe(),
    self_check=make_self_check(config, tokenizer),
  )
  keeper = manager.Manager(workdir, config=config, extras=extras)
  keeper.save(step, Weights(jax.jit(model.init)(jax.random.key(seed))))
  keeper.close()
  return workdir / manager.CHECKPOINTS / str(step)


def resign(folder: pathlib.Path, config: Config) -> None:
  """Puts another config into a checkpoint and makes its hashes fit.

  What is left to notice the change is the output of the self-check.
  """
  from mico_jax.config import to_json

  text = to_json(config).encode()
  (folder / "config" / manifest.CONFIG).write_bytes(text)
  path = folder / "manifest" / manifest.MANIFEST
  values = json.loads(path.read_text())
  values["config_sha256"] = manifest.sha256(text)
  data = json.dumps(values).encode()
  path.write_bytes(data)
  (folder / "manifest" / manifest.MANIFEST_HASH).write_text(
    manifest.sha256(data)
  )
