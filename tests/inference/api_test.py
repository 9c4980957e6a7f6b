"""The Python calls that people guess, on a tiny checkpoint."""

from __future__ import annotations

import concurrent.futures
import io

import jax
import numpy as np
import pytest
from PIL import Image

import mico_jax
from mico_jax.modalities import DecodeError
from mico_jax.testing import tiny_checkpoint

CLASSES = ("a red cube", "a small glass cone", "a blue ball")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  root = tmp_path_factory.mktemp("api") / "run"
  tiny_checkpoint.save_tiny(root)
  return mico_jax.load(str(root), check="fast")


def picture(seed=0, rows=20, columns=30):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def png(array):
  file = io.BytesIO()
  Image.fromarray(array).save(file, "PNG")
  return file.getvalue()


def embedded(model, value):
  return model.embed(image=value)["image"]


def test_one_picture_in_every_form(model, tmp_path):
  array = picture()
  path = tmp_path / "a.png"
  path.write_bytes(png(array))
  expected = embedded(model, [array])
  floats = array / 255.0
  forms = {
    "path": path,
    "name": str(path),
    "bytes": png(array),
    "open file": io.BytesIO(png(array)),
    "Pillow": Image.fromarray(array),
    "floats": floats,
    "halves": floats.astype(np.float32),
    "channels first": np.moveaxis(array, -1, 0),
    "floats, channels first": np.moveaxis(floats, -1, 0),
    "jax": jax.numpy.asarray(array),
    "iterator": iter([array]),
    "frames": array[None],
  }
  for name, value in forms.items():
    np.testing.assert_array_equal(embedded(model, value), expected, name)
  mixed = embedded(model, [path, png(array), Image.fromarray(array), floats])
  np.testing.assert_allclose(mixed, np.repeat(expected, 4, 0), atol=1e-6)


@pytest.mark.parametrize(
  ("value", "message"),
  [
    (picture().astype(np.float32), r"0\.\.1, got 0 to 255"),
    (picture() / 127.5 - 1, "before any normalisation"),
    (np.full((20, 30, 3), np.nan), "got nan"),
    (picture().astype(np.int32), "uint8"),
    (np.zeros((2, 3, 3, 3), np.uint8), "first or last"),
    (np.zeros((20, 30, 2), np.uint8), r"\[3, Y, X\]"),
  ],
)
def test_arrays_that_may_mean_something_else(model, value, message):
  with pytest.raises(DecodeError, match=message):
    model.embed(image=[value])


@pytest.mark.parametrize("value", [{"a": 1}, {"a", "b"}, 3, io.StringIO("a")])
def test_values_that_are_no_list(model, value):
  with pytest.raises(ValueError, match=r"must be a list|mode 'rb'"):
    model.embed(image=value)


def test_rows_that_are_skipped_keep_their_places(model):
  values = [picture(0), b"broken", picture(1), picture(2), "no/such.png"]
  texts = [*CLASSES, "a", "b"]
  good = [0, 2, 3]
  kept = [values[i] for i in good]
  with pytest.raises(DecodeError, match="not a readable image"):
    model.embed(image=values)
  options = {"on_error": "skip", "batch_size": 2}
  with pytest.warns(UserWarning, match=r"2 of 5 inputs .*row 1: .*row 4: no/"):
    rows = model.embed(image=values, **options)["image"]
  assert np.isnan(rows[[1, 4]]).all()
  np.testing.assert_allclose(rows[good], embedded(model, kept), atol=1e-6)
  with pytest.warns(UserWarning, match="2 of 5"):
    found = model.match(text=texts, image=values, **options)
  expected = model.match(text=[texts[i] for i in good], image=kept)
  assert np.isnan(found[[1, 4]]).all()
  np.testing.assert_allclose(found[good], expected, atol=1e-6)
  short = {"max_new_tokens": 3, "num_beams": 1}
  with pytest.warns(UserWarning, match="2 of 5"):
    captions = model.caption(image=values, **options, **short)
  assert [captions[i] for i in good] == model.caption(image=kept, **short)
  assert [captions[1], captions[4]] == [None, None]
  with pytest.raises(DecodeError):
    model.embed(image=[b"x", b"y"], on_error="skip")
  with pytest.raises(ValueError, match="on_error='ignore'"):
    model.embed(image=values, on_error="ignore")


def test_a_joint_row_needs_all_of_its_inputs(model):
  sound = np.sin(np.arange(8000, dtype=np.float32) / 9)
  lists = {
    "video": [picture(0), picture(1), picture(2)],
    "audio": [(sound, 16000), b"broken", (sound / 2, 16000)],
  }
  with pytest.warns(UserWarning, match="row 1"):
    rows = model.embed(groups="va", on_error="skip", **lists)["va"]
  kept = {key: [values[0], values[2]] for key, values in lists.items()}
  expected = model.embed(groups="va", **kept)["va"]
  np.testing.assert_allclose(rows[[0, 2]], expected, atol=1e-6)
  assert np.isnan(rows[1]).all()


def test_zero_shot_is_the_softmax_of_mean_prompts(model):
  pictures = [picture(i) for i in range(3)]
  templates = ("{}", "I see {} there")
  found = model.zero_shot(pictures, CLASSES, templates)
  prompts = [t.replace("{}", c) for c in CLASSES for t in templates]
  texts = model.embed(text=prompts)["text"].astype(np.float64)
  weights = texts.reshape(3, 2, -1).mean(1)
  weights /= np.linalg.norm(weights, axis=-1, keepdims=True)
  cosine = embedded(model, pictures).astype(np.float64) @ weights.T
  logits = np.exp(cosine / float(model.params["temperature"]))
  np.testing.assert_allclose(found.similarity, cosine, atol=1e-6)
  np.testing.assert_allclose(
    found.probability, logits / logits.sum(1, keepdims=True), atol=1e-5
  )
  best = found.top(1)
  assert [row[0][0] for row in best] == [CLASSES[i] for i in cosine.argmax(1)]
  assert [len(row) for row in found.top(9)] == [3, 3, 3]


def test_zero_shot_of_other_modalities(model):
  sound = (np.sin(np.arange(8000, dtype=np.float32) / 9), 16000)
  alone = model.zero_shot(classes=CLASSES, audio=[sound])
  assert alone.probability.shape == (1, 3)
  joint = model.zero_shot(classes=CLASSES, audio=[sound], video=[picture()])
  rows = model.embed(groups="va", audio=[sound], video=[picture()])["va"]
  texts = model.embed(text=list(CLASSES))["text"]
  np.testing.assert_allclose(joint.similarity, rows @ texts.T, atol=1e-6)
  with pytest.warns(UserWarning, match="row 0"):
    one = model.zero_shot([b"x", picture()], CLASSES, on_error="skip")
  assert list(map(len, one.top(1))) == [0, 1]
  for classes, templates, message in [
    ((), "{}", "list of names"),
    ("cat", "{}", "list of names"),
    (CLASSES, "a photo", "no {}"),
  ]:
    with pytest.raises(ValueError, match=message):
      model.zero_shot([picture()], classes, templates)


def test_tokens_are_those_of_each_block(model):
  pictures = [picture(i) for i in range(3)]
  found = model.tokens(image=pictures, text=["a red cube", "a"])
  vision = model.config.model.vision
  side = vision.image_size // vision.patch_size
  image = found["image"]
  assert image.values.shape == (3, 1, 1 + side**2, vision.width)
  assert image.valid.all()
  assert image.first == 1
  np.testing.assert_array_equal(
    image.patches()[1, 0, 0, 1], image.values[1, 0, 2]
  )
  # The last block's states are those before the final LayerNorm.
  last = model.tokens(image=pictures, block=-1)["image"].values
  np.testing.assert_array_equal(
    last, model.tokens(image=pictures, block=vision.depth - 1)["image"].values
  )
  norm = jax.tree.map(np.asarray, model.params["vision"]["norm"])
  centred = last - last.mean(-1, keepdims=True)
  scale = np.sqrt(last.var(-1, keepdims=True) + vision.norm_eps)
  expected = centred / scale * norm["scale"] + norm["bias"]
  np.testing.assert_allclose(image.values, expected, atol=2e-5)
  text = found["text"]
  assert text.valid.sum(-1).tolist() == [5, 3]  # [CLS] ... [SEP]
  with pytest.raises(ValueError, match="no patches"):
    text.patches()
  with pytest.raises(ValueError, match="2 blocks"):
    model.tokens(image=pictures, block=2)
  with pytest.raises(ValueError, match="takes no 'smell' input"):
    model.tokens(smell=picture())
  with pytest.raises(ValueError, match="block=None"):
    model.tokens(text=["a"], block=0)


def test_attention_is_that_of_the_block(model):
  pictures = [picture(i) for i in range(2)]
  found = model.attention(image=pictures, heads=True)["image"]
  x = model.tokens(image=pictures, block=0)["image"].values[:, 0]
  x = x.astype(np.float64)
  vision = model.config.model.vision
  block = jax.tree.map(
    lambda leaf: np.asarray(leaf[1], np.float64),
    model.params["vision"]["blocks"],
    is_leaf=lambda leaf: isinstance(leaf, tuple),
  )
  centred = x - x.mean(-1, keepdims=True)
  x = centred / np.sqrt(x.var(-1, keepdims=True) + vision.norm_eps)
  x = x * block["norm1"]["scale"] + block["norm1"]["bias"]
  qkv = block["attn"]["qkv"]
  width, heads = vision.width, vision.num_heads
  bias = np.zeros(3 * width)
  if "bias" in qkv:
    bias = qkv["bias"]
  elif "q_bias" in qkv:
    bias[:width], bias[2 * width :] = qkv["q_bias"], qkv["v_bias"]
  q, k, _ = np.split(x @ qkv["kernel"] + bias, 3, axis=-1)
  q = q[:, 0].reshape(2, heads, -1)
  k = k.reshape(2, x.shape[1], heads, -1)
  scores = np.einsum("bnh,bsnh->bns", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  np.testing.assert_allclose(
    found.reshape(2, heads, -1), weights[..., 1:], atol=1e-5
  )
  mean = model.attention(image=pictures)["image"]
  np.testing.assert_allclose(mean, found.mean(2), atol=1e-6)
  with pytest.raises(ValueError, match="2 blocks"):
    model.attention(image=pictures, block=5)
  with pytest.raises(ValueError, match="text"):
    model.attention(text=["a"])


def test_pure_functions_under_jit_grad_and_vmap(model):
  pictures = [picture(i) for i in range(3)]
  functions, params = model.pure()
  x = functions.pixels(model.prepare(image=pictures))
  embed = jax.jit(functions.embed)
  expected = embedded(model, pictures)
  np.testing.assert_allclose(embed(params, x), expected, atol=1e-6)
  one = jax.vmap(lambda p: embed(params, {"image": p[None]})[0])(x["image"])
  np.testing.assert_allclose(one, expected, atol=1e-6)
  value = lambda p: functions.embed(params, {"image": p})[0, 0]
  slope = jax.grad(value)(x["image"])
  step = 1e-3 * np.random.default_rng(0).normal(size=slope.shape)
  ahead, behind = value(x["image"] + step), value(x["image"] - step)
  np.testing.assert_allclose(
    (ahead - behind) / 2, np.sum(slope * step), rtol=0.02, atol=1e-6
  )
  assert not np.asarray(slope[1:]).any()  # of other rows
  more = functions.pixels(model.prepare(text=list(CLASSES), image=pictures))
  context = functions.context(params, {"image": more["image"]}, "i")
  np.testing.assert_allclose(
    jax.jit(functions.match)(params, more["text"], context),
    model.match(text=CLASSES, image=pictures),
    atol=1e-6,
  )
  with pytest.raises(ValueError, match="letters='va'"):
    functions.embed(params, more)


def test_calls_from_several_threads(model):
  pictures = [picture(i) for i in range(24)]
  expected = embedded(model, pictures)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda p: embedded(model, p), pictures))
  np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-6)


def test_a_bar_is_shown_when_asked_for(model, capsys):
  pictures = [picture(i) for i in range(3)]
  embedded(model, pictures)
  assert "embed" not in capsys.readouterr().err
  model.embed(image=pictures, progress=True, batch_size=1)
  assert "3/3" in capsys.readouterr().err


def test_repr_says_what_it_is(model):
  text = repr(model)
  size = sum(x.size for x in jax.tree.leaves(model.params))
  assert f"{size / 1e6:.3g}M parameters" in text
  for word in ("tiny", "vit 32 x 2", "image, video, audio", "va", "16 pixels"):
    assert word in text, word
