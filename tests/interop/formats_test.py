"""Weights of single towers: read, put into a model, given back."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.checkpoint import restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import VisionConfig
from mico_jax.data.tokenizer import tokenizer_from_files
from mico_jax.interop import exporter, importer
from mico_jax.interop.exporting import export
from mico_jax.interop.files import safetensors_file, safetensors_writer
from mico_jax.interop.importer import import_checkpoint
from mico_jax.interop.importing import clip, run_config, source_tensors
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.interop.names import mico_vision, staged_vision
from mico_jax.models import build
from mico_jax.run.warm_start import warm_start
from mico_jax.testing import official_folder as tiny

EVA, CLIP, PLAIN = tiny.EVA, tiny.CLIP, tiny.PLAIN
# Form -> encoder, and our table's names -> those of the file.
FORMS = {
  "evaclip": (EVA, "vision_encoder."),
  "clip": (CLIP, "vision_encoder."),
  "timm": (PLAIN, ""),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A whole import, which gives the single towers their other half."""
  root = tmp_path_factory.mktemp("base")
  folder = tiny.write(root / "released", tiny.tensors())
  import_checkpoint("mico", folder, root / "out", self_check=False)
  return root / "out"


def run(tmp_path, form, tensors, base, **options):
  tmp_path.mkdir(exist_ok=True)
  safetensors_writer.write_arrays(tmp_path / "w.safetensors", tensors)
  return import_checkpoint(
    form, tmp_path, tmp_path / "out", onto=base, self_check=False, **options
  )


@pytest.mark.parametrize("form", FORMS)
def test_encoders(tmp_path, form, base):
  vision, prefix = FORMS[form]
  model = dataclasses.replace(tiny.MODEL, vision=vision)
  tensors = tiny.tower_tensors(form, model, prefix)
  extra = {"head.weight": np.ones((3, 64), np.float32)}
  if form != "timm":
    extra = {"token_embedding.weight": np.ones((3, 4), np.float32)}
  if form == "evaclip":
    extra = {"text.ln_final.weight": np.ones(3, np.float32)}
  tensors |= extra
  report = run(tmp_path, form, tensors, base)
  assert report.extra == list(extra)
  assert all(not path.startswith(("vision/", "text/")) for path in report.new)
  assert "text/embed/words" in report.taken
  # Projections of another width are fresh.
  assert "project/video/dense/kernel" in report.new
  found = source_tensors.open_tensors(tmp_path / "out")
  assert found.keys() == tensors.keys()
  for name, value in tensors.items():
    assert found[name].load().tobytes() == value.tobytes(), name
  checkpoint = restore.open_checkpoint(tmp_path / "out")
  got = checkpoint.config.model.vision
  assert got == dataclasses.replace(vision, mlp=got.mlp)
  image = jax.random.normal(jax.random.key(0), (1, 1, 16, 16, 3))
  model = build(checkpoint.config.model)
  params = jax.tree.map(jnp.asarray, dict(checkpoint.params))
  tokens = model.encode(params, "image", image)
  assert np.isfinite(tokens).all()


@pytest.mark.parametrize("cross", [True, False])
def test_bert(tmp_path, base, cross):
  model = dataclasses.replace(tiny.MODEL)
  tensors = tiny.tower_tensors("bert", model, "multimodal_encoder.")
  if not cross:
    tensors = {k: v for k, v in tensors.items() if "crossattention" not in k}
  old = {
    "LayerNorm.weight": "LayerNorm.gamma",
    "LayerNorm.bias": "LayerNorm.beta",
  }
  for new, name in old.items():
    tensors = {k.replace(new, name): v for k, v in tensors.items()}
  tensors["bert.pooler.dense.bias"] = np.ones(6, np.float32)
  (tmp_path / "vocab.txt").write_text("\n".join(tiny.PIECES) + "\n")
  settings = {"num_attention_heads": 2, "hidden_size": 6}
  (tmp_path / "config.json").write_text(json.dumps(settings))
  report = run(tmp_path, "bert", tensors, base)
  crossed = [p for p in report.taken if "cross_" in p]
  assert bool(crossed) != cross
  assert not any(path.startswith("text/") for path in report.new)
  found = source_tensors.open_tensors(tmp_path / "out")
  assert found.keys() == tensors.keys()
  for name, value in tensors.items():
    assert found[name].load().tobytes() == value.tobytes(), name
  for wrong, match in (
    ({"hidden_size": 768}, "hidden_size 768, the weights have 6"),
    ({"hidden_act": "relu"}, "hidden_act='relu'"),
  ):
    text = json.dumps({"num_attention_heads": 2, **wrong})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=match):
      import_checkpoint("bert", tmp_path, tmp_path / "other", onto=base)


def test_what_a_file_lacks_is_new_to_a_run(tmp_path, base):
  model = dataclasses.replace(tiny.MODEL)
  tensors = tiny.tower_tensors("bert", model, "multimodal_encoder.")
  tensors = {k: v for k, v in tensors.items() if "crossattention" not in k}
  (tmp_path / "vocab.txt").write_text("\n".join(tiny.PIECES) + "\n")
  (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
  safetensors_writer.write_arrays(tmp_path / "w.safetensors", tensors)
  small = ["image_size=16", "patch_size=8", "width=8", "depth=1", "mlp_dim=8"]
  report = import_checkpoint(
    "bert",
    tmp_path,
    tmp_path / "out",
    self_check=False,
    overrides=[f"model.vision.{text}" for text in [*small, "num_heads=1"]],
  )
  assert "text/blocks/cross_attn/query/kernel" in report.new
  config = restore.open_checkpoint(tmp_path / "out").config
  params = jax.jit(build(config.model).init)(jax.random.key(3))
  found, loaded, _ = warm_start(params, tmp_path / "out")
  assert set(loaded.new) == set(report.new)
  np.testing.assert_array_equal(
    found["text"]["blocks"]["cross_attn"]["query"]["kernel"],
    params["text"]["blocks"]["cross_attn"]["query"]["kernel"],
  )


def test_wrong_form_is_named(tmp_path, base):
  vision, prefix = FORMS["clip"]
  model = dataclasses.replace(tiny.MODEL, vision=vision)
  tensors = tiny.tower_tensors("clip", model, prefix)
  for form, match in (
    ("bert", "no BERT"),
    ("timm", "no vision transformer of timm"),
    ("mico", "no folder ckpt"),
  ):
    with pytest.raises(CheckpointError, match=match):
      run(tmp_path, form, tensors, base)
  (tmp_path / "w.safetensors").unlink()
  with pytest.raises(CheckpointError, match="no file of weights"):
    import_checkpoint("clip", tmp_path, tmp_path / "out")


def test_open_clip_says_its_activation(tmp_path, base):
  vision, prefix = FORMS["clip"]
  model = dataclasses.replace(tiny.MODEL, vision=vision)
  tensors = tiny.tower_tensors("clip", model, prefix)
  settings = {"model_cfg": {"vision_cfg": {"image_size": 16, "head_width": 32}}}
  path = tmp_path / "open_clip_config.json"
  path.write_text(json.dumps(settings))
  run(tmp_path, "clip", tensors, base)
  found = restore.open_checkpoint(tmp_path / "out").config.model.vision
  assert (found.mlp, found.num_heads) == ("gelu", 2)
  other = {"preprocess_cfg": {"mean": [0.3] * 3, "std": [0.5] * 3}}
  path.write_text(json.dumps({**settings, **other}))
  with pytest.raises(CheckpointError, match=r"preprocess_cfg: no .*mean \[0.3"):
    import_checkpoint("clip", tmp_path, tmp_path / "other", onto=base)


EVA02 = dataclasses.replace(
  EVA, mlp="swiglu", sub_norm=True, rope_grid=3, clip_embed_dim=0, num_heads=2
)
TRUNKS = {
  "eva01": dataclasses.replace(EVA, layer_scale=1e-5, clip_embed_dim=0),
  "eva02": EVA02,
  "post_norm": dataclasses.replace(EVA, norm="post", clip_embed_dim=0),
  "plain": dataclasses.replace(PLAIN, mlp="quick_gelu", num_heads=4),
}
STAGED = {
  "swin": VisionConfig(
    encoder="swin",
    image_size=32,
    patch_size=4,
    width=16,
    depth=4,
    num_heads=2,
    mlp_dim=32,
    norm_eps=1e-5,
    stage_depths=(2, 2),
    stage_widths=(8, 16),
    stage_heads=(1, 2),
    window_size=4,
  ),
  "convnext": VisionConfig(
    encoder="convnext",
    image_size=32,
    patch_size=4,
    width=16,
    depth=5,
    mlp_dim=64,
    stage_depths=(1, 1, 2, 1),
    stage_widths=(2, 4, 8, 16),
  ),
}


def tower_source(base, vision):
  """A checkpoint around an encoder of random weights."""
  checkpoint = restore.open_checkpoint(base)
  model = dataclasses.replace(checkpoint.config.model, vision=vision)
  config = dataclasses.replace(checkpoint.config, model=model)
  rng, built = np.random.default_rng(0), build(model)
  params = jax.tree.map(
    lambda like: rng.normal(size=like.shape).astype(np.float32),
    built.abstract_params(),
  )
  return export.OpenedCheckpoint(
    dataclasses.replace(checkpoint, config=config),
    params,
    tokenizer_from_files(checkpoint.tokenizer_files()),
    built,
  )


EXPORTS = ("timm", "openclip-vision")
WITHOUT = exporter.Options(compare=False)  # clients_test.py compares


@pytest.mark.parametrize(
  ("name", "form"),
  [
    *((name, form) for name in TRUNKS for form in EXPORTS),
    ("swin", "timm"),
    ("convnext", "timm"),
    ("convnext", "openclip-vision"),
  ],
)
def test_exported_towers_come_back(tmp_path, base, name, form):
  """What `export --to` these writes, `import --from timm` reads."""
  vision = {**TRUNKS, **STAGED}[name]
  source = tower_source(base, vision)
  notes = exporter.run(source, form, tmp_path / "tower", WITHOUT).notes
  assert not any("no names" in note for note in notes)
  report = import_checkpoint(
    "timm", tmp_path / "tower", tmp_path / "out", onto=base, self_check=False
  )
  assert not report.extra
  found = restore.open_checkpoint(tmp_path / "out")
  assert found.config.model.vision == vision
  jax.tree.map(
    np.testing.assert_array_equal,
    found.params["vision"],
    source.params["vision"],
  )
  written = safetensors_file.read(tmp_path / "tower" / "model.safetensors")
  again = source_tensors.open_tensors(tmp_path / "out")
  assert again.keys() == written.keys()
  for key, value in written.items():
    np.testing.assert_array_equal(again[key].load(), value)


def staged_tensors(name):
  """Random tensors of a Swin or a ConvNeXt in timm's names."""
  rng = np.random.default_rng(0)
  return {
    k: rng.normal(size=v.shape).astype(np.float32)
    for k, v in tiny.staged_zeros(STAGED[name], "timm").items()
  }


def read_staged(folder, tensors, settings=None):
  """The import of such a file, up to where parameters would be written."""
  folder.mkdir()
  safetensors_writer.write_arrays(folder / "w.safetensors", tensors)
  if settings is not None:
    (folder / "config.json").write_text(json.dumps(settings))
  source = FORMATS["timm"].read(folder)
  model = dataclasses.replace(tiny.MODEL, vision=source.config.model.vision)
  importer._plan(source, FORMATS["timm"].table, build(model))
  return source


def test_what_tells_the_frames_of_encoders_in_stages(tmp_path):
  """config.json, or masks of an old Swin; else the usual size, with a note."""
  swin, convnext = staged_tensors("swin"), staged_tensors("convnext")
  buffers = {
    name.removeprefix(staged_vision.SWIN_PREFIX): value
    for name, value in staged_vision.swin_buffers(STAGED["swin"]).items()
  }
  head = {"head.fc.weight": np.ones((3, 16), np.float32)}
  found = read_staged(tmp_path / "masks", {**swin, **buffers, **head})
  assert found.config.model.vision == STAGED["swin"]
  told = {"pretrained_cfg": {"input_size": [3, 64, 64]}}
  for name, tensors in (("swin", swin), ("convnext", {**convnext, **head})):
    source = read_staged(tmp_path / f"{name}_told", tensors, told)
    assert source.config.model.vision.image_size == 64
    assert not any("input_size" in note for note in source.notes)
  source = read_staged(tmp_path / "nothing", convnext)
  assert source.config.model.vision.image_size == 224
  assert "taken to be 224 pixels" in source.notes[0]
  mask = "layers.0.blocks.1.attn_mask"
  with pytest.raises(
    CheckpointError, match=f"{mask}: not the buffer of image_size=64"
  ):
    read_staged(tmp_path / "other", {**swin, **buffers}, told)


def test_swin_in_the_names_of_its_authors(tmp_path, base):
  """They count downsampling to the stage before it; buffers and head are in."""
  config = STAGED["swin"]
  tensors = staged_tensors("swin")
  theirs = {
    name.replace("layers.1.downsample.", "layers.0.downsample."): value
    for name, value in tensors.items()
  }
  assert theirs.keys() != tensors.keys()
  for name, value in staged_vision.swin_buffers(config).items():
    theirs[name.removeprefix(staged_vision.SWIN_PREFIX)] = value
  theirs["head.weight"] = np.ones((3, 16), np.float32)
  for name, written in (("timm", tensors), ("authors", theirs)):
    (tmp_path / name).mkdir()
    safetensors_writer.write_arrays(tmp_path / name / "w.safetensors", written)
    (tmp_path / name / "config.json").write_text(
      '{"pretrained_cfg": {"input_size": [3, 32, 32]}}'
    )
    report = import_checkpoint(
      "timm", tmp_path / name, tmp_path / f"{name}_out", onto=base
    )
  names = [record["name"] for record in report.tensors]
  assert "layers.0.downsample.norm.weight" in names
  ours, other = (
    restore.open_checkpoint(tmp_path / f"{name}_out")
    for name in ("timm", "authors")
  )
  assert other.config.model.vision == config
  jax.tree.map(
    np.testing.assert_array_equal,
    ours.params["vision"],
    other.params["vision"],
  )
  twice = {**theirs, "layers.1.downsample.norm.bias": np.ones(32, np.float32)}
  with pytest.raises(CheckpointError, match=r"unexpected layers\.1\.down"):
    read_staged(tmp_path / "twice", twice)


@pytest.mark.parametrize("name", STAGED)
def test_encoders_in_stages_are_read_strictly(tmp_path, name):
  tensors = staged_tensors(name)
  told = {"pretrained_cfg": {"input_size": [3, 32, 32]}}
  last = {"swin": "norm.bias", "convnext": "head.norm.bias"}[name]
  stage = {"swin": "layers.1", "convnext": "stages.1"}[name]
  norm = {"swin": "norm1", "convnext": "norm"}[name]
  # The last norm has two names in timm's ConvNeXt.
  twice = "unexpected norm_pre" if name == "swin" else "mean the same tensor"
  cases = (
    (f"missing {last}", {last: None}, told),
    (twice, {"norm_pre.weight": np.ones(2, "f4")}, told),
    ("unexpected other.weight", {"other.weight": np.ones(2, "f4")}, told),
    (f"mis-shaped {last} ", {last: np.ones(3, "f4")}, told),
    (f"no {name} of timm", {f"{stage}.blocks.0.{norm}.weight": None}, told),
    (f"no {name} of .*block", {f"{stage}.blocks.9999.x": np.ones(2)}, told),
    ("size in whole pixels", {}, {"model_args": {"img_size": "large"}}),
    ("is rectangular", {}, {"pretrained_cfg": {"input_size": [3, 64, 32]}}),
    ("size in whole pixels", {}, {"model_args": {"img_size": -1}}),
  )
  for i, (message, changes, settings) in enumerate(cases):
    altered = {**tensors, **changes}
    altered = {k: v for k, v in altered.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
      read_staged(tmp_path / str(i), altered, settings)


def test_mlps_of_convolutions(tmp_path):
  tensors = staged_tensors("convnext")
  told = {"pretrained_cfg": {"input_size": [3, 32, 32]}}
  altered = {
    k: v[:, :, None, None] if ".mlp.fc" in k and v.ndim == 2 else v
    for k, v in tensors.items()
  }
  source = read_staged(tmp_path / "conv", altered, told)
  assert source.config.model.vision == STAGED["convnext"]
  assert source.notes[0].startswith("1 x 1 convolutions")
  for name, value in tensors.items():
    np.testing.assert_array_equal(source.tensors[name].load(), value)


def test_a_convnext_without_response_norms_is_named(tmp_path):
  tensors = staged_tensors("convnext")
  first = {k: v for k, v in tensors.items() if ".grn." not in k}
  with pytest.raises(CheckpointError, match="response norm of V2"):
    read_staged(tmp_path / "v1", first)


@pytest.mark.parametrize("mlp", ["gelu", "quick_gelu"])
def test_clip_comes_back_with_its_activation_and_pixels(tmp_path, base, mlp):
  vision = dataclasses.replace(CLIP, mlp=mlp)
  source = tower_source(base, vision)
  form, folder = "openclip-vision", tmp_path / "tower"
  notes = exporter.run(source, form, folder, WITHOUT).notes
  assert not any("no names" in note for note in notes)
  about = json.loads((folder / clip.VISION_CONFIG).read_text())
  assert about["model_cfg"]["quick_gelu"] == (mlp == "quick_gelu")
  assert about["preprocess_cfg"]["mean"] == [0.485, 0.456, 0.406]
  import_checkpoint(
    "clip", tmp_path / "tower", tmp_path / "out", onto=base, self_check=False
  )
  found = restore.open_checkpoint(tmp_path / "out")
  assert found.config.model.vision == vision
  assert found.config.data.inputs["image"].mode == "mico_demo"
  jax.tree.map(
    np.testing.assert_array_equal,
    found.params["vision"],
    source.params["vision"],
  )


def test_clip_for_timm_is_complete_and_says_what_it_lacks(tmp_path, base):
  source = tower_source(base, CLIP)
  report = exporter.run(source, "timm", tmp_path / "tower", WITHOUT)
  assert "timm has no names for vision/logit_scale: not written" in report.notes
  tensors = safetensors_file.read(tmp_path / "tower" / "model.safetensors")
  np.testing.assert_array_equal(tensors["head.bias"], np.zeros(6, np.float32))


def test_parameters_of_no_file_are_named(tmp_path, base):
  """An import of texts gives back those alone."""
  tensors = tiny.tower_tensors("bert", tiny.MODEL, "multimodal_encoder.")
  (tmp_path / "vocab.txt").write_text("\n".join(tiny.PIECES) + "\n")
  (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
  run(tmp_path, "bert", tensors, base)
  source = export.open_source(tmp_path / "out")
  report = exporter.run(source, "safetensors", tmp_path / "weights")
  (note,) = [x for x in report.notes if x.startswith("not of that file")]
  assert "contrastive_head/a/kernel" in note
  assert "--to torch" in note
  whole = export.open_source(base)
  report = exporter.run(whole, "safetensors", tmp_path / "whole")
  assert report.notes == ["names and dtypes: those of the imported file"]


def test_an_encoder_keeps_the_pixels_it_was_trained_with(tmp_path, base):
  model = dataclasses.replace(tiny.MODEL, vision=PLAIN)
  tensors = tiny.tower_tensors("timm", model, "")
  checkpoint = restore.open_checkpoint(base)
  theirs = checkpoint.config.data.inputs
  for i, (settings, mode) in enumerate(
    (
      ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, "plain"),
      ({"preprocessing": {"mode": "crop_flip_smooth"}}, "crop_flip_smooth"),
      ({"preprocessing": {"mode": "a later one"}}, "plain"),
      ({"preprocessing": "crop_flip"}, "plain"),
    )
  ):
    folder = tmp_path / str(i)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    safetensors_writer.write_arrays(folder / "w.safetensors", tensors)
    source = FORMATS["timm"].read(folder)
    inputs = run_config.run_config(source, checkpoint, ()).data.inputs
    for key, ours in inputs.items():
      want = mode if key in ("image", "video") else theirs[key].mode
      assert (ours.mode, ours.frames) == (want, theirs[key].frames), key


def test_rotary_tables_are_compared(tmp_path, base):
  model = dataclasses.replace(tiny.MODEL, vision=EVA02)
  tensors = tiny.tower_tensors("evaclip", model, "vision_encoder.")
  tables = {
    name.removeprefix("vision_encoder."): value
    for name, value in mico_vision.rotary_buffers(EVA02).items()
  }
  report = run(tmp_path / "a", "evaclip", {**tensors, **tables}, base)
  assert set(report.extra) == set(tables)
  found = restore.open_checkpoint(tmp_path / "a" / "out")
  assert found.config.model.vision == EVA02
  name = "visual.blocks.1.attn.rope.freqs_sin"
  tables[name] = tables[name] + np.float32(0.1)
  with pytest.raises(CheckpointError, match="not the table of rotary"):
    run(tmp_path / "b", "evaclip", {**tensors, **tables}, base)


@pytest.mark.parametrize("form", FORMS)
def test_towers_of_no_size_are_refused(tmp_path, base, form):
  vision, prefix = FORMS[form]
  model = dataclasses.replace(tiny.MODEL, vision=vision)
  tensors = tiny.tower_tensors(form, model, prefix)
  block = next(n for n in tensors if "blocks.0." in n)
  many = {block.replace("blocks.0.", "blocks.999999999."): tensors[block]}
  with pytest.raises(CheckpointError, match="layer 999999999 of a file of"):
    run(tmp_path, form, {**tensors, **many}, base)
  table = next(n for n in tensors if "pos" in n)
  cut = tensors[table][..., :-1, :]
  with pytest.raises(CheckpointError, match=r"4 rows.*square grid"):
    run(tmp_path, form, {**tensors, table: cut}, base)


def test_heads_that_no_tensor_tells_are_noted(tmp_path, base):
  tensors = tiny.tower_tensors("bert", tiny.MODEL, "multimodal_encoder.")
  (tmp_path / "vocab.txt").write_text("\n".join(tiny.PIECES) + "\n")
  report = run(tmp_path, "bert", tensors, base)
  assert any("taken to be 1" in note for note in report.notes)
  for heads, match in (
    ("two", "expected a positive whole number"),
    (4, "does not divide the weights' hidden_size 6"),
  ):
    text = json.dumps({"num_attention_heads": heads})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=match):
      import_checkpoint("bert", tmp_path, tmp_path / "other", onto=base)


def test_arguments_of_another_form_are_named(tmp_path, base):
  tensors = tiny.tower_tensors(
    "timm", dataclasses.replace(tiny.MODEL, vision=PLAIN), ""
  )
  for settings, match in (
    ({"model": {"arguments": {"num_heads": "many"}}}, "of another form"),
    ({"model": {"arguments": {"act_layer": "swiglu"}}}, "without sub_norm"),
    (
      {"pretrained_cfg": {"mean": [9, 9, 9], "std": [1, 1, 1]}},
      "no preprocessing with mean",
    ),
    ({"pretrained_cfg": {"mean": [0.5] * 3}}, "mean without std"),
    ({"pretrained_cfg": {"mean": 0.5}}, "mean=0.5, expected three numbers"),
    ({"pretrained_cfg": {"mean": [0.5]}}, "expected three numbers"),
    ({"pretrained_cfg": {"mean": ["a", 1, 2]}}, "expected three numbers"),
    (
      {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}},
      "no preprocessing with mean",
    ),
    ({"pretrained_cfg": [1]}, "expected a JSON object"),
  ):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=match):
      run(tmp_path, "timm", tensors, base)
