"""Exports as their users open them: by the real client, the folder unedited.

Needs the extra `clients`; what is not installed is skipped.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mico_jax.checkpoint import restore
from mico_jax.cli import main as cli
from mico_jax.config import ConfigError, TokenizerConfig
from mico_jax.data import wordpiece
from mico_jax.data.tokenizer import WordPieceTokenizer, make_tokenizer
from mico_jax.inference import omni_model
from mico_jax.inference.self_check import SelfCheck
from mico_jax.interop.exporting import (
  export,
  openclip_folder,
  timm_folder,
  transformers_text,
  transformers_tokenizer,
)
from mico_jax.models import build
from mico_jax.models.mico import Context
from mico_jax.models.presets import VISION
from mico_jax.testing.tiny_checkpoint import save_tiny, tiny_config

pytestmark = [
  pytest.mark.clients,
  pytest.mark.filterwarnings("ignore"),  # of the clients
]
LENGTH = 24
ODD = (
  "a red cube",
  "",
  "   ",
  "  two   spaces ",
  "Ünïcödé É ÀÉ ß ﬁ İ Σς",
  "e\u0301A\u0301 \u0301",
  "[SEP] [MASK] [CLS]x[PAD] [mask]",
  "<0x41> <0xFF> [UNK]",
  "a\u2581b\u2581 \u2581c",
  "日本語 テスト 한국어 क्षि",
  "🙂👩\u200d👧 ok",
  "a\tb\nc\r\nd\x00\x07e\ufffd\u200bf\xad",
  "it's “don't” can't . , !",
  "\uff11\uff12\uff13 123456 ½ ⅷ",
  "\u00a0a\u3000b\u2028c",
  "\u0378 \u1b4e \U0001f6dc \U000e0041",  # unassigned, or lately assigned
  "x" * 300,
  "word " * 200,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return save_tiny(tmp_path_factory.mktemp("w"))


def exported(capsys, source, out, target):
  """What the command line writes, and its report."""
  argv = ("export", "--to", target, "--checkpoint", source, "--out", out)
  status = cli.main([str(a) for a in (*argv, "--json")])
  text = capsys.readouterr()
  assert status == 0, text.err
  return json.loads(text.out)


def pieces() -> bytes:
  """A small vocabulary of WordPiece."""
  letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
  letters += [*"éßσς日本語½\uff11テ한क", "red", "cube", "word", "##ord", "do"]
  rest = [f"##{c}" for c in letters if c.isalnum() and len(c) == 1]
  return "\n".join([*wordpiece.SPECIAL, *letters, *rest]).encode() + b"\n"


TOKENIZERS = {
  "sentencepiece": lambda: make_tokenizer(TokenizerConfig(kind="omniworld")),
  "wordpiece": lambda: WordPieceTokenizer(pieces()),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_auto_tokenizer_gives_our_ids(kind, tmp_path):
  transformers = pytest.importorskip("transformers")
  ours = TOKENIZERS[kind]()
  files, notes = transformers_tokenizer.files(ours, LENGTH)
  assert not notes
  export.write_files(tmp_path, files)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  rng = np.random.default_rng(0)
  pool = [*"ab .'\"\t\u2581", *"éÀ\u0301Σİ日क🙂", "red", "cube ", "[SEP]"]
  pool += [chr(c) for c in rng.integers(0xA0, 0xD000, 400)]
  pool += [chr(c) for c in rng.integers(0xE000, 0x20000, 200)]
  drawn = ["".join(rng.choice(pool, 20)) for _ in range(100)]
  for text in (*ODD, *drawn):
    want = ours.encode(text, LENGTH).tolist()
    got = theirs(text, padding="max_length", truncation=True)
    assert got["input_ids"] == want, repr(text)
    if "[PAD]" not in text:  # It is no padding there.
      mask = [int(i != ours.info.pad) for i in want]
      assert got["attention_mask"] == mask, repr(text)
    if want[-1] == ours.info.pad:  # A character may be cut within its bytes.
      got = theirs.decode(want, skip_special_tokens=True)
      assert got == ours.decode(want)
  info = ours.info
  assert (info.pad, info.cls, info.sep, info.mask) == (
    theirs.pad_token_id,
    theirs.cls_token_id,
    theirs.sep_token_id,
    theirs.mask_token_id,
  )


def test_what_a_tokenizer_file_cannot_hold_is_said():
  """A model of SentencePiece with its own, longer rules."""
  import io

  import sentencepiece

  from mico_jax.data.tokenizer import SentencePieceTokenizer

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a red cube", "two balls"] * 9),
    model_writer=model,
    vocab_size=40,
    hard_vocab_limit=False,
    control_symbols=["[CLS]", "[SEP]", "[PAD]", "[MASK]"],
    minloglevel=3,
  )
  files, notes = transformers_tokenizer.files(
    SentencePieceTokenizer(model.getvalue()), LENGTH
  )
  assert list(files) == ["sentencepiece.model"]
  assert "rules of several characters" in notes[0]


def test_transformers_opens_the_text_tower(source, tmp_path, capsys):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  out = tmp_path / "out"
  report = exported(capsys, source, out, "transformers")
  assert set(report["compared"]) == {
    "ids",
    "hidden",
    "hidden/matching",
    "logits/caption",
  }
  assert max(report["compared"].values()) <= export.TOLERANCE
  model, about = transformers.AutoModel.from_pretrained(
    out, output_loading_info=True
  )
  assert {name.split(".")[0] for name in about["missing_keys"]} == {"pooler"}
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  texts = ["a red cube", "a", "two small balls and É", "word " * 200]
  given = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
  with torch.no_grad():
    hidden = model.eval()(**given).last_hidden_state[:, 0].numpy()
  assert np.abs(hidden[0] - hidden[2]).max() > 1e-3  # not one for all
  ours = omni_model.load(source)
  opened = export.open_source(source)
  head = np.asarray(opened.params["contrastive_head"]["t"]["kernel"])
  rows = hidden @ head
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  np.testing.assert_allclose(rows, ours.embed(text=texts)["text"], atol=1e-5)


def test_transformers_writes_captions_and_matches(source, tmp_path, capsys):
  """The decoder beside a context; in both directions by a mask per query."""
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  exported(capsys, source, tmp_path / "out", "transformers")
  folder = tmp_path / "out" / transformers_text.DECODER
  decoder, about = transformers.AutoModelForCausalLM.from_pretrained(
    folder, output_loading_info=True
  )
  assert not about["missing_keys"]
  opened = export.open_source(source)
  model, info = opened.model, opened.tokenizer.info
  ids = np.asarray([[info.cls, 70, 90, info.mask]], np.int32)
  values = np.random.default_rng(0).standard_normal((1, 6, 32)).astype("f4")

  def run(params, ids, values):
    context = model.project_context(params, Context(values))
    hidden = model.text(params, ids, attention="causal", context=context)
    fused = model.text(params, ids, context=context)
    return model.lm_logits(params, hidden), fused

  want = jax.jit(run)(dict(opened.params), ids, values)
  context = {"encoder_hidden_states": torch.from_numpy(values)}
  tensors = torch.from_numpy(ids).long()
  both = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
  with torch.no_grad():
    logits = decoder.eval()(tensors, **context).logits
    fused = decoder.bert(tensors, attention_mask=both, **context)
  np.testing.assert_allclose(logits.numpy(), want[0], atol=1e-5)
  got = fused.last_hidden_state.numpy()
  np.testing.assert_allclose(got, want[1], atol=1e-5)


TINY = {
  "image_size": 32,
  "patch_size": 8,
  "width": 32,
  "depth": 2,
  "num_heads": 2,
  "mlp_dim": 72,
}
STAGES = {
  "patch_size": 4,
  "depth": 4,
  "stage_depths": (2, 2),
  "stage_widths": (16, 32),
  "stage_heads": (1, 2),
  "window_size": 4,
  "mlp_dim": 128,
}
CONVNEXT = {
  "patch_size": 4,
  "num_heads": 16,
  "depth": 4,
  "mlp_dim": 128,
  "norm_eps": 1e-5,
  "stage_depths": (1, 1, 1, 1),
  "stage_widths": (8, 16, 24, 32),
}
ENCODERS = {
  "eva01_g14": {},
  "eva02_b16": {"rope_grid": 4},
  "eva02_bige14_plus": {},
  "clip_b16": {},
  "clip_b32": {"mlp": "gelu", "clip_embed_dim": 6},
  "vit_b16": {},
  "vit_s16": {"mlp": "gelu_tanh", "norm_eps": 1e-5, "layer_scale": 0.1},
  "vit_l16": {"pre_norm": True, "patch_bias": False, "qkv_bias": "none"},
  "swin_b": STAGES,
  "convnext_base": CONVNEXT,
}


def source_of(name):
  """Random weights around a small encoder of a kind, ready to be written."""
  vision = dataclasses.replace(VISION[name], **{**TINY, **ENCODERS[name]})
  base = tiny_config()
  config = dataclasses.replace(
    base, model=dataclasses.replace(base.model, vision=vision)
  )
  model = build(config.model)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda s: (0.2 * rng.standard_normal(s.shape)).astype(np.float32),
    model.abstract_params(),
  )
  params["temperature"] = np.asarray(0.07, np.float32)
  checkpoint = restore.Checkpoint(None, 1, config, {}, params, "params", {})
  tokenizer = make_tokenizer(config.data.tokenizer)
  return export.OpenedCheckpoint(checkpoint, params, tokenizer, model)


def images(x):
  """As PyTorch takes them."""
  return torch_module().from_numpy(x[:, 0].transpose(0, 3, 1, 2).copy())


def torch_module():
  return pytest.importorskip("torch")


@pytest.mark.parametrize("name", ENCODERS)
def test_timm_opens_the_encoder(name, tmp_path):
  timm = pytest.importorskip("timm")
  torch = torch_module()
  source = source_of(name)
  report = export.ExportReport("timm", {})
  timm_folder.write(source, tmp_path, report)
  model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
  assert model.num_classes == ENCODERS[name].get("clip_embed_dim", 0)
  model.reset_classifier(0)
  check = SelfCheck(source.config, source.tokenizer)
  x = timm_folder.frames(check)
  want = timm_folder.ours(check, source, x)["pooled"]
  with torch.no_grad():
    got = model(images(x)).numpy()
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert max(timm_folder.compare(source, tmp_path).values()) <= 1e-5
  picture = Image.fromarray(
    np.random.default_rng(2).integers(0, 255, (40, 57, 3), np.uint8)
  )
  told = timm.data.resolve_model_data_config(model)
  pixels = timm.data.create_transform(**told)(picture).numpy()
  row = check.preparer.prepare_one("image", np.asarray(picture))
  geometry = check.preparer.geometry("image")
  mode = check.preparer.mode("image")
  want = mode.to_pixels(row[None], geometry=geometry, xp=np)[0, 0]
  np.testing.assert_allclose(pixels.transpose(1, 2, 0), want, atol=1e-5)


def test_command_line_for_timm(source, tmp_path, capsys):
  timm = pytest.importorskip("timm")
  report = exported(capsys, source, tmp_path / "out", "timm")
  assert set(report["compared"]) == {"tokens", "pooled"}
  assert max(report["compared"].values()) <= export.TOLERANCE
  name = f"local-dir:{tmp_path / 'out'}"
  assert timm.create_model(name, pretrained=True).num_features == 32


def test_encoders_that_timm_lacks_are_refused(tmp_path):
  for change, said in (
    ({"norm_eps": 1e-12}, "no vision transformer with norm_eps=1e-12"),
    ({"norm_eps": 1e-5, "qkv_bias": "qv"}, "norm_eps=1e-05 beside EVA's"),
    ({"pre_norm": True}, "patch_bias=True beside pre_norm=True"),
  ):
    vision = dataclasses.replace(VISION["vit_b16"], **TINY, **change)
    with pytest.raises(ConfigError, match=said):
      timm_folder.model(vision)


@pytest.mark.parametrize("name", ["eva02_b16", "clip_b16", "vit_s16", "swin_b"])
def test_open_clip_holds_both_towers(name, tmp_path):
  pytest.importorskip("transformers")
  pytest.importorskip("open_clip")
  source = source_of(name)
  report = export.ExportReport("openclip", {})
  openclip_folder.write(source, tmp_path, report)
  about = json.loads((tmp_path / "open_clip_config.json").read_text())
  native = "timm_model_name" not in about["model_cfg"]["vision_cfg"]
  assert native == (name == "clip_b16")
  gaps = openclip_folder.compare(source, tmp_path)
  assert max(gaps.values()) <= export.TOLERANCE, gaps


def test_open_clip_opens_the_whole_model(source, tmp_path, capsys):
  pytest.importorskip("transformers")
  open_clip = pytest.importorskip("open_clip")
  torch = torch_module()
  out = tmp_path / "out"
  report = exported(capsys, source, out, "openclip")
  assert {"ids", "embed/image", "embed/text"} < set(report["compared"])
  assert max(report["compared"].values()) <= export.TOLERANCE
  model, _, transform = open_clip.create_model_and_transforms(
    f"local-dir:{out}"
  )
  tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
  picture = Image.fromarray(
    np.random.default_rng(2).integers(0, 255, (40, 57, 3), np.uint8)
  )
  texts = ["a red cube", "word " * 200]
  with torch.no_grad():
    image = model.eval().encode_image(transform(picture)[None], normalize=True)
    text = model.encode_text(tokenizer(texts), normalize=True)
  want = omni_model.load(source).embed(image=[picture])["image"]
  np.testing.assert_allclose(image.numpy(), want, atol=1e-5)
  want = omni_model.load(source).embed(text=texts)["text"]
  np.testing.assert_allclose(text.numpy(), want, atol=1e-5)


def test_a_model_without_a_text_head_is_no_open_clip(tmp_path):
  source = source_of("vit_b16")
  model = dataclasses.replace(source.config.model, heads=("v",))
  config = dataclasses.replace(source.config, model=model)
  source.checkpoint = dataclasses.replace(source.checkpoint, config=config)
  report = export.ExportReport("openclip", {})
  with pytest.raises(ConfigError, match=r"no head t .*openclip-vision"):
    openclip_folder.write(source, tmp_path, report)
