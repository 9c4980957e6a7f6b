"""Promise: ways of training differ by their config only.

Each case is one task on OmniWorld with a tiny model; one real step of each.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from mico_jax.config import (
  ConfigError,
  OptimizerConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.data.pipeline import Pipeline
from mico_jax.objectives import compute
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.testing.tiny_checkpoint import tiny_config
from mico_jax.train.selection import paths
from mico_jax.train.state import init_state
from mico_jax.train.step import make_train_step

CONTRASTIVE = {"contrastive": ("tv",)}
ALL = {"contrastive": ("tva",), "matching": ("tva",), "captioning": ("tva",)}
# Name -> objectives, optimizer options, train options, paths that must move
# and paths that must stay (prefixes).
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any]] = {
  "contrastive": (CONTRASTIVE, {}, {}, (("vision", "text"), ())),
  "contrastive + matching": (
    {"contrastive": ("tv",), "matching": ("tv",)},
    *({}, {}),
    (("vision", "matching_head"), ()),
  ),
  "all three": (
    ALL,
    *({}, {}),
    (("vision", "matching_head", "text/lm_head"), ()),
  ),
  "masked modelling": (
    {"masked_modelling": ("i",)},
    *({}, {}),
    (("vision", "objective"), ("text", "contrastive_head")),
  ),
  "question answering": (
    {"question_answering": ("tv",)},
    *({}, {}),
    (("vision", "text/lm_head"), ("matching_head",)),
  ),
  "captioning of one modality": (
    {"captioning": ("td",)},
    *({}, {}),
    (("vision", "project/depth"), ("project/audio",)),
  ),
  "single modality": (
    {"contrastive": ("ta",)},
    *({}, {}),
    (("contrastive_head/a",), ("contrastive_head/v",)),
  ),
  "subtitles": (
    {"contrastive": ("ts",), "matching": ("ts",)},
    *({}, {}),
    (("project/subtitle", "contrastive_head/s"), ()),
  ),
  "frozen text": (
    CONTRASTIVE,
    {"freeze": ("^text/", "^contrastive_head/t/")},
    {},
    (("vision",), ("text", "contrastive_head/t")),
  ),
  "low-rank deltas": (
    CONTRASTIVE,
    {"lora_rank": 2},
    {},
    (("lora",), ("vision", "text", "contrastive_head")),
  ),
  "layer decay and multipliers": (
    CONTRASTIVE,
    {"layer_decay": 0.5, "lr_multipliers": {"^text/": 0.0}},
    {},
    (("vision",), ("text",)),
  ),
  "averaged weights": (CONTRASTIVE, {"ema": 0.9}, {}, (("vision",), ())),
  "patch dropout": (
    CONTRASTIVE,
    {},
    {"patch_dropout": 0.5},
    (("vision",), ()),
  ),
  "muon": (CONTRASTIVE, {"name": "muon"}, {}, (("vision",), ())),
}


def session_of(name: str) -> setup.Session:
  """The resolved config of a case."""
  objectives, optimizer, train, _ = CASES[name]
  base = tiny_config()
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(base.model.vision, depth=1, width=16),
    text=dataclasses.replace(base.model.text, depth=1, width=16),
  )
  lengths = {"default": 40, "omni": 40, "question": 14, "answer": 6}
  tokenizer = dataclasses.replace(base.data.tokenizer, max_length=lengths)
  task = TaskConfig(
    sources={"train": 1}, batch_size=4, objectives=dict(objectives)
  )
  config = dataclasses.replace(
    base,
    model=model,
    data=dataclasses.replace(base.data, tokenizer=tokenizer),
    tasks={"one": task},
    optimizer=OptimizerConfig(
      learning_rate=1e-2, warmup=0.0, weight_decay=0.0, **optimizer
    ),
    train=TrainConfig(steps=2, **train),
  )
  return setup.resolve(config)


def moved(before: Any, after: Any) -> dict[str, bool]:
  """Path -> whether any value changed."""
  differ = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  return dict(zip(paths(differ), jax.tree.leaves(differ), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_one_step(name):
  session = session_of(name)
  config = session.config
  mesh = make_mesh(config.parallel, jax.devices()[:1])
  state = init_state(session.model, config, mesh, optimizer=session.optimizer)
  step = make_train_step(
    session.model,
    config,
    config.tasks["one"],
    session.tokenizer.info,
    mesh,
    optimizer=session.optimizer,
    donate=False,
  )
  pipeline = Pipeline(
    config, session.tokenizer, end_step=1, sources=dict(session.sources)
  )
  (_, _, batch), *_ = list(pipeline)
  after, metrics = step(state, sharding.put_batch(batch, mesh))
  assert np.isfinite(float(compute(metrics["loss"])))
  assert int(after.total_skipped) == 0
  changes = moved(state.params, after.params)
  trained, kept = CASES[name][3]
  for prefix in trained:
    assert any(v for k, v in changes.items() if k.startswith(prefix)), prefix
  for prefix in kept:
    assert not any(v for k, v in changes.items() if k.startswith(prefix)), (
      prefix
    )
  assert (after.ema is not None) == (config.optimizer.ema > 0)


def test_matching_needs_a_head_and_says_so(monkeypatch):
  case = ({"matching": ("tvs",)}, {}, {}, ((), ()))
  monkeypatch.setitem(CASES, "no head", case)
  with pytest.raises(ConfigError, match="no contrastive head for 'vs'"):
    session_of("no head")
