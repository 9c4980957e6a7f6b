"""What every text tower of the table must do (`models.text_tower`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import axes, models
from mico_jax.config import ConfigError, ModelConfig
from mico_jax.kernels.cross_entropy import IGNORE
from mico_jax.layers.stack import split_layers
from mico_jax.models import TEXT_ENCODERS
from mico_jax.testing.tiny_model import tiny_text, tiny_vision
from mico_jax.train.flops import count_flops

PAD, CLS, SEP, MASK = 0, 1, 2, 3
IDS = np.array(
  [[CLS, 7, 9, 11, 8, SEP], [CLS, 5, 6, 10, 6, SEP]], dtype=np.int32
)
# Fields that a tower reads besides those that all of them read.
OPTIONS = {"causal": {"kv_heads": 2}}


def config_of(name: str, **changes) -> ModelConfig:
  text = tiny_text(
    encoder=name, vocab_size=20, num_heads=4, max_positions=12, norm_eps=1e-6
  )
  text = dataclasses.replace(text, **OPTIONS.get(name, {}), **changes)
  return ModelConfig(
    vision=tiny_vision(image_size=4, depth=1),
    text=text,
    heads=("t", "v"),
    frame_table={"video": 1},
  )


@dataclasses.dataclass
class Case:
  """A model with parameters far from their start, and a context."""

  model: models.MiCo
  params: dict
  values: jax.Array

  def text(self, ids, *, context=False, **options):
    kv = self.context() if context else None
    return self.model.text(self.params, jnp.asarray(ids), context=kv, **options)

  def context(self, values=None, mask=None):
    values = self.values if values is None else values
    given = models.Context(values, mask)
    return self.model.project_context(self.params, given)

  def next_logits(self, ids, *, context=None):
    """Logits behind ids [B L], the whole text read anew."""
    tower, ids = self.model.tower, jnp.asarray(ids)
    if not tower.next_token:
      ids = jnp.pad(ids, ((0, 0), (0, 1)), constant_values=MASK)
    hidden = self.model.text(
      self.params, ids, attention="causal", context=context
    )
    return self.model.lm_logits(self.params, hidden[:, -1])


@pytest.fixture(scope="module", params=TEXT_ENCODERS)
def case(request) -> Case:
  model = models.build(config_of(request.param))
  params = jax.jit(model.init)(jax.random.key(0))
  random = np.random.default_rng(0)
  params["text"] = jax.tree.map(
    lambda x: jnp.asarray(x + random.normal(size=x.shape) * 0.2, jnp.float32),
    params["text"],
  )
  values = jnp.asarray(random.normal(size=(2, 5, 16)), jnp.float32)
  return Case(model, params, values)


def close(got, want, atol=1e-5):
  np.testing.assert_allclose(
    np.asarray(got, np.float64), np.asarray(want, np.float64), atol=atol
  )


@pytest.mark.parametrize("context", [False, True])
def test_causal_reading_sees_the_left_alone(case, context):
  other = IDS.copy()
  other[:, 3] = 13
  read = lambda ids: case.text(ids, context=context, attention="causal")
  a, b = read(IDS), read(other)
  close(a[:, :3], b[:, :3], atol=0)
  assert float(jnp.abs(a[:, 3:] - b[:, 3:]).max(axis=-1).min()) > 1e-3


def test_every_mask_is_taken(case):
  other = IDS.copy()
  other[:, 3] = 13
  differs = lambda **options: np.asarray(
    jnp.abs(case.text(IDS, **options) - case.text(other, **options)).max((0, 2))
    > 1e-3
  )
  assert differs(attention="bidirectional").all()
  prefixed = differs(attention="prefix_causal", prefix_length=2)
  assert prefixed.tolist() == [False] * 3 + [True] * 3
  within = differs(attention="prefix_causal", prefix_length=4)
  assert within.all()


@pytest.mark.parametrize("attention", [None, "bidirectional", "causal"])
def test_padding_has_no_effect(case, attention):
  padded = np.pad(IDS, ((0, 0), (0, 3)))
  short = case.text(IDS, context=True, attention=attention)
  long = case.text(padded, context=True, attention=attention)
  close(short, long[:, : IDS.shape[1]])
  close(
    case.model.pool_text(short, jnp.asarray(IDS)),
    case.model.pool_text(long, jnp.asarray(padded)),
  )
  close(
    case.model.matching_logits(case.params, short, jnp.asarray(IDS)),
    case.model.matching_logits(case.params, long, jnp.asarray(padded)),
  )


def test_the_pooled_state_knows_the_whole_text(case):
  pooled = lambda ids: case.model.pool_text(case.text(ids), jnp.asarray(ids))
  for column in range(IDS.shape[1]):
    other = IDS.copy()
    other[:, column] = 13
    assert float(jnp.abs(pooled(IDS) - pooled(other)).max()) > 1e-4, column


def test_a_context_is_read_and_its_padding_is_not(case):
  alone, with_one = case.text(IDS), case.text(IDS, context=True)
  assert float(jnp.abs(alone - with_one).max()) > 1e-3
  mask = jnp.asarray([[True] * 3 + [False] * 2] * 2)
  garbage = case.values.at[:, 3:].set(100.0)
  read = lambda kv: case.model.text(case.params, jnp.asarray(IDS), context=kv)
  close(
    read(case.context(garbage, mask)), read(case.context(case.values[:, :3]))
  )


def test_several_contexts_are_those_of_their_rows(case):
  ids = jnp.asarray(np.repeat(IDS, 3, axis=0))
  own, other = case.context(), case.context(case.values[::-1] * 0.5)
  read = lambda ids, **kv: case.model.text(case.params, ids, **kv)
  got = read(ids, context=(own, other), uses=(2, 1)).reshape(2, 3, 6, -1)
  for column, context in enumerate((own, own, other)):
    close(got[:, column], read(jnp.asarray(IDS), context=context))


@pytest.mark.parametrize("start", [1, 3])
def test_decoding_with_a_cache_equals_reading_anew(case, start):
  model, context = case.model, case.context()
  slots = IDS.shape[1]
  cache = model.tower.empty_cache(2, slots)
  visible = np.zeros((2, slots), bool)
  step = jax.jit(
    lambda last, cache, position, visible: model.decode_step(
      case.params,
      last,
      cache,
      position=position,
      visible=visible,
      mask_id=MASK,
      context=context,
    )
  )
  if start > 1:  # a prompt at once, then token by token
    _, kv = case.text(
      IDS[:, : start - 1], context=True, attention="causal", return_kv=True
    )
    cache = jax.tree.map(
      lambda c, x: c.at[:, :, : x.shape[2]].set(x), cache, kv
    )
    visible[:, : start - 1] = True
  for position in range(start - 1, slots):
    visible[:, position] = True
    logits, cache = step(IDS[:, position], cache, position, visible)
    want = case.next_logits(IDS[:, : position + 1], context=context)
    close(logits, want, atol=1e-4)


def test_token_loss_is_that_of_the_logits(case):
  hidden = case.text(IDS, context=True, attention="causal")
  labels = jnp.asarray(np.where(IDS == 9, IGNORE, IDS))
  loss, correct = case.model.token_loss(case.params, hidden, labels)
  logits = case.model.lm_logits(case.params, hidden)
  scores = jax.nn.log_softmax(logits, axis=-1)
  want = -jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, :, None], 2)
  counted = np.asarray(labels != IGNORE)
  close(loss, np.where(counted, want[:, :, 0], 0))
  np.testing.assert_array_equal(
    correct, counted & np.asarray(logits.argmax(-1) == labels)
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_finite_and_reach_every_parameter(case, dtype):
  config = dataclasses.replace(case.model.config, dtype=dtype)
  model, ids = models.build(config), jnp.asarray(np.pad(IDS, ((0, 0), (0, 2))))

  def loss(params, values):
    context = model.project_context(params, models.Context(values))
    read = model.text(params, ids, context=context)
    written = model.text(params, ids, attention="causal", context=context)
    nats, _ = model.token_loss(params, written, ids)
    matched = model.matching_logits(params, read, ids)
    return nats.mean() + jnp.square(matched).mean()

  grads, towards = jax.grad(loss, (0, 1))(case.params, case.values)
  flat = jax.tree.leaves_with_path(
    {k: grads[k] for k in ("text", "matching_head")}
  )
  for path, grad in flat:
    assert bool(jnp.isfinite(grad).all()), path
    assert float(jnp.abs(grad).max()) > 0, path
  assert float(jnp.abs(towards).max()) > 0


def test_stacks_run_in_every_way(case):
  want = case.text(IDS, context=True)
  for changes in ({"scan": False}, {"remat": "full"}):
    config = dataclasses.replace(case.model.config, **changes)
    other = Case(models.build(config), case.params, case.values)
    close(other.text(IDS, context=True), want)
  split = Case(case.model, split_layers(case.params), case.values)
  close(split.text(IDS, context=True), want, atol=0)


def test_dropout_depends_on_the_row_alone(case):
  text = dataclasses.replace(case.model.config.text, dropout=0.5)
  model = models.build(dataclasses.replace(case.model.config, text=text))
  keys = jax.random.split(jax.random.key(1), 2)
  read = lambda ids, keys: model.text(
    case.params, jnp.asarray(ids), row_keys=keys, train=True
  )
  both = read(IDS, keys)
  assert float(jnp.abs(both - case.text(IDS)).max()) > 1e-2
  close(both[::-1], read(IDS[::-1], keys[::-1]))


def test_axes_cover_all_parameters(case):
  shapes = case.model.abstract_params()["text"]
  names = case.model.logical_axes()["text"]
  is_names = lambda x: isinstance(x, tuple)
  assert jax.tree.structure(shapes) == jax.tree.structure(
    names, is_leaf=is_names
  )
  for (path, leaf), given in zip(
    jax.tree.leaves_with_path(shapes),
    jax.tree.leaves(names, is_leaf=is_names),
    strict=True,
  ):
    assert len(given) == len(leaf.shape), path
    assert set(given) <= set(axes.LOGICAL), path
    if any(getattr(k, "key", "") == "blocks" for k in path):
      assert given[0] == axes.LAYERS, path
    if path[-1].key in ("kernel", "words"):
      assert set(given) & {axes.EMBED, axes.QKV, axes.MLP}, path
  text = case.model.config.text
  for field, heads in case.model.tower.split_heads().items():
    assert (getattr(text, field) or text.num_heads) == heads


def test_flops_are_those_of_the_products(case):
  """The jaxpr's count by hand, and as the compiler counts a larger tower."""
  text = dataclasses.replace(case.model.config.text, width=128, mlp_dim=512)
  config = dataclasses.replace(case.model.config, text=text, scan=False)
  model, rows, length, slots = models.build(config), 4, 12, 24
  params = {"text": model.abstract_params()["text"]}
  shape = jax.ShapeDtypeStruct
  args = (
    params,
    shape((rows, length), jnp.int32),
    shape((rows, slots, 128), jnp.float32),
  )

  def read(params, ids, values):
    context = model.project_context(params, models.Context(values))
    return model.text(params, ids, context=context)

  counted = count_flops(jax.make_jaxpr(read)(*args))
  kv = 128 * model.tower.key_heads // text.num_heads
  gate = 3 if "gate" in params["text"]["blocks"]["mlp"] else 2
  token = 2 * 128 * 128 + 2 * 128 * kv + 2 * length * 128  # self-attention
  token += 2 * 128 * 128 + 2 * slots * 128 + gate * 128 * 512
  by_hand = 2 * text.depth * rows * (length * token + slots * 2 * 128 * kv)
  assert counted == by_hand
  compiled = jax.jit(read).lower(*args).compile().cost_analysis()["flops"]
  assert counted == pytest.approx(compiled, rel=0.1)


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_fields_that_do_not_fit_are_named(name):
  with pytest.raises(ConfigError, match="num_heads=4 must divide width=18"):
    models.build(config_of(name, width=18))
  unread = {"bert": "kv_heads", "causal": "type_vocab_size"}
  if name in unread:
    with pytest.raises(ConfigError, match=f"{unread[name]}=1 says nothing"):
      models.build(config_of(name, **{unread[name]: 1}))
  joined = dataclasses.replace(config_of(name), joined_positions=4)
  if TEXT_ENCODERS[name].learned_positions:
    models.build(joined)
  else:
    with pytest.raises(ConfigError, match="joined_positions=4 is a table"):
      models.build(joined)


def test_heads_of_a_causal_tower():
  with pytest.raises(ConfigError, match="kv_heads=3 must divide num_heads=4"):
    models.build(
      dataclasses.replace(
        config_of("causal"),
        text=dataclasses.replace(config_of("causal").text, kv_heads=3),
      )
    )
  with pytest.raises(ConfigError, match="even width"):
    models.build(config_of("causal", width=12))
  everyone = models.build(
    dataclasses.replace(
      config_of("causal"),
      text=dataclasses.replace(config_of("causal").text, kv_heads=0),
    )
  )
  assert everyone.tower.key_heads == 4


def test_causal_padding_has_no_effect_wherever_it_stands():
  """Positions count visible tokens: a question may be padded in the middle."""
  model = models.build(config_of("causal"))
  params = jax.jit(model.init)(jax.random.key(0))
  gap = np.insert(IDS, [3, 3], PAD, axis=1)
  kept = [0, 1, 2, 5, 6, 7]
  read = lambda ids: model.text(params, jnp.asarray(ids))
  close(read(gap)[:, kept], read(IDS))
