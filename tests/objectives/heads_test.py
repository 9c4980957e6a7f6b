"""Heads: losses against plain float64, labels, and what is trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import (
  ConfigError,
  ObjectivesConfig,
  OptimizerConfig,
  TargetConfig,
  TaskConfig,
)
from mico_jax.data.targets import read_target
from mico_jax.modalities import DecodeError, by_letter
from mico_jax.models import build
from mico_jax.objectives import (
  Inputs,
  compute,
  make_objective,
  select,
  total_loss,
)
from mico_jax.objectives.forecasting import Forecasting, layout_of
from mico_jax.objectives.reidentification import batch_hard
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  tiny_config,
)
from mico_jax.train import state as train_state
from mico_jax.train.optimizer import make_optimizer, trainable

ROWS, GROUP = 7, "va"
WIDTH = 2 * TINY_MODEL.vision.width
# A row of half weight, one of padding, one without a label.
WEIGHT = np.array([1, 0.5, 0, 1, 1, 1, 1], np.float32)
LABELLED = np.array([1, 1, 1, 1, 1, 0, 1], np.float32)


# -------------------------------------------------------------- plain float64
def normed(x, head):
  x = x - x.mean(axis=1, keepdims=True)
  x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6)
  return x * head["norm"]["scale"] + head["norm"]["bias"]


def softmax(x):
  p = np.exp(x - x.max(axis=1, keepdims=True))
  return p / p.sum(axis=1, keepdims=True)


# Values of rows, their slopes, and what the objective reports.
def one_class(out, target, there):
  mass = 0.9 * np.eye(out.shape[1])[target[:, 0]] + 0.1 / out.shape[1]
  values = -(mass * np.log(softmax(out))).sum(axis=1)
  return values, softmax(out) - mass, out.argmax(axis=1) == target[:, 0]


def many_classes(out, target, there):
  p = 1 / (1 + np.exp(-out))
  values = -(target * np.log(p) + (1 - target) * np.log(1 - p))
  hit = target[np.arange(ROWS), out.argmax(axis=1)]
  hit[target.sum(axis=1) == 0] = np.nan  # has no class to be found
  return values.mean(axis=1), (p - target) / out.shape[1], hit


def numbers(out, target, there):
  count = np.maximum(there.sum(axis=1, keepdims=True), 1)
  error = (out - target) * there
  values = (error**2 / count).sum(axis=1)
  return values, 2 * error / count, (np.abs(error) / count).sum(axis=1)


NUMBER = {"kind": "number", "fields": ("x", "y", "z")}
CASES = {
  "class": (
    *("classification", {"classes": ("a", "b", "c")}),
    *({"label_smoothing": 0.1}, one_class, "accuracy"),
  ),
  "classes": (
    *("classification", {"kind": "classes", "classes": tuple("abcde")}),
    *({}, many_classes, "accuracy"),
  ),
  "number": (
    *("regression", {**NUMBER, "mean": (0,) * 3, "scale": (1,) * 3}),
    *({}, numbers, "absolute_error"),
  ),
}


def labels_of(target, size):
  rng = np.random.default_rng(0)
  there = np.repeat(LABELLED[:, None], size, axis=1)
  if target.kind == "class":
    return rng.integers(0, size, (ROWS, 1)).astype("i4"), there[:, :1]
  if target.kind == "classes":
    labels = rng.integers(0, 2, (ROWS, size)).astype("f4")
    labels[4] = 0
    return labels, there
  there[3, 1] = 0  # of one row a single number is missing
  return rng.standard_normal((ROWS, size)).astype("f4"), there


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient(case, dtype):
  name, stated, options, plain, metric = CASES[case]
  chosen = select(
    ObjectivesConfig(options={name: {"targets": {GROUP: stated}, **options}}),
    TaskConfig(objectives={name: (GROUP,)}),
  )
  objective = chosen[name][0]
  size = objective.size(GROUP)
  labels, there = labels_of(objective.target(GROUP), size)

  def loss(params, pooled):
    inputs = Inputs(
      model=build(TINY_MODEL),
      params={"objective": {name: params}},
      batch={
        "weight": jnp.asarray(WEIGHT),
        "target": {f"{name}/{GROUP}": jnp.asarray(labels)},
        "target_weight": {f"{name}/{GROUP}": jnp.asarray(there)},
      },
      tokenizer=TOKENIZER,
      row_keys=jax.vmap(jax.random.key)(jnp.arange(ROWS)),
      train=True,
      letters_to_key={"v": "video", "a": "audio"},
      pooled={GROUP: pooled},
    )
    return total_loss(chosen, inputs)[:2]

  @jax.jit
  def run(pooled):
    params = jax.tree.map(  # nothing left at zero
      lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape),
      objective.init(jax.random.key(0), TINY_MODEL),
    )
    return params, jax.value_and_grad(loss, (0, 1), True)(params, pooled)

  pooled = np.random.default_rng(1).standard_normal((ROWS, WIDTH))
  pooled = jnp.asarray(3 * pooled + 1, dtype)
  params, ((value, metrics), (grads, slope)) = run(pooled)

  head = jax.tree.map(lambda x: np.asarray(x, np.float64), params[GROUP])
  x = normed(np.asarray(pooled, np.float64), head)
  values, slopes, seen = plain(
    x @ head["kernel"] + head["bias"],
    labels,
    there,
  )
  share = WEIGHT * LABELLED / (WEIGHT * LABELLED).sum()
  np.testing.assert_allclose(value, (values * share).sum(), rtol=2e-5)
  slopes = slopes * share[:, None]
  for key, want in (("kernel", x.T @ slopes), ("bias", slopes.sum(axis=0))):
    assert grads[GROUP][key].dtype == jnp.float32
    np.testing.assert_allclose(grads[GROUP][key], want, atol=3e-6, rtol=2e-4)
  assert slope.dtype == pooled.dtype
  moved = np.any(np.asarray(slope, np.float32) != 0, axis=1)
  np.testing.assert_array_equal(moved, share > 0)
  counted = np.where(np.isnan(seen), 0, share)
  np.testing.assert_allclose(
    compute(metrics[f"{metric}/{name}/{GROUP}"]),
    np.nansum(seen * counted) / counted.sum(),
    rtol=2e-5,
  )
  np.testing.assert_allclose(
    compute(metrics[f"rows/{name}/{GROUP}"]), 5 / 7, rtol=1e-6
  )


def plain_triplets(x, identity, valid, margin):
  distance = lambda i, j: np.sqrt(((x[i] - x[j]) ** 2).sum())
  values, paired = np.zeros(len(x)), np.zeros(len(x), bool)
  for i in np.flatnonzero(valid):
    others = [j for j in np.flatnonzero(valid) if j != i]
    same = [distance(i, j) for j in others if identity[i] == identity[j]]
    rest = [distance(i, j) for j in others if identity[i] != identity[j]]
    if same and rest:
      paired[i] = True
      values[i] = max(margin + max(same) - min(rest), 0)
  return values, paired


def test_hardest_triplets():
  rng = np.random.default_rng(2)
  x = rng.standard_normal((9, 5))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  identity = np.array([0, 0, 0, 1, 1, 2, 3, 1, 3])
  valid = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0], bool)  # 2 and 3 are alone
  weights = rng.random(9)

  @jax.jit
  def run(x):
    def total(x):
      values, paired, near = batch_hard(
        x, jnp.asarray(identity), jnp.asarray(valid), margin=0.3
      )
      kept = jnp.where(paired, values, 0.0)
      return (kept * jnp.asarray(weights, "f4")).sum(), (values, paired, near)

    return jax.value_and_grad(total, has_aux=True)(x)

  (_, (values, paired, near)), slope = run(jnp.asarray(x, jnp.float32))
  wanted, pairs = plain_triplets(x, identity, valid, 0.3)
  np.testing.assert_array_equal(paired, pairs)
  np.testing.assert_array_equal(paired[5:], False)
  np.testing.assert_allclose(values[pairs], wanted[pairs], atol=1e-5)
  # The slope along the sphere, where the norm of rows is as it is.
  way = rng.standard_normal(x.shape)
  way -= (way * x).sum(axis=1, keepdims=True) * x

  def moved(step):
    y = x + step * way
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    return (plain_triplets(y, identity, valid, 0.3)[0] * weights).sum()

  got = (np.asarray(slope, np.float64) * way).sum()
  want = (moved(1e-5) - moved(-1e-5)) / 2e-5
  np.testing.assert_allclose(got, want, rtol=1e-3)
  cosine = np.where(np.eye(9, dtype=bool) | ~valid, -2, x @ x.T)
  hit = identity[cosine.argmax(axis=1)] == identity
  np.testing.assert_array_equal(np.asarray(near)[pairs], hit[pairs])


# --------------------------------------------------------------------- labels
ONE = TargetConfig(fields=("kind",), classes=("cat", "dog"))
SEVERAL = TargetConfig(fields=("kind",), kind="classes", classes=("cat", "dog"))
SIZE = TargetConfig(fields=("x", "y"), kind="number", mean=(1, 0), scale=(2, 1))


@pytest.mark.parametrize(
  ("target", "fields", "value", "weight"),
  [
    (ONE, {"kind": "dog"}, [1], [1]),
    (ONE, {"kind": ["dog"]}, [1], [1]),
    (ONE, {}, [0], [0]),
    (ONE, {"kind": None}, [0], [0]),
    (
      TargetConfig(classes=("a", "b"), labels=("7", "3")),
      {"label": 3},
      [1],
      [1],
    ),
    (SEVERAL, {"kind": ["dog", "cat"]}, [1, 1], [1, 1]),
    (SEVERAL, {"kind": []}, [0, 0], [1, 1]),
    (SEVERAL, {}, [0, 0], [0, 0]),
    (SIZE, {"x": 5, "y": "-0.5"}, [2, -0.5], [1, 1]),
    (SIZE, {"x": float("nan"), "y": 1}, [0, 1], [0, 1]),
  ],
)
def test_labels_of_a_record(target, fields, value, weight):
  found = read_target(fields, target)
  np.testing.assert_array_equal(found[0], value)
  np.testing.assert_array_equal(found[1], weight)


@pytest.mark.parametrize(
  ("target", "fields", "message"),
  [
    (ONE, {"kind": "cow"}, "'cow', none of the 2 known classes: cat, dog"),
    (ONE, {"kind": ["cat", "dog"]}, "holds 2 classes"),
    (ONE, {"kind": {"a": 1}}, "expected a class"),
    (SEVERAL, {"kind": ["cat", "cow"]}, "'cow', none of the 2"),
    (SIZE, {"x": "tall", "y": 1}, "'x' is 'tall'; expected a number"),
    (SIZE, {"x": float("inf"), "y": 1}, "expected a finite number"),
    (SIZE, {"x": True, "y": 1}, "expected a number"),
  ],
)
def test_what_is_no_label(target, fields, message):
  with pytest.raises(DecodeError, match=message):
    read_target(fields, target)


@pytest.mark.parametrize(
  ("name", "group", "options", "message"),
  [
    ("classification", "tv", {}, "reads no text; write 'v'"),
    ("classification", "v", {}, "nothing says what 'v' learns"),
    ("regression", "v", {"targets": {"v": {}}}, "regression learns 'number'"),
    (
      *("classification", "v"),
      {"targets": {"v": {"classes": ("a", "a")}}},
      "a name stands there twice",
    ),
    (
      *("classification", "v"),
      {"targets": {"v": {"classes": ("a", "b"), "labels": ("1",)}}},
      "1 labels for 2 classes",
    ),
    (
      *("classification", "v"),
      {"targets": {"v": {"kind": "classes"}}, "label_smoothing": 0.1},
      "is for one class of a sample",
    ),
    (
      *("regression", "v"),
      {"targets": {"v": {"kind": "number", "scale": (0.0,), "mean": (1.0,)}}},
      "expected numbers > 0",
    ),
    ("reidentification", "ti", {}, "reads no text; write 'i'"),
    ("forecasting", "v", {}, "'v' is none"),
    ("forecasting", "m", {}, "nothing says what is forecast of 'm'"),
    (
      *("forecasting", "m"),
      {"windows": {"m": {"context": 500}}},
      "do not fit a frame of 512",
    ),
  ],
)
def test_mistakes_in_a_config(name, group, options, message):
  config = ObjectivesConfig(options={name: options} if options else {})
  with pytest.raises(ConfigError, match=message):
    select(config, TaskConfig(objectives={name: (group,)}))


def test_classes_must_be_known_to_make_a_head():
  config = ObjectivesConfig(options={"classification": {"targets": {"v": {}}}})
  objective = make_objective(config, "classification")
  with pytest.raises(ConfigError, match="list the classes"):
    objective.init(jax.random.key(0), TINY_MODEL)


# ---------------------------------------------------------- what of it trains
@pytest.mark.parametrize(
  ("changes", "tower"),
  [
    ({"freeze": (r"^(vision|text|embedding)/",)}, False),
    ({"lora_rank": 2}, False),
    ({"lora_rank": 2, "lora_also": (r"^vision/norm/",)}, False),
    ({"layer_decay": 0.5}, True),
  ],
)
def test_heads_train_whatever_becomes_of_the_tower(changes, tower):
  config = tiny_config(
    {"classification": ("va",), "reidentification": ("v",)},
    optimizer=OptimizerConfig(learning_rate=1.0, **changes),
  )
  shapes = train_state.abstract_params(build(config.model), config)
  free = trainable(config.optimizer, shapes)
  assert all(jax.tree.leaves(free["objective"]))
  assert all(jax.tree.leaves(free["vision"]["blocks"])) == tower
  assert any(jax.tree.leaves(free["vision"]["blocks"])) == tower
  assert all(jax.tree.leaves(free["vision"]["norm"])) == (
    tower or "lora_also" in changes
  )
  assert all(jax.tree.leaves(free.get("lora", {})))
  factors = make_optimizer(config.optimizer, shapes, 10).factors["objective"]
  assert all(factor == 1 for factor in jax.tree.leaves(factors))


# ---------------------------------------------------------------- forecasting
CONTEXT, HORIZON, CHANNELS = 32, 6, 2
MEAN, SCALE = (1.0, -2.0), (3.0, 0.5)


@pytest.fixture(scope="module")
def forecast():
  """(objective, layout, function of parameters, frames) of the tiny model."""
  group = Forecasting.example_group("")
  window = {"context": CONTEXT, "horizon": HORIZON, "mean": MEAN}
  options = {"windows": {group: {**window, "scale": SCALE}}}
  config = ObjectivesConfig(options={"forecasting": options})
  chosen = select(config, TaskConfig(objectives={"forecasting": (group,)}))
  objective, modality = chosen["forecasting"][0], by_letter(group)
  model = build(tiny_config({"forecasting": (group,)}).model)

  @jax.jit
  def run(frames):
    params = model.init(jax.random.key(0))
    head = jax.tree.map(
      lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape),
      objective.init(jax.random.key(1), model.config),
    )

    def loss(head):
      whole = {**params, "objective": {"forecasting": head}}
      inputs = Inputs(
        model=model,
        params=whole,
        batch={"weight": jnp.ones(len(frames))},
        tokenizer=TOKENIZER,
        row_keys=jax.vmap(jax.random.key)(jnp.arange(len(frames))),
        train=False,
        letters_to_key={group: modality.key},
        pixels={modality.key: frames},
      )
      value, metrics, _ = total_loss(chosen, inputs)
      return value, (metrics, objective.forecast(model, whole, group, frames))

    found, grads = jax.value_and_grad(loss, has_aux=True)(head)
    return head[group], found, grads[group]

  return objective, layout_of(modality), run


def series(layout, seed=3):
  """Four samples of which parts are missing, the last without a future."""
  rng = np.random.default_rng(seed)
  frames = np.zeros((4, 1, layout.length, 2 * layout.columns), np.float32)
  frames[:, 0, :50, :CHANNELS] = 5 + 2 * rng.standard_normal((4, 50, CHANNELS))
  frames[:, 0, :50, layout.columns : layout.columns + CHANNELS] = 1
  flags = frames[:, 0, :, layout.columns :]
  flags[1, 4:9, 0] = flags[2, 33:36, 1] = flags[3, 31:] = 0
  return frames


def test_forecasts_and_their_error(forecast):
  _, layout, run = forecast
  frames = series(layout)
  head, (value, (metrics, found)), grads = run(frames)
  wide = lambda x: np.asarray(x, np.float64)
  values = wide(frames[:, 0, :, :CHANNELS])
  flags = wide(frames[:, 0, :, layout.columns :][..., :CHANNELS])
  past, there = values[:, :CONTEXT], flags[:, :CONTEXT]
  count = there.sum(axis=1, keepdims=True)
  mean = (past * there).sum(axis=1, keepdims=True) / count
  square = (((past - mean) * there) ** 2).sum(axis=1, keepdims=True)
  spread = np.sqrt(square / count + 1e-5)
  scaled = (past - mean) / spread * there
  coming = slice(CONTEXT, CONTEXT + HORIZON)
  known = flags[:, coming]
  truth = (values[:, coming] - MEAN) / SCALE
  np.testing.assert_allclose(found.truth, truth, rtol=1e-5)
  # What the linear map alone adds to the forecast, and how the error moves it.
  linear = np.einsum("btc,th->bhc", scaled, wide(head["linear"]["kernel"]))
  rest = (wide(found.predicted) * SCALE + MEAN - mean) / spread - linear
  error = (linear + rest) * spread + mean - MEAN
  error = (error / SCALE - truth) * known
  of_row = (error**2).sum(axis=(1, 2)) / np.maximum(known.sum(axis=(1, 2)), 1)
  np.testing.assert_allclose(value, of_row[:3].mean(), rtol=1e-5)
  slope = (
    2 * error * spread / SCALE / known.sum(axis=(1, 2)).clip(1)[:, None, None]
  )
  slope = np.einsum("btc,bhc->th", scaled[:3], slope[:3]) / 3
  np.testing.assert_allclose(
    grads["linear"]["kernel"], slope, atol=2e-5, rtol=1e-3
  )
  assert np.any(grads["kernel"] != 0)
  (group,) = {name.rpartition("/")[2] for name in metrics if "rows/" in name}
  rows = compute(metrics[f"rows/forecasting/{group}"])
  np.testing.assert_allclose(rows, 3 / 4)
  naive = (mean - MEAN) / SCALE
  np.testing.assert_allclose(
    found.naive, np.broadcast_to(naive, truth.shape), rtol=1e-5
  )


def test_a_forecast_knows_nothing_of_the_future(forecast):
  """Nothing behind the context reaches it, nor a value that is not there."""
  _, layout, run = forecast
  frames = series(layout)
  other = frames.copy()
  other[:, 0, CONTEXT:] = np.random.default_rng(9).random(
    other[:, 0, CONTEXT:].shape
  )
  other[1, 0, 4:9, 0] = 77.0  # not there
  first, second = (run(x)[1][1][1].predicted for x in (frames, other))
  np.testing.assert_array_equal(first, second)


def test_a_mode_that_tells_of_the_future_is_refused(forecast):
  objective = forecast[0]
  modality = by_letter(Forecasting.example_group(""))
  for mode in modality.modes.values():
    given = {modality.key: mode}
    if mode.name.startswith("standardised"):
      with pytest.raises(ConfigError, match="set mode='plain'"):
        objective.check_modes(modality.letter, given)
    else:
      objective.check_modes(modality.letter, given)
