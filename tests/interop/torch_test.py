"""Exported `modeling_mico.py` against our model: every part of it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import interop
from mico_jax.checkpoint.restore import Checkpoint
from mico_jax.config import (
  Config,
  ConfigError,
  InputConfig,
  TextConfig,
  VisionConfig,
)
from mico_jax.data.tokenizer import (
  SentencePieceTokenizer,
  WordPieceTokenizer,
  read_omniworld_model,
)
from mico_jax.inference.omni_model import OmniModel
from mico_jax.inference.prepare import Preparer
from mico_jax.interop.exporting import export
from mico_jax.interop.exporting import torch_folder as exporter
from mico_jax.layers.mlp import MLPS
from mico_jax.modalities import MODALITIES
from mico_jax.models import ENCODERS, build
from mico_jax.models.decoding import generate
from mico_jax.models.presets import VISION
from mico_jax.testing.tiny_checkpoint import tiny_config

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

LIMIT = 1e-5
ROWS = 3


def random_params(model: Any, seed: int = 1) -> Any:
  """Parameters without zeros or ones: every bias and norm counts."""
  rng = np.random.default_rng(seed)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    x = rng.standard_normal(leaf.shape).astype(np.float32)
    name = path[-1].key
    if name == "kernel":
      return x / np.float32(np.sqrt(leaf.shape[-2]))
    return 0.1 * x + np.float32(name in ("scale", "temperature"))

  return jax.tree_util.tree_map_with_path(draw, model.abstract_params())


def make(config: Config, folder: pathlib.Path) -> tuple[Any, Any, Any, Any]:
  """(our model, its parameters, the exported model, tokenizer)."""
  tokenizer = SentencePieceTokenizer(read_omniworld_model())
  model = build(config.model)
  params = random_params(model)
  checkpoint = Checkpoint(folder, 0, config, {}, params, "params", {})
  source = export.OpenedCheckpoint(checkpoint, params, tokenizer, model)
  params = jax.tree.map(jnp.asarray, params)
  exporter.write(source, folder, export.ExportReport("torch", {}))
  exported = exporter.load_module(folder).MiCo.from_folder(folder)
  return model, params, exported, tokenizer


def test_temperatures_of_heads_travel(tmp_path):
  config = tiny_config()
  model = dataclasses.replace(config.model, temperature="head")
  config = dataclasses.replace(config, model=model)
  _, params, exported, _ = make(config, tmp_path)
  logs = {k: float(v) for k, v in params["temperature_log"].items()}
  assert {
    k: float(v.detach()) for k, v in exported.temperature_log.items()
  } == logs


def test_a_model_without_a_pytorch_form_is_not_written(tmp_path):
  model = tiny_config().model
  for field in ("vision", "text"):
    part = dataclasses.replace(getattr(model, field), encoder="other")
    config = changed(**{field: part})
    checkpoint = Checkpoint(tmp_path, 0, config, {}, {}, "params", {})
    tokenizer = SentencePieceTokenizer(read_omniworld_model())
    source = export.OpenedCheckpoint(checkpoint, {}, tokenizer, build(model))
    with pytest.raises(ConfigError, match=rf"model.{field}.*no PyTorch form"):
      exporter.write(source, tmp_path, export.ExportReport("torch", {}))
    assert not list(tmp_path.iterdir())


def test_every_encoder_with_a_pytorch_form_is_listed(tmp_path):
  exporter.write_code(tmp_path)
  module = exporter.load_module(tmp_path)
  assert tuple(module.ENCODERS) == exporter.ENCODERS
  assert tuple(module.TEXT_ENCODERS) == exporter.TEXT_ENCODERS


def changed(**model: Any) -> Config:
  config = tiny_config()
  return dataclasses.replace(
    config, model=dataclasses.replace(config.model, **model)
  )


CONFIGS = {
  "plain": changed(
    heads=(*"tsvadn", "va", "id", "vs", "vas", "vad"), frame_weights=True
  ),
  "options": changed(
    heads=(*"tsvad", "va"),
    frame_table={"video": 3, "audio": 1, "depth": 2},
    normals_as="depth",
    frame_changes=("video", "depth"),
    pool_frames=True,
    context_positions=64,
    sample_embeddings=3,
    joined_positions=20,
    masked_rows="released",
    mask_subtitle_padding=False,
  ),
  "causal": changed(
    text=dataclasses.replace(
      tiny_config().model.text,
      encoder="causal",
      num_heads=4,
      kv_heads=2,
      norm_eps=1e-6,
    ),
    sample_embeddings=3,
  ),
}


class Compiled:
  """A model whose methods are compiled whole, and once for all tests.

  Outside of jit each scan of blocks is compiled again at each call.
  """

  def __init__(self, model: Any):
    self.model = model
    for name, static in {
      "encode": ["key"],
      "pool": ["key"],
      "text": ["attention", "prefix_length", "joined"],
      "embed": ["letters"],
      "context": ["letters"],
      "project_context": [],
      "matching_logits": [],
      "lm_logits": [],
    }.items():
      method = jax.jit(getattr(model, name), static_argnames=static)
      setattr(self, name, method)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.model, name)


@pytest.fixture(scope="module", params=list(CONFIGS))
def pair(request, tmp_path_factory):
  config = CONFIGS[request.param]
  model, *others = make(config, tmp_path_factory.mktemp(request.param))
  return Compiled(model), *others


def pixels(model: Any, seed: int = 0, frames: int = 2) -> np.ndarray:
  size = model.config.vision.image_size
  rng = np.random.default_rng(seed)
  shape = (ROWS, frames, size, size, 3)
  return rng.standard_normal(shape).astype(np.float32)


def some_ids(seed: int = 0, length: int = 12) -> np.ndarray:
  """Token ids with padding of different lengths."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, 500, (ROWS, length)).astype(np.int32)
  for row in range(ROWS):
    ids[row, length - 3 * row :] = 0
  ids[:, 0] = 2
  return ids


def close(ours: Any, theirs: Any, limit: float = LIMIT) -> None:
  theirs = theirs.detach().numpy()
  scale = max(1.0, float(np.abs(theirs).max()))
  np.testing.assert_allclose(np.asarray(ours), theirs, atol=limit * scale)


def t(array: Any) -> Any:
  return torch.as_tensor(np.array(array))


def contexts(pair: Any, letters: str) -> tuple[Any, Any]:
  """The context of letters on both sides, with their masks."""
  model, params, exported, _ = pair
  ours, theirs, masks = {}, {}, {}
  for i, letter in enumerate(letters):
    if letter == "s":
      ids = some_ids(7)
      ours[letter] = model.text(params, jnp.asarray(ids))
      theirs[letter] = exported.encode_text(t(ids).long())
      masks[letter] = ids != 0
      continue
    x = pixels(model, i)
    key = exported.by_letter[letter]
    ours[letter] = model.encode(params, key, jnp.asarray(x))
    theirs[letter] = exported.encode(key, t(x))
    masks[letter] = np.array([[True, True], [True, False], [False, False]])
  a = model.context(
    params, letters, ours, masks={k: jnp.asarray(m) for k, m in masks.items()}
  )
  b = exported.context(letters, theirs, {k: t(m) for k, m in masks.items()})
  return a, b


def test_weights_come_back(pair, from_torch):
  model, params, exported, _ = pair
  tensors = {k: v.numpy() for k, v in exported.state_dict().items()}
  back = from_torch(tensors, model.model)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_every_modality_and_head(pair):
  model, params, exported, _ = pair
  ours: dict[str, Any] = {}
  theirs: dict[str, Any] = {}
  for i, (key, entry) in enumerate(exported.modalities.items()):
    letter = entry["letter"]
    if entry["kind"] == "interface":
      ids = some_ids(i)
      given = jnp.asarray(ids)
      ours[letter] = model.pool_text(model.text(params, given), given)
      words = t(ids).long()
      theirs[letter] = exported.pool_text(exported.encode_text(words), words)
    else:
      x = pixels(model, i)
      tokens = model.encode(params, key, jnp.asarray(x))
      got = exported.encode(key, t(x))
      close(tokens, got)
      ours[letter] = model.pool(params, key, tokens)
      theirs[letter] = exported.pool(key, got)
  heads = [h for h in model.config.heads if set(h) <= set(ours)]
  assert len(heads) > 5
  for head in heads:
    if head == "n" and model.config.normals_as == "depth":
      continue
    close(model.embed(params, head, ours), exported.features(head, theirs))


def test_contexts_and_matching(pair):
  model, params, exported, _ = pair
  known = set(exported.by_letter)
  for letters in ("v", "va", "sd", "vas", "n"):
    assert set(letters) <= known
    a, b = contexts(pair, letters)
    close(a.values, b.values)
    np.testing.assert_array_equal(
      np.ones(a.values.shape[:2], bool) if a.mask is None else a.mask,
      np.ones(b.values.shape[:2], bool) if b.mask is None else b.mask,
    )
    ids = some_ids(3)
    kv = model.project_context(params, a)
    hidden = model.text(params, jnp.asarray(ids), context=kv)
    got = exported.encode_text(t(ids).long(), context=b)
    close(hidden, got)
    logits = model.matching_logits(params, hidden, jnp.asarray(ids))
    close(logits, exported.matching_logits(got, t(ids)))


@pytest.mark.parametrize(
  ("attention", "prefix"),
  [("bidirectional", None), ("causal", None), ("prefix_causal", 4)],
)
def test_text(pair, attention, prefix):
  model, params, exported, _ = pair
  ids = some_ids(5)
  hidden = model.text(
    params, jnp.asarray(ids), attention=attention, prefix_length=prefix
  )
  got = exported.encode_text(
    t(ids).long(), attention=attention, prefix_length=prefix or 0
  )
  close(hidden, got)
  close(model.lm_logits(params, hidden), exported.lm_logits(got))


def test_tables_of_the_paper(pair):
  model, params, exported, _ = pair
  if not model.config.joined_positions:
    with pytest.raises(AttributeError):
      exported.encode_text(t(some_ids()).long(), joined=True)
    return
  ids = some_ids(6)
  index = np.array([2, 0, 1], np.int32)
  hidden = model.text(
    params, jnp.asarray(ids), joined=True, sample_index=jnp.asarray(index)
  )
  got = exported.encode_text(
    t(ids).long(), joined=True, sample_index=t(index).long()
  )
  close(hidden, got)
  x = pixels(model)
  a = model.model.context(
    params,
    "v",
    {"v": model.encode(params, "video", jnp.asarray(x))},
    sample_index={"v": 1},
  )
  b = exported.context(
    "v", {"v": exported.encode("video", t(x))}, sample_index={"v": 1}
  )
  close(a.values, b.values)


@pytest.mark.parametrize("pair", ["plain", "causal"], indirect=True)
@pytest.mark.parametrize(
  "options",
  [
    {"num_beams": 1},
    {"num_beams": 3, "length_penalty": 0.6, "num_return": 3},
    {"num_beams": 2, "prompt": True},
    {"num_beams": 1, "prompt": True},
  ],
  ids=["greedy", "beam", "beam_prompt", "greedy_prompt"],
)
def test_generation(pair, options):
  model, params, exported, tokenizer = pair
  options = dict(options)
  if options.pop("prompt", False):
    prompt = np.concatenate(
      [some_ids(8, 9), np.full((ROWS, 1), tokenizer.info.cls, np.int32)], 1
    )
    options["prompt"] = prompt
  a, b = contexts(pair, "va")
  kv = model.project_context(params, a)
  run = jax.jit(
    functools.partial(
      generate,
      model.model,
      tokens=tokenizer.info,
      max_new_tokens=7,
      **{k: v for k, v in options.items() if k != "prompt"},
    )
  )
  ours = run(params, kv, prompt=options.get("prompt"))
  if "prompt" in options:
    options["prompt"] = t(options["prompt"]).long()
  sequences, scores = exported.generate(b, max_new_tokens=7, **options)
  np.testing.assert_array_equal(np.asarray(ours.sequences), sequences.numpy())
  np.testing.assert_allclose(np.asarray(ours.scores), scores.numpy(), atol=1e-4)


MODES = [
  (key, name)
  for key, modality in MODALITIES.items()
  if modality.kind == "knowledge"
  for name in modality.modes
]


@pytest.mark.parametrize(("key", "name"), MODES)
def test_preprocessing(key, name, tmp_path):
  config = tiny_config()
  read = MODALITIES[key]
  config = dataclasses.replace(
    config,
    model=dataclasses.replace(
      config.model,
      heads=tuple(dict.fromkeys((*config.model.heads, read.head))),
      frame_table={**config.model.frame_table, read.context_type: 2},
      vision=dataclasses.replace(config.model.vision, image_size=24),
    ),
    data=dataclasses.replace(
      config.data, inputs={key: InputConfig(frames=2, mode=name)}
    ),
  )
  tokenizer = SentencePieceTokenizer(read_omniworld_model())
  preparer = Preparer(config, tokenizer)
  exporter.write_code(tmp_path)
  common = exporter.preprocessing_json(config, tokenizer)
  reader = exporter.load_module(tmp_path).Reader(common)
  rng = np.random.default_rng(0)
  raw: Any = rng.integers(0, 256, (3, 41, 30, 3), dtype=np.uint8)
  if key == "depth":
    raw = rng.random((41, 30)).astype(np.float32)
    unit = "relative" if "relative" in name else "metre"
    assert common["inputs"][key]["unit"] == unit
  elif key not in ("image", "video", "normal", "audio"):
    raw = read.example(preparer.geometry(key), 1)
    raw = raw if isinstance(raw, np.ndarray) else raw.take([0])[0]
    assert common["inputs"][key].get("unit", "") == read.modes[name].unit
  elif key == "audio":
    raw = (rng.standard_normal(16000).astype(np.float32) * 0.1, 22050)
  mode = preparer.mode(key)
  want = mode.to_pixels(
    preparer.prepare_one(key, raw), geometry=preparer.geometry(key), xp=np
  )
  np.testing.assert_array_equal(reader.pixels(key, raw).numpy(), want)


@functools.cache
def template() -> Any:
  folder = pathlib.Path(interop.__file__).parent / "torch_template"
  return exporter.load_module(folder)


TEXTS = [
  "A large red cube moves left; two small BALLS rest.",
  "it's 12:30, don't ask -- caf\u00e9 \u4f60\u597d \U0001f600 \ufb01ne",
  "  spaces\t and\nlines  \u00a0 \u2019quoted\u2018 \u00c0\u00c9 ",
  "supercalifragilistic",
  "\u0130 \u00df \u01c5 x" * 9,
]


def special(tokenizer: Any) -> dict[str, Any]:
  info = tokenizer.info
  return {
    "kind": tokenizer.kind,
    "pad": info.pad,
    "cls": info.cls,
    "sep": info.sep,
    "mask": info.mask,
  }


def check_tokenizer(ours: Any, theirs: Any, texts: list[str]) -> None:
  for text in texts:
    clean = " ".join(text.split())
    want = ours.encode(clean, 40).tolist()
    assert theirs.encode(text, 40) == want, text
    assert theirs.decode(want) == ours.decode(want), text


def test_sentencepiece(tmp_path):
  ours = SentencePieceTokenizer(read_omniworld_model())
  (tmp_path / "sentencepiece.model").write_bytes(read_omniworld_model())
  theirs = template().read_tokenizer(tmp_path, special(ours))
  from mico_jax.data.sentencepiece_training import omniworld_sentences

  check_tokenizer(ours, theirs, TEXTS + omniworld_sentences(8))


def test_wordpiece(tmp_path):
  marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  letters = [chr(c) for c in range(33, 127)] + ["\u4f60"]
  pieces = ["red", "cube", "##s", "ball", "##ali", "cafe", "don", "moves"]
  vocabulary = [*marks, *letters, *(f"##{c}" for c in "abcdefil"), *pieces]
  data = "\n".join(vocabulary).encode() + b"\n"
  (tmp_path / "vocab.txt").write_bytes(data)
  ours = WordPieceTokenizer(data)
  theirs = template().read_tokenizer(tmp_path, special(ours))
  check_tokenizer(ours, theirs, [*TEXTS, "[SEP] [sep] cubes", "x" * 101])


def test_wrong_folders_are_named(tmp_path):
  (tmp_path / "config.json").write_text('{"format": "other"}')
  with pytest.raises(ValueError, match="format 'other', expected"):
    template().MiCo.from_folder(tmp_path)


def test_an_encoder_without_torch_form_is_named():
  config = {
    "model": dataclasses.asdict(
      dataclasses.replace(
        tiny_config().model,
        vision=VisionConfig(encoder="mystery"),
        text=TextConfig(width=8, num_heads=1, depth=1, vocab_size=8),
      )
    ),
    "modalities": {},
    "encoder_width": 8,
  }
  with pytest.raises(ValueError, match="encoder 'mystery' is not one of"):
    template().MiCo(config, {})


def shrunk(vision: VisionConfig) -> VisionConfig:
  """An encoder of the table at a tiny size, its options kept."""
  if vision.stage_depths:
    kernels = vision.stage_kernels and ((3,), (5, 3))
    return dataclasses.replace(
      vision,
      image_size=32,
      patch_size=4,
      width=16,
      depth=6,
      num_heads=2 if vision.stage_heads else vision.num_heads,
      mlp_dim=32,
      stage_depths=(2, 4),
      stage_widths=(8, 16),
      stage_heads=vision.stage_heads and (1, 2),
      window_size=4 if vision.stage_heads else 7,
      stage_kernels=kernels,
    )
  return dataclasses.replace(
    vision,
    image_size=16,
    patch_size=4,
    width=16,
    depth=2,
    num_heads=2,
    mlp_dim=24,
    rope_grid=3 if vision.rope_grid else 0,
  )


def forms() -> dict[str, VisionConfig]:
  """One tiny config for each different form of the packaged encoders."""
  found: dict[str, VisionConfig] = {}
  for name, vision in VISION.items():
    tiny = shrunk(vision)
    if tiny not in found.values():
      found[name] = tiny
  scaled = dataclasses.replace(found["eva01_g14"], layer_scale=0.1)
  head = dataclasses.replace(found["clip_b32"], clip_embed_dim=8)
  tanh = dataclasses.replace(head, mlp="gelu_tanh", qkv_bias="none")
  return found | {"layer_scale": scaled, "clip_head": head, "tanh": tanh}


@pytest.mark.parametrize("name", list(forms()))
def test_every_encoder(name, tmp_path):
  config = changed(vision=forms()[name], pool_frames=True)
  model, params, exported, _ = make(config, tmp_path)
  x = pixels(model, frames=1)
  encode = jax.jit(functools.partial(model.encode, key="image"))
  ours, theirs = encode(params, pixels=jnp.asarray(x)), exported.encode
  theirs = theirs("image", t(x))
  close(ours, theirs)
  close(model.pool(params, "image", ours), exported.pool("image", theirs))
  ours = model.context(params, "v", {"v": ours}).values
  close(ours, exported.context("v", {"v": theirs}).values)
  if name in FAMILIES:
    check_any_batch(exported.tower("image"), t(x))


# One encoder of each kind: classic, rotary, windows, convolutions.
FAMILIES = ("clip_b32", "eva02_b16", "swin_t", "convnext_atto", "unireplknet_a")


def check_any_batch(module: Any, *inputs: Any) -> None:
  """Traced and exported with three rows, a module takes one and seven."""
  more = [torch.cat([x, x.flip(0), x[:1]]) for x in inputs]
  one = [x[:1] for x in inputs]
  dims = ({0: torch.export.Dim("batch")},) * len(inputs)
  with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what tracing says about constants
    forms = {
      "trace": torch.jit.trace(module, inputs, check_trace=False),
      "export": torch.export.export(
        module, inputs, dynamic_shapes=dims
      ).module(),
    }
    for name, form in forms.items():
      for rows in (more, one):
        torch.testing.assert_close(
          form(*rows), module(*rows), rtol=0, atol=LIMIT, msg=name
        )


@pytest.mark.parametrize("kind", ["shared", "head"])
def test_zero_shot_and_gradients(kind, tmp_path):
  config = tiny_config()
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, temperature=kind)
  )
  _, params, exported, tokenizer = make(config, tmp_path)
  ours = OmniModel(config, params, tokenizer)
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
  pictures, classes = list(frames), ("a red cube", "a blue ball")
  templates = ("{}", "I see {}")
  expected = ours.zero_shot(pictures, classes, templates).probability
  found = exported.zero_shot(pictures, classes, templates)
  np.testing.assert_allclose(found.numpy(), expected, atol=LIMIT)
  floats = [torch.tensor(f / 255).permute(2, 0, 1) for f in frames]
  again = exported.zero_shot(floats, classes, templates)
  np.testing.assert_array_equal(again.numpy(), found.numpy())
  assert not found.requires_grad
  with pytest.raises(ValueError, match=r"no \{\}"):
    exported.zero_shot(pictures, classes, "a photo")
  exported.train()
  exported.embed(image=pictures)["image"][0, 0].backward()
  slope = exported.vision.patch_embed.proj.weight.grad
  functions, leaves = ours.pure()
  pixels = functions.pixels(ours.prepare(image=pictures))
  expected = jax.grad(lambda p: functions.embed(p, pixels)[0, 0])(leaves)
  kernel = np.asarray(jax.tree.leaves(expected["vision"]["patch_embed"])[-1])
  np.testing.assert_allclose(
    np.sort(slope.numpy().ravel()), np.sort(kernel.ravel()), atol=LIMIT
  )


@pytest.mark.parametrize("pair", ["plain"], indirect=True)
@pytest.mark.parametrize("key", ["audio", "text"])
def test_towers_take_any_batch(pair, key):
  model, _, exported, _ = pair
  words = MODALITIES[key].kind == "interface"
  x = some_ids().astype(np.int64) if words else pixels(model)
  tower = exported.tower(key)
  check_any_batch(tower, t(x))
  letter = MODALITIES[key].letter
  with torch.no_grad():
    got = tower(t(x))
    if words:
      pooled = exported.pool_text(exported.encode_text(t(x)), t(x))
    else:
      pooled = exported.pool(key, exported.encode(key, t(x)))
  close(got, exported.features(letter, {letter: pooled}))


class Matcher(torch.nn.Module):
  """Matching of texts with pictures, sound and subtitles, for tracing."""

  def __init__(self, model: Any):
    super().__init__()
    self.model = model

  def forward(self, ids: Any, video: Any, audio: Any, words: Any) -> Any:
    """Logits of a text and a context of three."""
    m = self.model
    tokens = {"v": m.encode("video", video), "a": m.encode("audio", audio)}
    tokens["s"] = m.encode_text(words)
    context = m.context("vas", tokens, {"s": words != 0})
    return m.matching_logits(m.encode_text(ids, context=context), ids)


@pytest.mark.parametrize("pair", ["plain"], indirect=True)
def test_matching_takes_any_batch(pair):
  model, _, exported, _ = pair
  ids, words = (t(some_ids(i).astype(np.int64)) for i in (1, 2))
  videos, sounds = t(pixels(model, 1)), t(pixels(model, 2))
  check_any_batch(Matcher(exported).eval(), ids, videos, sounds, words)


@pytest.mark.parametrize("pair", ["plain"], indirect=True)
@pytest.mark.parametrize("key", ["image", "text"])
def test_onnx_takes_any_batch(pair, key, tmp_path):
  pytest.importorskip("onnx")
  pytest.importorskip("onnxscript")
  runtime = pytest.importorskip("onnxruntime")
  model, _, exported, _ = pair
  x = t(some_ids().astype(np.int64) if key == "text" else pixels(model))
  tower, path = exported.tower(key).eval(), tmp_path / "tower.onnx"
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.onnx.export(
      tower,
      (x,),
      path,
      dynamo=True,
      dynamic_shapes=({0: torch.export.Dim("batch")},),
      verbose=False,
    )
  session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
  (name,) = (i.name for i in session.get_inputs())
  for rows in (x, torch.cat([x, x.flip(0), x[:1]]), x[:1]):
    (got,) = session.run(None, {name: rows.numpy()})
    with torch.no_grad():
      close(got, tower(rows))


def test_every_encoder_has_a_torch_form():
  """An encoder of the tables that the exported file lacks fails here."""
  assert set(template().ENCODERS) == set(ENCODERS)
  assert {v.encoder for v in VISION.values()} <= set(ENCODERS)
  assert set(template().ACTIVATIONS) == set(MLPS)
