"""Folders that transformers writes, imported by the command of users."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.checkpoint import restore
from mico_jax.cli.main import main
from mico_jax.interop.files import safetensors_file
from mico_jax.interop.importing import source_tensors
from mico_jax.models import build

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LIMIT = 1e-5
SIZE = 32
VIT = {
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 48,
  "image_size": SIZE,
  "patch_size": 8,
}
DINO = {k: v for k, v in VIT.items() if k != "intermediate_size"}
TEXT = {
  **{k: v for k, v in VIT.items() if "size" not in k},
  "hidden_size": 32,
  "intermediate_size": 48,
  "vocab_size": 40,
}
# Name -> class of transformers and arguments of its config; two of a family
# differ in what no tensor tells.
MODELS = {
  "clip": ("CLIPVision", VIT | {"hidden_act": "gelu"}),
  "clip with texts": (
    "CLIP",
    {"vision_config": VIT, "text_config": TEXT, "projection_dim": 24},
  ),
  "siglip": ("SiglipVision", VIT | {"layer_norm_eps": 1e-3}),
  "siglip with texts": (
    "Siglip",
    {"vision_config": VIT, "text_config": TEXT},
  ),
  "dinov2": ("Dinov2", DINO | {"layer_norm_eps": 1e-3, "mlp_ratio": 2}),
  "dinov2 registers": (
    "Dinov2WithRegisters",
    DINO | {"num_register_tokens": 3},
  ),
  "vit": ("ViT", VIT | {"layer_norm_eps": 1e-3}),
  "vit without biases": ("ViT", VIT | {"qkv_bias": False}),
  "convnextv2": (
    "ConvNextV2",
    {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64},
  ),
  "swin": (
    "Swin",
    {
      "embed_dim": 16,
      "depths": [2, 2],
      "num_heads": [2, 4],
      "window_size": 4,
      "image_size": SIZE,
      "patch_size": 4,
    },
  ),
}
SMALL_TEXT = [
  "--config.model.text.width=16",
  "--config.model.text.depth=1",
  "--config.model.text.num_heads=2",
  "--config.model.text.mlp_dim=16",
]


def make(name):
  """A model of transformers; no parameter is zero or one, as at the start."""
  kind, settings = MODELS[name]
  config = getattr(transformers, f"{kind}Config")(**settings)
  torch.manual_seed(0)
  model = getattr(transformers, f"{kind}Model")(config).eval()
  with torch.no_grad():
    for value in model.parameters():
      value.add_(0.1 * torch.randn(value.shape))
  return model


def run(*arguments):
  return main(["import", *map(str, arguments), "--self-check", "off"])


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_transformers(name, tmp_path, capsys):
  model = make(name)
  model.save_pretrained(tmp_path / "theirs")
  out = tmp_path / "out"
  code = run("--from", "hf", tmp_path / "theirs", "--out", out, *SMALL_TEXT)
  assert code == 0, capsys.readouterr().err
  assert "no preprocessor_config.json" in capsys.readouterr().err
  found = restore.open_checkpoint(out)
  params = jax.tree.map(jnp.asarray, dict(found.params))
  ours = build(found.config.model)
  size = found.config.model.vision.image_size
  pixels = np.random.default_rng(1).normal(size=(2, size, size, 3))
  pixels = pixels.astype(np.float32)
  with jax.default_matmul_precision("highest"):
    tokens, hidden = ours.encode(
      params, "image", jnp.asarray(pixels)[:, None], return_hidden=True
    )
    pooled = ours.pool(params, "image", tokens)
  tower = model.vision_model if name.endswith("with texts") else model
  with torch.no_grad():
    theirs = tower(
      torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True
    )
  compare(name, model, theirs, tokens[:, 0], hidden, pooled)
  # Every byte of the folder can be given back.
  state = safetensors_file.read(tmp_path / "theirs" / "model.safetensors")
  again = source_tensors.open_tensors(out)
  assert again.keys() == state.keys()
  for key, value in state.items():
    np.testing.assert_array_equal(again[key].load(), value, err_msg=key)


def compare(name, model, theirs, tokens, hidden, pooled):
  """Blocks, tokens and pooled outputs, as each family has them."""
  family = name.split()[0]
  close = lambda got, want: np.testing.assert_allclose(
    np.asarray(got), want.numpy(), atol=LIMIT, rtol=LIMIT
  )
  last = theirs.last_hidden_state
  if family == "convnextv2":
    # Theirs ends in a norm of the mean; ours has that norm on each token.
    close(hidden[-1][:, 0], last.flatten(2).transpose(1, 2))
    mean = np.asarray(hidden[-1][:, 0]).mean(1)
    norm = model.layernorm
    with torch.no_grad():
      close(norm(torch.tensor(mean)), theirs.pooler_output)
    return
  if family == "swin":
    close(tokens, last)
    close(pooled, theirs.pooler_output)
    return
  kept = [0, *range(1 + 3, last.shape[1])] if "registers" in name else None
  cut = lambda x: x if kept is None else x[:, kept]
  for mine, other in zip(hidden, theirs.hidden_states[1:], strict=True):
    close(mine[:, 0], cut(other))
  if family == "siglip":
    close(tokens[:, 0], theirs.pooler_output)
    close(tokens[:, 1:], last)
    close(pooled, theirs.pooler_output)
  elif family == "clip":  # theirs has the last norm on the class token alone
    close(pooled, theirs.pooler_output)
  else:
    close(tokens, cut(last))
    close(pooled, cut(last)[:, 0])


def test_with_a_classifier_and_the_prefix_of_its_class(tmp_path):
  """What users fine-tune: `vit.` before each name, and a classifier."""
  config = transformers.ViTConfig(**VIT, num_labels=3)
  model = transformers.ViTForImageClassification(config)
  model.save_pretrained(tmp_path / "theirs")
  out = tmp_path / "out"
  assert not run("--from", "hf", tmp_path / "theirs", "--out", out, *SMALL_TEXT)
  report = json.loads((out / "import_report.json").read_text())
  assert report["extra"] == ["classifier.bias", "classifier.weight"]
  assert not [path for path in report["new"] if path.startswith("vision/")]


@pytest.mark.parametrize(
  ("kind", "settings", "message"),
  [
    ("Dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn=True"),
    ("Dinov2", {"image_size": [32, 64]}, "image_size=.32, 64. is rectangular"),
    ("ViT", {"patch_size": [8, 4]}, "patch_size=.8, 4. is rectangular"),
    ("Swin", {"layer_norm_eps": 1e-3}, "layer_norm_eps=0.001"),
    ("Swin", {"use_absolute_embeddings": True}, "use_absolute_embeddings=True"),
    ("Deit", {}, "layout of DeiTModel .model_type 'deit'"),
    ("ConvNext", {"depths": [1, 1]}, "layout of ConvNextModel"),
  ],
)
def test_what_the_encoders_here_do_not_compute(
  kind, settings, message, tmp_path, capsys
):
  sizes = VIT if kind in ("ViT", "Deit") else DINO if kind == "Dinov2" else {}
  if kind == "Swin":
    sizes = MODELS["swin"][1]
  if kind == "ConvNext":
    sizes = {"hidden_sizes": [8, 16], "num_stages": 2, "image_size": SIZE}
  kind = "DeiT" if kind == "Deit" else kind
  config = getattr(transformers, f"{kind}Config")(**sizes | settings)
  getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / "in")
  capsys.readouterr()  # of transformers
  assert run("--from", "hf", tmp_path / "in", "--out", tmp_path / "out") == 2
  error = capsys.readouterr().err
  assert re.search(message, error), error
  assert error.count("\n") == 1, error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cased", [True, False])
def test_texts_of_a_bert(cased, tmp_path, capsys):
  """Its folder holds a tokenizer.json and no vocab.txt; ids and outputs."""
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  pieces += ["Paris", "paris", "cafe", "caf", "##\u00e9", "in", ",", "\u6771"]
  tokenizer = transformers.BertTokenizer(
    vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=cased < 1
  )
  config = transformers.BertConfig(
    vocab_size=len(pieces),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    max_position_embeddings=40,
    attn_implementation="eager",
  )
  torch.manual_seed(0)
  model = transformers.BertModel(config).eval()
  model.save_pretrained(tmp_path / "theirs")
  tokenizer.save_pretrained(tmp_path / "theirs")
  assert (tmp_path / "theirs" / "tokenizer.json").is_file()
  assert not (tmp_path / "theirs" / "vocab.txt").exists()
  out, small = tmp_path / "out", "--config.model.vision"
  sizes = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 1}
  sizes |= {"mlp_dim": 8, "num_heads": 1}
  given = [f"{small}.{key}={value}" for key, value in sizes.items()]
  code = run("--from", "bert", tmp_path / "theirs", "--out", out, *given)
  assert code == 0, capsys.readouterr().err
  # Its 40 positions are fewer than the usual 70 tokens of a long text.
  printed = capsys.readouterr()
  assert "max_length of omni, subtitle is 40" in printed.out + printed.err
  from mico_jax.inference import omni_model

  ours = omni_model.load(out)
  assert max(ours.config.data.tokenizer.max_length.values()) == 40
  assert np.isfinite(ours.embed(text="Paris")["text"]).all()
  for text in ("Paris in caf\u00e9, \u6771", "PARIS [MASK] in", "paris"):
    want = tokenizer(text)["input_ids"]
    ids = ours.tokenizer.encode(text, 40)
    assert ids[: len(want)].tolist() == want, text
    assert (ids[len(want) :] == ours.tokenizer.info.pad).all()
    with torch.no_grad():
      theirs = model(torch.tensor([want])).last_hidden_state
    ids = jnp.asarray(want)[None]
    params = jax.tree.map(jnp.asarray, dict(ours.params))
    got = ours.model.text(params, ids, mask=jnp.ones_like(ids, bool))
    np.testing.assert_allclose(
      np.asarray(got), theirs.numpy(), atol=LIMIT, rtol=LIMIT
    )


def test_a_roberta_is_named(tmp_path, capsys):
  config = transformers.RobertaConfig(
    vocab_size=20,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=20,
    type_vocab_size=1,  # as in the published ones
  )
  for kind in ("RobertaModel", "RobertaForMaskedLM"):
    folder = tmp_path / kind
    getattr(transformers, kind)(config).save_pretrained(folder)
    assert run("--from", "bert", folder, "--out", tmp_path / "out") == 2
    assert f"the layout of {kind} (model_type 'roberta')" in (
      capsys.readouterr().err
    )
    (folder / "config.json").unlink()
    assert run("--from", "bert", folder, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "is it a RoBERTa?" in error or "another model than BERT" in error
