"""The training step: skipping, averaging, options, and what it costs."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import (
  ConfigError,
  ContrastiveConfig,
  MatchingConfig,
  ObjectivesConfig,
  OptimizerConfig,
  ParallelConfig,
)
from mico_jax.kernels import target
from mico_jax.models import ContextKV, build, forward
from mico_jax.objectives import compute
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.parallel.sharding import put_batch
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train import encode
from mico_jax.train.layout import kernels_on
from mico_jax.train.metrics import Aggregator
from mico_jax.train.state import init_state
from mico_jax.train.step import make_loss, make_train_step

CONTRASTIVE = {"contrastive": ("tva",)}


@pytest.fixture(scope="module")
def mesh():
  return make_mesh(ParallelConfig(), jax.devices()[:1])


def start(config, mesh):
  model = build(config.model)
  step = make_train_step(
    model, config, config.tasks["main"], TOKENIZER, mesh, donate=False
  )
  return init_state(model, config, mesh), step


@pytest.fixture(scope="module")
def averaged(mesh):
  """State, step and batch of a run that averages its weights."""
  config = tiny_config(CONTRASTIVE, optimizer=fast(ema=0.9))
  return *start(config, mesh), put_batch(fake_batch(("tva",)), mesh)


def fast(**changes):
  return OptimizerConfig(learning_rate=1e-2, warmup=0.0, **changes)


def same(a, b):
  return all(
    jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))
  )


def test_nonfinite_step_changes_counters_only_and_training_goes_on(
  mesh, averaged
):
  state, step, good = averaged
  bad = fake_batch(("tva",))
  bad["pixels"]["audio"][2, 0, 0, 0, 0] = np.nan
  bad = put_batch(bad, mesh)
  state, _ = step(state, good)
  broken, metrics = step(state, bad)
  assert same(broken.params, state.params)
  assert same(broken.opt_state, state.opt_state)
  assert same(broken.ema, state.ema)
  assert int(broken.step) == 2
  assert int(broken.skipped) == int(broken.total_skipped) == 1
  assert compute(metrics["skipped"]) == 1
  broken, _ = step(broken, bad)
  assert int(broken.skipped) == 2
  state, metrics = step(broken, good)
  assert int(state.skipped) == 0
  assert int(state.total_skipped) == 2
  assert not same(state.params, broken.params)
  assert compute(metrics["skipped"]) == 0
  assert step._cache_size() == 1  # no recompilation on the way


def test_loss_falls_and_averaged_weights_follow(averaged):
  state, step, batch = averaged
  first = state
  losses = Aggregator()
  for _ in range(12):
    state, metrics = step(state, batch)
    losses.add(metrics)
  _, last = step(state, batch)
  assert len(losses) == 12
  mean = losses.compute()
  assert len(losses) == 0
  assert compute(last["loss"]) < mean["loss"]
  assert mean["learning_rate"] > 0
  leaf = lambda s: np.asarray(s["contrastive_head"]["va"]["kernel"])
  distance = lambda a, b: np.abs(leaf(a) - leaf(b)).max()
  assert distance(state.ema, state.params) > 0
  assert distance(state.ema, state.params) < distance(
    first.params, state.params
  )


def test_learning_rate_follows_the_step_not_the_updates(mesh):
  config = tiny_config(CONTRASTIVE, optimizer=OptimizerConfig(warmup=10.0))
  state, step = start(config, mesh)
  batch = put_batch(fake_batch(("tva",)), mesh)
  rates = []
  for _ in range(3):
    state, metrics = step(state, batch)
    rates.append(float(compute(metrics["learning_rate"])))
  np.testing.assert_allclose(rates, [1e-5, 2e-5, 3e-5], rtol=1e-5)


def test_temperature_stays_above_its_floor_and_can_leave_it(averaged):
  state, step, batch = averaged
  place = state.params["temperature"].sharding  # else the step compiles anew
  floor = jax.device_put(jnp.float32(0.01), place)
  low = {**state.params, "temperature": floor}
  state, _ = step(state.replace(params=low), batch)
  assert state.params["temperature"] > 0.01  # random pairs: it rises


def test_frozen_text_and_deltas(mesh):
  optimizer = fast(freeze=("^text/",))
  state, step = start(tiny_config(CONTRASTIVE, optimizer=optimizer), mesh)
  batch = put_batch(fake_batch(("tva",)), mesh)
  after, _ = step(state, batch)
  assert same(after.params["text"], state.params["text"])
  assert not same(after.params["vision"], state.params["vision"])

  optimizer = fast(lora_rank=2)
  state, step = start(tiny_config(CONTRASTIVE, optimizer=optimizer), mesh)
  after, _ = step(state, batch)
  rest = lambda s: {k: v for k, v in s.params.items() if k != "lora"}
  assert same(rest(after), rest(state))
  assert not same(after.params["lora"], state.params["lora"])


# --------------------------------------------------------------------- options
@functools.cache
def tiny_params():
  """Parameters of `TINY_MODEL`."""
  return jax.jit(build(TINY_MODEL).init)(jax.random.key(0))


COMPILED = {}  # losses by the text of their config, and whether they train


def loss_of(config, batch, seed_step=0, train=True):
  key = repr(config), train
  if key not in COMPILED:
    model = build(config.model)
    loss = make_loss(model, config, config.tasks["main"], TOKENIZER)
    COMPILED[key] = jax.jit(
      lambda p, b, step: loss(p, b, step=step, train=train)
    )
  return COMPILED[key](tiny_params(), batch, jnp.int32(seed_step))


def replace(config, objective, **changes):
  own = dataclasses.replace(getattr(config.objectives, objective), **changes)
  objectives = dataclasses.replace(config.objectives, **{objective: own})
  return dataclasses.replace(config, objectives=objectives)


@pytest.mark.parametrize(
  ("objective", "changes"),
  [
    ("contrastive", {"weight": 0.5}),
    ("contrastive", {"label_smoothing": 0.0}),
    ("contrastive", {"share_identical_texts": False}),
    ("matching", {"weight": 1.0}),
    ("matching", {"explicit_negatives": False}),
    ("captioning", {"mask_prob": 0.2}),
    ("captioning", {"label_smoothing": 0.1}),
    ("question_answering", {"mask_prob": 0.3}),
  ],
)
def test_every_option_changes_the_loss(objective, changes):
  config = tiny_config({objective: ("tv",)})
  batch = fake_batch(("tv",), negatives=1)
  batch["text"]["tv"][1] = batch["text"]["tv"][0]
  batch["weight"][1] = 0.5  # equal weights: shared mass changes no sum
  before, _ = loss_of(config, batch)
  after, _ = loss_of(replace(config, objective, **changes), batch)
  assert abs(float(before - after)) > 1e-6


def test_options_of_mining_change_the_candidates():
  config = tiny_config({"matching": ("tv",)})
  batch = fake_batch(("tv",))
  batch["text"]["tv"][:4] = batch["text"]["tv"][0]
  draws = lambda c, s: loss_of(c, batch, s)[1][1]["matching/tv/context_index"]
  ours = np.stack([draws(config, s) for s in range(3)])
  assert (ours[:, :4] >= 4).all()
  released = replace(config, "matching", exclude_identical_texts=False)
  theirs = np.stack([draws(released, s) for s in range(3)])
  assert (theirs[:, :4] < 4).any()
  small = replace(config, "matching", group_rows=2)
  batch["text"] = fake_batch(("tv",), seed=5)["text"]
  pairs = np.asarray(draws(small, 0))
  np.testing.assert_array_equal(pairs, [1, 0, 3, 2, 5, 4, 7, 6])


def test_patch_dropout_drops_in_training_only():
  config = tiny_config({"contrastive": ("tv",)})
  train = dataclasses.replace(config.train, patch_dropout=0.5)
  dropped = dataclasses.replace(config, train=train)
  batch = fake_batch(("tv",))
  assert loss_of(config, batch)[0] != loss_of(dropped, batch)[0]
  assert loss_of(dropped, batch, 0)[0] != loss_of(dropped, batch, 1)[0]
  np.testing.assert_allclose(
    loss_of(config, batch, train=False)[0],
    loss_of(dropped, batch, train=False)[0],
    rtol=1e-6,
  )


def test_mining_group_must_divide_the_batch(mesh):
  config = replace(tiny_config({"matching": ("tv",)}), "matching", group_rows=3)
  assert config.objectives.matching == MatchingConfig(group_rows=3)
  with pytest.raises(ConfigError, match="group_rows=3 must divide"):
    start(config, mesh)


# ------------------------------------------------------------------------ costs
def test_context_is_projected_once(monkeypatch):
  """Projecting for every use costs more; compiled cost analysis says so."""
  groups = {"matching": ("tva",), "captioning": ("tva",)}
  config = tiny_config(groups)
  model = build(config.model)
  loss = make_loss(model, config, config.tasks["main"], TOKENIZER)
  params, batch = tiny_params(), fake_batch(("tva",))

  class Again(ContextKV):
    """A context that is projected anew for each reader."""

    def __init__(self, context, indices=None):
      vars(self).update(context=context, indices=indices)

    def take(self, indices, *, partition=None, run=0):
      del partition, run
      return Again(self.context, indices)

  class PerUse(type(model)):
    def project_context(self, params, context):
      return Again(context)

    def text(self, params, ids, *, context=None, **options):
      def project(read):
        values = read.context
        if read.indices is not None:
          values = jax.tree.map(lambda x: x[read.indices], values)
        return model.project_context(params, values)

      if isinstance(context, Again):
        context = project(context)
      elif context is not None:
        context = tuple(project(read) for read in context)
      return super().text(params, ids, context=context, **options)

  def flops(model):
    loss = make_loss(model, config, config.tasks["main"], TOKENIZER)
    run = jax.jit(lambda p, b: loss(p, b, step=jnp.int32(0))[0])
    compiled = run.lower(params, batch).compile()
    return compiled.cost_analysis()["flops"], compiled(params, batch)

  del loss
  shared, value = flops(model)
  apart, again = flops(PerUse(config.model))
  np.testing.assert_allclose(value, again, rtol=1e-5)
  text, rows = TINY_MODEL.text, 8
  tokens = 2 * 5 * 2  # frames x (cls + patches), video and audio
  once = 2 * rows * tokens * text.depth * text.width * 2 * text.width
  # Readers: matching with its own and with mined contexts, captioning with its
  # own, whose two equal projections XLA makes one.
  assert apart - shared > 0.9 * once


def test_frames_of_all_modalities_go_through_one_call():
  config = tiny_config()
  model = build(config.model)
  calls = []

  class Counting(type(model)):
    def encode(self, params, key, pixels, **options):
      calls.append((key, pixels.shape))
      return super().encode(params, key, pixels, **options)

  counting = Counting(config.model)
  batch = fake_batch(("tva",))
  pixels = {k: jnp.asarray(batch["pixels"][k]) for k in ("video", "audio")}
  params = tiny_params()
  joint = forward.encode_pixels(counting, params, pixels)
  assert calls == [("video", (8, 4, 8, 8, 3))]
  for key, value in pixels.items():
    np.testing.assert_allclose(
      joint[key], model.encode(params, key, value), atol=1e-5
    )


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_groups_of_the_same_captions_encode_them_once(
  monkeypatch, mesh, micro_batches
):
  groups = ("tva", "tvad", "ta")  # omni, omni and audio captions
  contrastive = ContrastiveConfig(explicit_negatives=("tva", "tvad"))
  config = tiny_config(
    {"contrastive": groups},
    model=dataclasses.replace(TINY_MODEL, heads=("t", "a", "va", "vad")),
  )
  config = dataclasses.replace(
    config,
    objectives=ObjectivesConfig(contrastive=contrastive),
    train=dataclasses.replace(config.train, micro_batches=micro_batches),
  )
  batch = fake_batch(groups, negatives=2)
  for key in ("text", "negative_text"):
    batch[key]["tvad"] = batch[key]["tva"].copy()
  batch = put_batch(batch, mesh)
  model = type(build(config.model))
  rows = []
  text = model.text

  def counting(self, params, ids, **options):
    rows.append(len(ids))
    return text(self, params, ids, **options)

  def run():
    rows.clear()
    state, step = start(config, mesh)
    _, metrics = step(state, batch)
    found = [float(compute(metrics[k])) for k in ("loss", "grad_norm")]
    return found, sum(rows)

  monkeypatch.setattr(model, "text", counting)
  found, encoded = run()
  monkeypatch.setattr(encode, "same_texts", lambda task, groups: {})
  wanted, separate = run()
  # A text, its two negatives and a sound's caption instead of seven rows.
  assert encoded * 7 == separate * 4
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_eval_forward_agrees_with_training_features(mesh):
  config = tiny_config(CONTRASTIVE)
  model = build(config.model)
  params = tiny_params()
  seen = []

  class Recording(type(model)):
    def encode(self, *args, **options):
      seen.append(target.current().mesh)
      return super().encode(*args, **options)

  model = Recording(config.model)
  batch = fake_batch(("tva",))
  rules = sharding.rules_by_name(config.parallel.rules)

  @jax.jit
  def compute_all(params, pixels, words, ids):
    with kernels_on(mesh, rules):
      encoded = forward.encode(
        model, params, pixels, words, {"text": ids}, pad=TOKENIZER.pad
      )
      text = forward.embed_pooled_text(model, params, encoded.texts["text"])
      features = forward.embed(model, params, encoded, ("va", "s"))
      return features, text, forward.project(model, params, encoded, "vas")

  words = {"subtitle": batch["inputs"]["subtitle"]}
  features, text, context = compute_all(
    params, batch["pixels"], words, batch["text"]["tva"]
  )
  assert seen
  assert all(found is mesh for found in seen)  # kernels are split over it
  assert features["va"].shape == (8, config.model.embed_dim)
  np.testing.assert_allclose(jnp.linalg.norm(text, axis=1), 1.0, rtol=1e-5)
  assert context.keys.shape[1] == 8
  temperature = model.temperature(params)
  sims = features["va"] @ text.T / temperature
  log_prob = 0.5 * (
    jax.nn.log_softmax(sims, axis=1) + jax.nn.log_softmax(sims, axis=0)
  )
  config = replace(config, "contrastive", label_smoothing=0.0)
  value, _ = loss_of(config, batch, train=False)
  np.testing.assert_allclose(-jnp.trace(log_prob) / 8, value, rtol=1e-5)
