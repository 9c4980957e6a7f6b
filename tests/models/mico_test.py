"""The model as a whole, at tiny sizes, and the presets by shape."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import axes, models
from mico_jax.config import ModelConfig
from mico_jax.kernels import target
from mico_jax.layers.stack import REMAT, split_layers, stacked_layers
from mico_jax.layers.take_rows import take_rows
from mico_jax.models.resize import resize_frames
from mico_jax.testing.tiny_model import tiny_model

CONFIG = tiny_model(
  vision={"image_size": 12},
  text={"width": 12, "mlp_dim": 24, "max_positions": 16},
  frame_table=ModelConfig().frame_table,
)
IDS = jnp.array([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 10, 2]])


def _model(**changes):
  config = dataclasses.replace(CONFIG, **changes)
  return models.build(config)


@pytest.fixture(scope="module")
def params():
  return jax.jit(_model().init)(jax.random.key(0))


# Compiled once for all tests of these shapes.
_encode = jax.jit(_model().encode, static_argnames="key")
_text = jax.jit(_model().text)


def _completed(model, params):
  """Parameters with those that `model` has beside them, freshly drawn."""

  def added(key):
    return {k: v for k, v in model.init(key).items() if k not in params}

  new = jax.jit(added)(jax.random.key(0))
  assert new
  completed = {**params, **new}
  shapes = jax.tree.map(jnp.shape, completed)
  assert shapes == jax.tree.map(jnp.shape, dict(model.abstract_params()))
  return completed


def _pixels(frames=2, seed=1):
  return jax.random.normal(jax.random.key(seed), (2, frames, 12, 12, 3))


def _context(model, params, letters="va", frames=2):
  tokens = {
    "v": model.encode(params, "video", _pixels(frames)),
    "a": model.encode(params, "audio", _pixels(1, 2)),
    "s": model.text(params, IDS),
  }
  return model.context(params, letters, tokens)


@pytest.fixture(scope="module")
def context(params):
  """Of a video and a sound."""
  values = jax.jit(lambda p: _context(_model(), p).values)(params)
  return models.Context(values, None)


@pytest.mark.parametrize("name", models.list_models())
def test_presets_by_shape(name):
  model = models.build(models.PRESETS[name])
  shapes = model.abstract_params()
  names = model.logical_axes()
  known = {axis for axis, _ in axes.DDP_RULES}
  for (path, shape), axis in zip(
    jax.tree_util.tree_leaves_with_path(shapes),
    jax.tree.leaves(names, is_leaf=lambda x: isinstance(x, tuple)),
    strict=True,
  ):
    assert shape.dtype == jnp.float32, path
    assert len(shape.shape) == len(axis), path
    assert set(axis) <= known, path
    used = [a for a in axis if a != axes.UNSHARDED]
    assert len(set(used)) == len(used), path
  batch = jax.ShapeDtypeStruct(
    (2, 3, *[models.PRESETS[name].vision.image_size] * 2, 3), jnp.float32
  )
  tokens = jax.eval_shape(
    lambda p, x: model.encode(p, "video", x), shapes, batch
  )
  vision = models.PRESETS[name].vision
  length = models.ENCODERS[vision.encoder](vision).num_tokens
  assert tokens.shape == (2, 3, length, vision.width)


def test_giant_has_the_released_size():
  shapes = models.build(models.PRESETS["mico_g14"]).abstract_params()
  count = sum(x.size for x in jax.tree.leaves(shapes["vision"]))
  assert abs(count / 1e9 - 1.01) < 0.005


def test_frozen_names(params):
  assert set(params) == {
    "vision",
    "text",
    "project",
    "frame_embed",
    "type_embed",
    "contrastive_head",
    "matching_head",
    "temperature",
  }
  assert params["vision"]["blocks"]["attn"]["qkv"]["kernel"].shape == (
    2,
    16,
    48,
  )
  assert params["text"]["blocks"]["cross_attn"]["kv"]["kernel"].shape == (
    2,
    12,
    24,
  )
  assert float(params["temperature"]) == pytest.approx(0.07)


def test_a_new_head_leaves_other_parameters(params):
  other = jax.jit(_model(heads=("t", "v", "vad")).init)(jax.random.key(0))
  for path in (("contrastive_head", "v"), ("vision",), ("text",)):
    ours, theirs = params, other
    for key in path:
      ours, theirs = ours[key], theirs[key]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def _training_value(params, **changes):
  """A loss with dropout and drop path, and its gradients."""
  row_keys = jax.random.split(jax.random.key(3), 2)
  model = _model(
    text=dataclasses.replace(CONFIG.text, dropout=0.1),
    vision=dataclasses.replace(CONFIG.vision, drop_path_rate=0.2),
    **changes,
  )

  def loss(params):
    tokens = model.encode(
      params, "video", _pixels(), row_keys=row_keys, train=True
    )
    context = model.context(params, "v", {"v": tokens})
    kv = model.project_context(params, context)
    hidden = model.text(
      params,
      IDS,
      context=kv,
      attention="causal",
      row_keys=row_keys,
      train=True,
    )
    return jnp.mean(jnp.square(model.lm_logits(params, hidden)))

  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def training_value(params):
  return _training_value(params)


@pytest.mark.parametrize("name", REMAT)
def test_unrolled_and_rematerialised_are_the_same(params, training_value, name):
  # Without rematerialisation the unrolled stack is compared, else the loop.
  got = _training_value(params, remat=name, scan=name != "none")
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4),
    got,
    training_value,
  )


def test_layers_may_be_kept_apart(params):
  """Same outputs, and the unrolled program slices no stacked array."""
  model = _model(scan=False)
  split = split_layers(params)
  assert isinstance(split["vision"]["blocks"]["mlp"]["fc1"]["kernel"], tuple)
  back = stacked_layers(split)
  jax.tree.map(np.testing.assert_array_equal, back, params)

  def run(params):
    context = _context(model, params)
    hidden = model.text(
      params, IDS, context=model.project_context(params, context)
    )
    return context.values, hidden

  def made(params):
    """Arrays of the shape of a stack of MLP kernels in the program."""
    text = jax.jit(run).lower(params).compile().as_text()
    return [x for x in text.splitlines() if "= f32[2,16,32]" in x]

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    jax.jit(run)(split),
    jax.jit(run)(params),
  )
  assert made(params)
  assert not made(split)


def test_unknown_remat_is_named(params):
  with pytest.raises(ValueError, match="dots_no_batch"):
    _model(remat="nope").abstract_params()


def test_token_subsets(params):
  model = _model()
  whole, hidden = model.encode(params, "image", _pixels(), return_hidden=True)
  assert len(hidden) == 2
  assert hidden[0].shape == whole.shape == (2, 2, 10, 16)
  order = jnp.array([[4, 0, 8, 1, 2, 3, 5, 6, 7]] * 2)
  shuffled = model.encode(params, "image", _pixels(), token_indices=order)
  index = jnp.concatenate([jnp.zeros((2, 1), jnp.int32), order + 1], axis=1)
  want = jnp.take_along_axis(whole, index[:, None, :, None], axis=2)
  np.testing.assert_allclose(shuffled, want, atol=1e-5)
  some = model.encode(
    params,
    "image",
    _pixels(),
    token_indices=order[:, :3][:, None] + jnp.zeros((2, 2, 1), jnp.int32),
  )
  same = model.encode(params, "image", _pixels(), token_indices=order[:, :3])
  assert same.shape == (2, 2, 4, 16)
  np.testing.assert_array_equal(some, same)


def test_context_projected_once_equals_direct(params, context):
  model = _model()
  kv = model.project_context(params, context)
  rows = jnp.array([1, 0, 1])
  direct = model.project_context(
    params, models.Context(context.values[rows], None)
  )
  taken = kv.take(rows)
  ids = IDS[jnp.array([0, 0, 1])]
  np.testing.assert_allclose(
    _text(params, ids, context=taken),
    _text(params, ids, context=direct),
    atol=1e-6,
  )


@pytest.mark.parametrize("uses", [(2, 1), (1, 2), (3, 1)])
def test_rows_that_share_contexts(params, context, uses):
  """Several texts of a row, some onto one context and some onto another."""
  model = _model()
  own = model.project_context(params, context)
  other = own.take(jnp.array([1, 0]))
  rng = np.random.default_rng(0)
  ids = jnp.asarray(rng.integers(5, 20, (2, sum(uses), IDS.shape[1])))
  together = model.text(
    params, ids.reshape(-1, ids.shape[-1]), context=(own, other), uses=uses
  ).reshape(*ids.shape, -1)
  for column in range(sum(uses)):
    read = own if column < uses[0] else other
    alone = _text(params, ids[:, column], context=read)
    np.testing.assert_allclose(together[:, column], alone, atol=1e-6)
  wrong = (uses[0] + 1, uses[1])
  with pytest.raises(ValueError, match=r"uses=.* must name a count for each"):
    model.text(
      params, ids.reshape(-1, ids.shape[-1]), context=(own, other), uses=wrong
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_context_are_taken_alike_on_a_tpu(dtype):
  """By a product: the same bits, and the sums of gradients in float32."""
  rng = np.random.default_rng(0)
  values = jnp.asarray(rng.normal(size=(2, 3, 5, 8)), dtype)
  indices = jnp.array([2, 0, 2, 2, 1])
  weights = jnp.asarray(rng.normal(size=(2, 5, 5, 8)), dtype)

  def run(platform):
    with target.use(target.Target(platform)):
      out, vjp = jax.vjp(lambda x: take_rows(x, indices), values)
      return out, vjp(weights)[0]

  (out, gradient), (want, want_gradient) = run("tpu"), run("cpu")
  np.testing.assert_array_equal(out, want)
  np.testing.assert_allclose(
    np.asarray(gradient, np.float32),
    np.asarray(want_gradient, np.float32),
    atol=1e-6 if dtype == "float32" else 0.05,
  )


def test_absent_modalities_do_not_matter(params):
  """A masked modality gives what a context without it gives."""
  model = _model()
  tokens = {
    "v": _encode(params, "video", _pixels()),
    "a": _encode(params, "audio", _pixels(1, 2)),
  }
  present = {"a": jnp.array([False, False])}
  masked = model.context(params, "va", tokens, masks=present)
  alone = model.context(params, "v", tokens)
  got, want = (
    _text(params, IDS, context=model.project_context(params, c))
    for c in (masked, alone)
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  nothing = model.context(
    params, "v", tokens, masks={"v": jnp.zeros((2, 2), bool)}
  )
  kv = model.project_context(params, nothing)
  assert np.isfinite(np.asarray(_text(params, IDS, context=kv))).all()


def test_text_attention(params):
  model = _model()
  changed = IDS.at[:, 4].set(11)
  full = jnp.ones(IDS.shape, bool)

  def first(ids, **options):
    return model.text(params, ids, mask=full, **options)[:, :4]

  causal = {"attention": "causal"}
  np.testing.assert_allclose(
    first(IDS, **causal), first(changed, **causal), atol=1e-6
  )
  assert np.abs(np.asarray(first(IDS) - first(changed))).max() > 1e-3
  prefix = {"attention": "prefix_causal", "prefix_length": 3}
  hidden = model.text(params, IDS, mask=full, **prefix)
  alone = model.text(params, IDS[:, :3], mask=full[:, :3])
  np.testing.assert_allclose(hidden[:, :3], alone, atol=1e-5)
  padded = _text(params, IDS)[0, :4]
  cut = model.text(params, IDS[:1, :4])[0]
  np.testing.assert_allclose(padded, cut, atol=1e-5)
  with pytest.raises(ValueError, match="prefix_length"):
    model.text(params, IDS, attention="prefix_causal")
  with pytest.raises(ValueError, match="bidirectional"):
    model.text(params, IDS, attention="nope")


def test_features(params):
  model = _model()
  pooled = {
    "i": model.pool(params, "image", _encode(params, "image", _pixels())),
    "a": model.pool(params, "audio", _encode(params, "audio", _pixels(1))),
    "t": model.pool_text(_text(params, IDS), IDS),
  }
  pooled |= {"v": pooled["i"], "d": pooled["a"]}
  for letters in ("t", "i", "a", "va", "id"):
    z = model.embed(params, letters, pooled)
    assert z.shape == (2, 8)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1.0, atol=1e-5)
  np.testing.assert_array_equal(
    model.embed(params, "i", pooled), model.embed(params, "v", pooled)
  )
  zeros = jax.grad(lambda x: jnp.sum(model.embed(params, "v", {"v": x})))(
    jnp.zeros((2, 16))
  )
  assert np.isfinite(np.asarray(zeros)).all()
  with pytest.raises(ValueError, match=r"config\.model\.heads"):
    model.embed(params, "vad", pooled)


def test_options_of_the_paper(params):
  model = _model(context_positions=30, sample_embeddings=3, joined_positions=9)
  params = _completed(model, params)
  plain = _model()
  tokens = {"v": _encode(params, "video", _pixels())}
  base = plain.context(params, "v", tokens).values
  got = model.context(params, "v", tokens, sample_index={"v": 2}).values
  want = (
    base
    + params["context_pos"][None, :20]
    + params["sample_embed"][2][None, None]
  )
  np.testing.assert_allclose(got, want, atol=1e-6)
  rows = {"v": jnp.array([0, 1])}
  per_row = model.context(params, "v", tokens, sample_index=rows).values
  assert not np.array_equal(per_row, got)
  joined = model.text(params, IDS, joined=True)
  swapped = {**params["text"]["embed"], "positions": params["joined_pos"]}
  small = dataclasses.replace(
    CONFIG, text=dataclasses.replace(CONFIG.text, max_positions=9)
  )
  other = models.build(small).text(
    {"text": {**params["text"], "embed": swapped}}, IDS
  )
  np.testing.assert_allclose(joined, other, atol=1e-6)
  spans = jnp.array([[0, 0, 1, 1, 2, 2]] * 2)
  assert not np.array_equal(
    model.text(params, IDS, sample_index=spans), model.text(params, IDS)
  )
  wide = {"v": jnp.tile(tokens["v"], (1, 2, 1, 1))}
  with pytest.raises(ValueError, match="context_positions"):
    model.context(params, "v", wide)
  with pytest.raises(ValueError, match="joined_positions"):
    plain.text(params, IDS, joined=True)


def test_normals_as_depth():
  model = _model(normals_as="depth")
  params = jax.jit(model.init)(jax.random.key(0))
  assert "normal" not in params["type_embed"]
  assert "n" not in params["contrastive_head"]
  tokens = model.encode(params, "normal", _pixels(1))
  np.testing.assert_array_equal(
    model.context(params, "n", {"n": tokens}).values,
    model.context(params, "d", {"d": tokens}).values,
  )


def test_padded_subtitles(params):
  hidden = _text(params, IDS)
  masks = {"s": IDS != 0}
  context = _model().context(params, "s", {"s": hidden}, masks=masks)
  np.testing.assert_array_equal(context.mask, IDS != 0)
  seen = _model(mask_subtitle_padding=False)
  assert seen.context(params, "s", {"s": hidden}, masks=masks).mask is None


def test_short_contexts_and_other_frame_counts(params):
  model = _model(pool_frames=True)
  assert _context(model, params, "vas", frames=5).values.shape == (2, 18, 12)
  long = _encode(params, "video", _pixels(11))
  assert _model().context(params, "v", {"v": long}).values.shape[1] == 110


def test_bfloat16_stays_close(params):
  low = _model(dtype="bfloat16")
  tokens = low.encode(params, "video", _pixels())
  assert tokens.dtype == jnp.bfloat16
  want = _encode(params, "video", _pixels())
  assert float(jnp.abs(tokens.astype(jnp.float32) - want).mean()) < 0.05
  hidden = low.text(params, IDS)
  assert low.lm_logits(params, hidden).dtype == jnp.float32
  assert low.matching_logits(params, hidden, IDS).dtype == jnp.float32


def test_temperature_is_clamped(params):
  cold = {**params, "temperature": jnp.float32(1e-5)}
  assert float(_model().temperature(cold)) == pytest.approx(0.01)
  free = _model(temperature_min=0.0)
  assert float(free.temperature(cold)) == pytest.approx(1e-5)


def test_mistakes_are_named(params):
  with pytest.raises(ValueError, match="knowledge modalities"):
    _model().encode(params, "text", _pixels())
  with pytest.raises(ValueError, match="image_size"):
    _model().encode(params, "image", jnp.zeros((1, 1, 8, 8, 3)))
  with pytest.raises(ValueError, match="num_heads"):
    _model(text=dataclasses.replace(CONFIG.text, num_heads=5))
  with pytest.raises(ValueError, match="patch_size"):
    _model(vision=dataclasses.replace(CONFIG.vision, patch_size=5))
  with pytest.raises(ValueError, match="encoder"):
    _model(vision=dataclasses.replace(CONFIG.vision, encoder="nope"))
  with pytest.raises(ValueError, match="matmul_precision"):
    _model(matmul_precision="nope")


def test_frame_weights_tell_the_order_of_frames(params):
  config = dataclasses.replace(CONFIG, frame_weights=True)
  model = models.build(config)
  params = _completed(model, params)
  tokens = _encode(params, "video", _pixels(2))
  turned = tokens[:, ::-1]
  gains = params["frame_gain"]
  # To start with: three quarters are the mean, a quarter is the change.
  first, second = np.asarray(tokens)[:, 0, 0], np.asarray(tokens)[:, 1, 0]
  keep = first.shape[1] - first.shape[1] // 4
  got = model.pool(params, "video", tokens)
  np.testing.assert_allclose(
    got[:, :keep], ((first + second) / 2)[:, :keep], atol=1e-6
  )
  wave = 1 + np.asarray(gains["video"])[:, keep:]
  assert (np.diff(wave, axis=0) < 0).all()
  np.testing.assert_allclose(wave, -wave[::-1], atol=1e-6)
  assert set(gains) == {
    name for name, size in config.frame_table.items() if size > 1
  }
  gain = jax.random.normal(jax.random.key(1), gains["video"].shape)
  params = {**params, "frame_gain": {**gains, "video": gain}}
  got = model.pool(params, "video", tokens)
  two = np.asarray(resize_frames(np.asarray(gain), 2))
  want = (np.asarray(tokens)[:, :, 0] * (1 + two)[None]).mean(1)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - model.pool(params, "video", turned)).max() > 1e-3
  one = tokens[:, :1]  # a picture has no order
  np.testing.assert_allclose(
    model.pool(params, "image", one), one[:, 0, 0], atol=1e-6
  )


def test_changes_between_frames_are_pooled(params):
  config = dataclasses.replace(CONFIG, frame_changes=("video",))
  model = models.build(config)
  params = _completed(model, params)
  tokens = _encode(params, "video", _pixels(2))
  pool = lambda x, **masks: np.asarray(model.pool(params, "video", x, **masks))
  mean = np.asarray(tokens)[:, :, 0].mean(1)
  moved = pool(tokens) - mean
  # By hand: attention of the probe over the differences, in float64.
  weights = jax.tree.map(
    lambda x: np.asarray(x, np.float64), params["frame_change"]["video"]
  )
  changes = np.diff(np.asarray(tokens, np.float64), axis=1)[:, 0]
  heads, width = config.vision.num_heads, config.vision.width
  packed = lambda x: (
    x @ weights["qkv"]["kernel"].reshape(width, -1)
    + weights["qkv"]["bias"].reshape(-1)
  ).reshape(*x.shape[:-1], 3, heads, -1)
  query, both = packed(weights["probe"])[0], packed(changes)
  score = np.einsum("nh,blnh->bnl", query, both[:, :, 1])
  score = np.exp(score / np.sqrt(width // heads))
  score /= score.sum(axis=-1, keepdims=True)
  y = np.einsum("bnl,blnh->bnh", score, both[:, :, 2]).reshape(-1, width)
  y = y @ weights["proj"]["kernel"] + weights["proj"]["bias"]
  spread = y - y.mean(axis=-1, keepdims=True)
  eps = config.vision.norm_eps
  z = spread / np.sqrt((spread**2).mean(axis=-1, keepdims=True) + eps)
  z = z * weights["norm"]["scale"] + weights["norm"]["bias"]
  z = z @ weights["mlp"]["fc1"]["kernel"] + weights["mlp"]["fc1"]["bias"]
  z = 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
  z = z @ weights["mlp"]["fc2"]["kernel"] + weights["mlp"]["fc2"]["bias"]
  np.testing.assert_allclose(moved, y + z, atol=1e-4)
  assert np.abs(pool(tokens[:, ::-1]) - pool(tokens)).max() > 1e-3
  # A frame that is not there changes nothing.
  mask = jnp.asarray([[True, False]] * tokens.shape[0])
  other = tokens.at[:, 1].set(7.0)
  np.testing.assert_array_equal(
    pool(tokens, frame_mask=mask), pool(other, frame_mask=mask)
  )
  one = tokens[:, :1]
  np.testing.assert_allclose(pool(one), one[:, 0, 0], atol=1e-6)


def test_the_pooled_change_is_a_token_of_the_context(params):
  """Matching and captions see of a motion what contrastive heads see."""
  model = models.build(dataclasses.replace(CONFIG, frame_changes=("video",)))
  params = _completed(model, params)
  plain = models.build(CONFIG)
  pixels = _pixels(2)
  video, audio = (_encode(params, k, pixels) for k in ("video", "audio"))
  tokens = {"v": video, "a": audio}
  want = plain.context(params, "va", tokens).values
  found = model.context(params, "va", tokens)
  at = video.shape[1] * video.shape[2]  # behind the video, before the sound
  assert found.mask is None
  np.testing.assert_allclose(
    np.delete(found.values, at, axis=1), want, atol=1e-6
  )
  # By hand: what pooling adds, projected as any token of the video.
  moved = model.pool(params, "video", video) - plain.pool(
    params, "video", video
  )
  weights = jax.tree.map(np.asarray, params["project"]["video"])
  y = np.asarray(moved) @ weights["dense"]["kernel"]
  y = y + weights["dense"]["bias"]
  y = y - y.mean(axis=-1, keepdims=True)
  y = y / np.sqrt((y**2).mean(-1, keepdims=True) + CONFIG.text.norm_eps)
  y = y * weights["norm"]["scale"] + weights["norm"]["bias"]
  y = y + np.asarray(params["type_embed"]["video"])
  np.testing.assert_allclose(found.values[:, at], y, atol=1e-4)
  # Where a frame is missing there is no change; one frame has none at all.
  mask = jnp.asarray([[True, True], [True, False]])
  rows = {"v": video[:2]}
  masked = model.context(params, "v", rows, masks={"v": mask})
  assert np.asarray(masked.mask)[:, -1].tolist() == [True, False]
  gone = jnp.asarray([True, False])
  masked = model.context(params, "v", rows, masks={"v": gone})
  assert np.asarray(masked.mask).all(axis=1).tolist() == [True, False]
  assert not np.asarray(masked.mask)[1].any()
  one = model.context(params, "v", {"v": video[:, :1]})
  assert one.values.shape[1] == video.shape[2]


def test_changes_need_two_frames():
  for name in ("depth", "nothing"):
    with pytest.raises(ValueError, match=f"frame_changes names '{name}'"):
      _model(frame_changes=(name,))
