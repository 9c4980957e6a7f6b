"""What lies beside foreign weights: configs, vocabularies, prefixes, sizes."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli.main import main
from mico_jax.inference import omni_model
from mico_jax.interop.files import safetensors_writer
from mico_jax.interop.importing import formats, run_config
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.testing import official_folder as tiny

EVA, CLIP, PLAIN = tiny.EVA, tiny.CLIP, tiny.PLAIN
# Form -> encoder, what our table's names have more than the file's, and what
# a tower held by open_clip has before its names.
FORMS = {
  "evaclip": (EVA, "vision_encoder.", ""),
  "clip": (CLIP, "vision_encoder.", ""),
  "timm": (PLAIN, "", "visual.trunk."),
}
HALF, IMAGENET = [0.5] * 3, [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
TABLE = {
  "evaclip": "visual.pos_embed",
  "clip": "visual.positional_embedding",
  "timm": "pos_embed",
}
KERNEL = {
  "evaclip": "visual.patch_embed.proj.weight",
  "clip": "visual.conv1.weight",
  "timm": "patch_embed.proj.weight",
}
OPEN_CLIP = "open_clip_config.json"


def tower(form):
  vision, prefix, _ = FORMS[form]
  model = dataclasses.replace(tiny.MODEL, vision=vision)
  return tiny.tower_tensors(form, model, prefix)


def bert():
  prefix = "multimodal_encoder."
  return tiny.tower_tensors("bert", tiny.MODEL, prefix)


def write(folder, tensors, **configs):
  """A folder of weights and JSON files, `config=...` as config.json."""
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_writer.write_arrays(folder / "model.safetensors", tensors)
  for name, value in configs.items():
    (folder / f"{name}.json").write_text(json.dumps(value))
  return folder


def read(form, folder):
  return FORMATS[formats.settle(form, folder)].read(folder)


def refused(form, folder, match):
  """In one line, which says it."""
  with pytest.raises(CheckpointError, match=match) as caught:
    read(form, folder)
  assert "\n" not in str(caught.value)


# ----------------------------------------------------------------- prefixes
@pytest.mark.parametrize(
  "prefix",
  ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.model."],
)
@pytest.mark.parametrize("form", [*FORMS, "bert"])
def test_prefixes_of_wrappers_go(tmp_path, form, prefix):
  tensors = bert() if form == "bert" else tower(form)
  plain = read(form, write(tmp_path / "plain", tensors))
  wrapped = {prefix + name: value for name, value in tensors.items()}
  found = read(form, write(tmp_path / "wrapped", wrapped))
  assert found.tensors.keys() == plain.tensors.keys()
  assert found.config.model == plain.config.model
  # Each still knows its name in the file, which an export gives back.
  assert {one.name for one in found.tensors.values()} == wrapped.keys()


def test_parts_that_were_compiled_alone(tmp_path):
  tensors = tower("evaclip")
  inner = {
    name.replace("visual.blocks.", "visual._orig_mod.blocks."): value
    for name, value in tensors.items()
  }
  assert inner.keys() != tensors.keys()
  found = read("evaclip", write(tmp_path / "a", inner))
  plain = read("evaclip", write(tmp_path / "b", tensors))
  assert found.tensors.keys() == plain.tensors.keys()


def test_a_released_folder_from_a_wrapper(tmp_path):
  values = tiny.tensors()
  plain = FORMATS["mico"].read(tiny.write(tmp_path / "a", values))
  values = {f"module.{name}": value for name, value in values.items()}
  found = FORMATS["mico"].read(tiny.write(tmp_path / "b", values))
  assert found.tensors.keys() == plain.tensors.keys()


def test_both_with_and_without_a_prefix(tmp_path):
  tensors = tower("timm")
  twice = {**tensors, "module.norm.weight": tensors["norm.weight"]}
  refused("timm", write(tmp_path, twice), "mean the same tensor")


# -------------------------------------------------------------------- sizes
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [[1024, 256], [256, 1024]])
def test_rectangular_images_are_refused(tmp_path, form, size):
  """A grid of 64 x 16 has as many rows as one of 32 x 32."""
  tensors, name = tower(form), TABLE[form]
  shape = (*tensors[name].shape[:-2], 1 + 64 * 16, 64)
  tensors[name] = np.zeros(shape, np.float32)
  told = {OPEN_CLIP[:-5]: {"model_cfg": {"vision_cfg": {"image_size": size}}}}
  refused(form, write(tmp_path / "a", tensors, **told), "is rectangular")
  if form == "timm":
    for about in (
      {"model_args": {"img_size": size}},
      {"pretrained_cfg": {"input_size": [3, *size]}},
    ):
      folder = write(tmp_path / "b", tensors, config=about)
      refused(form, folder, "is rectangular")
  # Where nothing tells the shape, what is taken is said aloud.
  found = read(form, write(tmp_path / "c", tensors))
  assert found.config.model.vision.image_size == 256
  assert "square of 32x32" in found.guesses["model.vision.image_size"]


@pytest.mark.parametrize("form", FORMS)
def test_sizes_that_contradict_the_table(tmp_path, form):
  about = {"model_cfg": {"vision_cfg": {"image_size": 24}}}
  folder = write(tmp_path, tower(form), **{OPEN_CLIP[:-5]: about})
  refused(form, folder, "contradict: image size 24, .* say 16")


@pytest.mark.parametrize("form", FORMS)
def test_rectangular_patches_are_refused(tmp_path, form):
  tensors, name = tower(form), KERNEL[form]
  tensors[name] = tensors[name][..., :4]
  refused(form, write(tmp_path, tensors), "rectangular|patches are square")


# -------------------------------------------------------------------- heads
@pytest.mark.parametrize("form", FORMS)
def test_a_guessed_number_of_heads_is_said(tmp_path, form):
  found = read(form, write(tmp_path / "a", tower(form)))
  assert "taken to be 1, 64 wide" in found.guesses["model.vision.num_heads"]
  if form == "timm":
    about = {"config": {"model_args": {"num_heads": 2}}}
  else:
    inner = {"image_size": 16, "head_width": 32}
    about = {OPEN_CLIP[:-5]: {"model_cfg": {"vision_cfg": inner}}}
  found = read(form, write(tmp_path / "b", tower(form), **about))
  assert found.config.model.vision.num_heads == 2
  assert "model.vision.num_heads" not in found.guesses


# ------------------------------------------------------------ preprocessing
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
  ("about", "mode"),
  [
    ({"mean": HALF, "std": HALF}, "crop_flip_smooth"),
    (
      {"mean": IMAGENET, "std": IMAGENET_STD, "interpolation": "bilinear"},
      "crop_flip_smooth_imagenet",
    ),
    ({"size": 16, "interpolation": "bicubic"}, "crop_flip_smooth_clip"),
    ({"size": [16, 16], "resize_mode": "squash"}, "plain_clip"),
    ({"mean": HALF, "std": HALF, "resize_mode": "squash"}, "plain"),
  ],
)
def test_preprocessing_of_open_clip(tmp_path, form, about, mode):
  """Mean, deviation, place and interpolation of `preprocess_cfg`."""
  _, _, before = FORMS[form]
  tensors = {before + name: value for name, value in tower(form).items()}
  inner = {"image_size": 16}
  told = {"model_cfg": {"vision_cfg": inner}, "preprocess_cfg": about}
  found = read(form, write(tmp_path, tensors, **{OPEN_CLIP[:-5]: told}))
  inputs = found.config.data.inputs
  assert {inputs[key].mode for key in ("image", "video")} == {mode}
  assert "data.inputs" not in found.guesses
  noted = [note for note in found.notes if "interpolation in training" in note]
  assert bool(noted) == (about.get("interpolation") != "bilinear")
  assert mode in run_config.MODALITIES["image"].modes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
  ("about", "message"),
  [
    ({"mean": [0.3] * 3, "std": HALF}, "no preprocessing with mean"),
    ({"size": 24}, "size 24, the encoder takes images of 16"),
    ({"size": [16, 24]}, "is rectangular"),
    ({"resize_mode": "longest"}, "resize_mode='longest'; known here"),
    ({"mean": 0.5}, "expected three numbers"),
    ([1], "expected a JSON object"),
  ],
)
def test_other_preprocessing_is_refused(tmp_path, form, about, message):
  told = {"preprocess_cfg": about}
  folder = write(tmp_path, tower(form), **{OPEN_CLIP[:-5]: told})
  refused(form, folder, message)


# ------------------------------------------------------------------ layouts
@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"model_type": "roberta"}, "layout of roberta .*cannot hold"),
    (
      {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]},
      "layout of XLMRobertaModel .model_type 'xlm-roberta'.*Take weights of",
    ),
    ({"model_type": "distilbert"}, "layout of distilbert"),
    ({"model_type": 3}, "layout of 3"),
    (
      {"model_type": "bert", "architectures": ["RobertaModel"]},
      "architectures RobertaModel, but model_type 'bert'",
    ),
    (
      {"model_type": "vit", "architectures": ["ViTModel"]},
      "layout of ViTModel .model_type 'vit'.; import it --from hf",
    ),
    ({"quantization_config": {"bits": 4}}, "quantised weights"),
    ({"position_embedding_type": "relative_key"}, "relative_key"),
  ],
)
def test_another_model_than_bert_is_named(tmp_path, settings, message):
  folder = write(tmp_path, bert(), config=settings)
  refused("bert", folder, message)


def test_a_roberta_without_a_config_is_seen_by_its_token_types(tmp_path):
  tensors = bert()
  name = next(n for n in tensors if "token_type_embeddings" in n)
  tensors[name] = tensors[name][:1]
  refused("bert", write(tmp_path, tensors), "is it a RoBERTa?")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("vision_model.encoder.layers.0.mlp.fc1.weight", "import it --from hf"),
    ("vit.embeddings.patch_embeddings.projection.weight", "--from hf"),
    ("embeddings.patch_embeddings.weight", "--from hf"),
    ("visual.trunk.blocks.0.norm1.weight", "open_clip: import it --from timm"),
    ("visual.transformer.resblocks.0.ln_1.bias", "--from clip"),
    ("visual.blocks.0.norm1.weight", "EVA-CLIP: import it --from evaclip"),
    ("visual.layer1.0.conv1.weight", "ResNet kind, which cannot be imported"),
    ("bert.embeddings.word_embeddings.weight", "a BERT: import it --from bert"),
    ("roberta.embeddings.word_embeddings.weight", "which cannot be imported"),
    (
      "model.layers.0.self_attn.q_proj.weight",
      "a language model, which cannot",
    ),
    ("multimodal_encoder.cls.bias", "an official MiCo: import it --from mico"),
    ("something.weight", "see --from for other kinds"),
  ],
)
def test_weights_of_another_layout_are_named(tmp_path, name, message):
  """With no config beside them, by the names of their tensors."""
  folder = write(tmp_path, {name: np.zeros((2, 2), np.float32)})
  for form in ("evaclip", "clip", "timm", "bert"):
    asked = re.search(r"--from (\w+)", message)
    if not (asked and asked[1] == form):
      expected = "ResNet kind" if "ResNet" in message else message
      refused(form, folder, expected)
  refused("hf", folder, "no config.json with a model_type")


def test_a_repository_of_two_layouts(tmp_path):
  """open_clip's file beside a config.json of transformers is open_clip's."""
  about = {"model_type": "clip", "architectures": ["CLIPModel"]}
  folder = write(tmp_path, tower("clip"), config=about)
  assert formats.settle("clip", folder) == "clip"
  assert formats.settle("clip", folder / "model.safetensors") == "clip"
  theirs = {"vision_model.post_layernorm.bias": np.zeros(2, np.float32)}
  assert formats.settle("clip", write(tmp_path, theirs)) == "hf"


# ------------------------------------------------------------- vocabularies
PIECES = [*tiny.PIECES[:5], "Paris", "paris", "caf", "##\u00e9", "cafe", "x"]


def bert_of(words):
  tensors = bert()
  for name, value in tensors.items():
    if value.shape[:1] == (len(tiny.PIECES),):
      tensors[name] = np.resize(value, (len(words), *value.shape[1:]))
  return tensors


def tokens_of(folder, text, vocabulary=None):
  source = read("bert", folder)
  config = run_config.run_config(source, None, (), vocabulary)
  made = run_config.tokenizer(source, config, vocabulary, None)
  run_config.check_vocabulary(config, made)
  return made.tokenize(text)


def as_json(pieces, **normaliser):
  return {
    "normalizer": {"type": "BertNormalizer", **normaliser},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "model": {
      "type": "WordPiece",
      "vocab": {piece: i for i, piece in enumerate(pieces)},
    },
  }


@pytest.mark.parametrize(
  ("settings", "want"),
  [
    ({"do_lower_case": False}, ["Paris", "caf", "##\u00e9"]),
    ({"do_lower_case": True}, ["paris", "cafe"]),
    (
      {"do_lower_case": True, "strip_accents": False},
      ["paris", "caf", "##\u00e9"],
    ),
    ({"do_lower_case": False, "strip_accents": True}, ["Paris", "cafe"]),
    (None, ["Paris", "caf", "##\u00e9"]),  # the vocabulary has capitals
  ],
)
@pytest.mark.parametrize("kind", ["text", "json", "given"])
def test_case_is_that_of_the_vocabulary(tmp_path, kind, settings, want):
  folder = write(
    tmp_path / "in", bert_of(PIECES), config={"num_attention_heads": 2}
  )
  lines, given = "\n".join(PIECES) + "\n", None
  if kind == "json":
    words = as_json(PIECES)
    (folder / "tokenizer.json").write_text(json.dumps(words))
  elif kind == "text":
    (folder / "vocab.txt").write_text(lines)
  else:
    given = tmp_path / "elsewhere.txt"
    given.write_text(lines)
  if settings is not None:
    text = json.dumps(settings)
    (folder / "tokenizer_config.json").write_text(text)
  assert tokens_of(folder, "Paris caf\u00e9", given) == want


@pytest.mark.parametrize("lower", [True, False])
def test_the_normaliser_of_tokenizer_json(tmp_path, lower):
  folder = write(tmp_path, bert_of(PIECES), config={"num_attention_heads": 2})
  words = as_json(PIECES, lowercase=lower, strip_accents=None)
  (folder / "tokenizer.json").write_text(json.dumps(words))
  want = ["paris", "cafe"] if lower else ["Paris", "caf", "##\u00e9"]
  assert tokens_of(folder, "Paris caf\u00e9") == want


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"model": {"type": "BPE", "vocab": {}}},
      "a BPE tokenizer; only WordPiece",
    ),
    ({"model": {"type": "Unigram", "vocab": []}}, "a Unigram tokenizer"),
    ({"normalizer": {"type": "NFC"}}, "normalizer 'NFC', expected"),
    ({"pre_tokenizer": None}, "pre_tokenizer 'none', expected"),
    ({"model": 3}, "not a tokenizer of the library"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 1}}}, "without a gap"),
  ],
)
def test_tokenizers_of_another_kind_are_named(tmp_path, change, message):
  folder = write(tmp_path, bert(), config={"num_attention_heads": 2})
  words = as_json(tiny.PIECES) | change
  (folder / "tokenizer.json").write_text(json.dumps(words))
  refused("bert", folder, message)


def test_a_tokenizer_of_another_class_is_named(tmp_path):
  folder = write(tmp_path, bert(), config={"num_attention_heads": 2})
  (folder / "vocab.txt").write_text("\n".join(tiny.PIECES) + "\n")
  about = {"tokenizer_class": "RobertaTokenizer"}
  (folder / "tokenizer_config.json").write_text(json.dumps(about))
  refused("bert", folder, "vocabulary of a RobertaTokenizer")
  about = {"do_lower_case": "no"}
  (folder / "tokenizer_config.json").write_text(json.dumps(about))
  refused("bert", folder, "do_lower_case='no', expected true or false")


SMALL = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 1}
SMALL |= {"mlp_dim": 8, "num_heads": 1}


def test_a_checkpoint_keeps_the_case_of_its_words(tmp_path, capsys):
  """By the command, and again from the checkpoint alone."""
  folder = write(
    tmp_path / "in", bert_of(PIECES), config={"num_attention_heads": 2}
  )
  (folder / "tokenizer.json").write_text(json.dumps(as_json(PIECES)))
  out = tmp_path / "out"
  sizes = [f"--config.model.vision.{k}={v}" for k, v in SMALL.items()]
  command = ["import", "--from", "bert", str(folder), "--out", str(out)]
  assert main([*command, "--self-check", "off", *sizes]) == 0
  model = omni_model.load(out)
  want = ["Paris", "caf", "##\u00e9"]
  assert model.tokenizer.tokenize("Paris caf\u00e9") == want
  assert model.tokenizer.encode("Paris", 4).tolist() == [2, 5, 3, 0]
  assert model.tokenizer.encode("paris", 4).tolist() == [2, 6, 3, 0]


def test_an_encoder_alone_needs_no_vocabulary(tmp_path, capsys):
  """A picture is embedded at once; the notes say what is fresh and guessed."""
  folder, out = write(tmp_path / "in", tower("timm")), tmp_path / "out"
  sizes = {"width": 8, "depth": 1, "num_heads": 1, "mlp_dim": 8}
  text = [f"--config.model.text.{k}={v}" for k, v in sizes.items()]
  command = ["import", "--from", "timm", str(folder), "--out", str(out)]
  assert main([*command, "--self-check", "off", *text]) == 0
  printed = capsys.readouterr()
  for guess in ("number of heads", "square of 2x2", "taken to be -1..1"):
    assert guess in printed.err
  assert "so it is fresh (random)" in printed.out
  picture = np.zeros((20, 20, 3), np.uint8)
  rows = omni_model.load(out).embed(image=[picture])["image"]
  assert np.isfinite(rows).all()
  # What the user says is no guess.
  given = [
    f"--config.model.vision.{k}" for k in ("num_heads=1", "image_size=16")
  ]
  command[-1] = str(tmp_path / "other")
  assert main([*command, "--self-check", "off", *text, *given]) == 0
  printed = capsys.readouterr().err
  assert "number of heads" not in printed
  assert "square of" not in printed
