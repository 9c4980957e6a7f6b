"""Corpora of single sensors bound by text, and pairs that never met."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from mico_jax import config as config_lib
from mico_jax import world
from mico_jax.data.records import Record
from mico_jax.data.samples import groups_of, keys_of
from mico_jax.data.sources import open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.evaluation import results as results_lib
from mico_jax.evaluation.evaluators.instance_pairs import (
  InstancePairs,
  agreeing,
)
from mico_jax.evaluation.features import Gallery
from mico_jax.modalities import by_letter, sides
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import setup
from mico_jax.run.pretrain import pretrain

UNTYPED = getattr(InstancePairs.measure, "__wrapped__", InstancePairs.measure)


def test_no_task_trains_an_unmet_pair_and_scenes_are_apart():
  config = config_lib.load("any_to_any")
  pairs = config.evaluation.options["instance_pairs"]["pairs"]
  assert len(pairs) > 3
  read = {
    name: ({*keys_of(groups_of(task))}, *task.sources)
    for name, task in config.tasks.items()
  }
  for pair in pairs:
    both = {by_letter(letter).key for letter in sides(pair)}
    assert not any(both <= keys for keys, _ in read.values()), pair
  for keys, _ in read.values():
    assert len(keys) == 1 or not keys & {"thermal", "imu", "pointcloud"}
  sources = config.data.sources
  for letter in "hmp":
    (name,) = (n for n, (k, _) in read.items() if k == {by_letter(letter).key})
    assert name in sources
  seeds = [(s.split, s.seed) for s in sources.values()]
  assert len(set(seeds)) == len(seeds)


def test_no_text_is_cut():
  config = config_lib.load("any_to_any")
  tokenizer = make_tokenizer(config.data.tokenizer)
  source = open_source(config, "val")
  scenes = [source.record(i) for i in range(60)]
  wide = [r for r in scenes if len(r.fields["scene"].solids) == 3]
  for kind, length in config.data.tokenizer.max_length.items():
    for record in wide if kind != "default" else ():
      for text in record.captions[kind]:
        assert tokenizer.decode(tokenizer.encode(text, length)) == text


def test_facts_that_a_pair_shares():
  """Embeddings of the facts that both show: always the right facts."""
  scenes = [world.World(split="test").scene(i) for i in range(60)]
  names = world.common_facts("h", "a")
  keys = [world.ceiling.facts_key(scene, names) for scene in scenes]
  places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
  rows = np.eye(len(places), dtype=np.float32)[[places[k] for k in keys]]
  pairs = agreeing(scenes, "h", "a")
  brute = [(i, j) for i in range(60) for j in range(60) if keys[i] == keys[j]]
  assert pairs.tolist() == [list(pair) for pair in brute]
  order = [*range(29, -1, -1), *range(30, 60)]
  gallery = Gallery(
    records=[Record(str(i), fields={"scene": s}) for i, s in enumerate(scenes)],
    present={k: np.ones(60, bool) for k in ("thermal", "audio")},
    embeddings={"h": rows, "a": rows[order]},
    pooled={},
    batches=[],
  )
  evaluator = InstancePairs(pairs=("h:a",))
  job = types.SimpleNamespace(
    gallery=gallery,
    config=config_lib.Config(),
    protocol=results_lib.Protocol(bootstrap=10),
  )
  found = {r.name: r for r in UNTYPED(evaluator, job)}
  # Half of the sounds are those of other scenes; equal ones count as before.
  first = [[j for j in range(60) if keys[order[j]] == key] for key in keys]
  hits = [
    all(keys[j] == key for j in some)
    for key, some in zip(keys, first, strict=True)
  ]
  assert 0 < np.mean(hits) < 1
  right = found["instance/h->a/facts@1"]
  assert right.value == pytest.approx(np.mean(hits))
  assert right.baseline == pytest.approx(len(brute) / 3600)
  gallery = dataclasses.replace(gallery, embeddings={"h": rows, "a": rows})
  job.gallery = gallery
  found = {r.name: r for r in UNTYPED(evaluator, job)}
  assert found["instance/h->a/facts@1"].value == 1.0
  assert found["instance/a->h/facts@1"].value == 1.0
  recall = found["instance/h->a/R@1"]
  assert recall.ceiling == pytest.approx(len(places) / 60)
  # Of equal items none is before the others, so that only lone ones are found.
  assert recall.value == np.mean([keys.count(k) == 1 for k in keys])


def test_two_steps_and_an_unmet_pair(tmp_path, monkeypatch):
  monkeypatch.setattr(
    setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])
  )
  config = config_lib.load("any_to_any")
  shrink = lambda part: dataclasses.replace(
    part, depth=1, width=24, num_heads=1, mlp_dim=24
  )
  task = config.tasks["thermal"]
  tasks = {"thermal": dataclasses.replace(task, batch_size=8)}
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(
      config.model,
      vision=shrink(config.model.vision),
      text=shrink(config.model.text),
      embed_dim=16,
      heads=("t", "a", "h"),
      frame_changes=(),
      frame_table={"audio": 2, "thermal": 1},
    ),
    tasks=tasks,
    data=dataclasses.replace(
      config.data,
      tokenizer=dataclasses.replace(
        config.data.tokenizer,
        max_length={"default": 42, "omni": 42, "thermal": 28},
      ),
    ),
    train=dataclasses.replace(
      config.train, steps=2, checkpoint_every=2, tensorboard=False, log_every=1
    ),
    evaluation=dataclasses.replace(
      config.evaluation,
      size=24,
      batch_size=8,
      groups=("h",),
      options={"instance_pairs": {"pairs": ("h:a",)}},
      bootstrap=10,
      examples=0,
    ),
  )
  results = {r.name: r for r in pretrain(config, tmp_path / "run").results}
  pair = results["instance/h->a/R@1"]
  assert (pair.n, pair.gallery) == (24, 24)
  source = open_source(config, "test")
  scenes = [source.record(i).fields["scene"] for i in source.world.gallery(24)]
  assert pair.ceiling == world.pair_ceiling(scenes, "h", "a")
  assert pair.baseline == pytest.approx(1 / 24)
  assert 0 <= results["instance/a->h/facts@1"].value <= 1
  assert results["retrieval/t->h/R@1"].ceiling is not None
