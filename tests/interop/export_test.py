"""`mico-jax export`: files, reports, errors, and artefacts used elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import extras
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli import export as cli_export
from mico_jax.cli import main as cli
from mico_jax.config import ConfigError, GenerationConfig
from mico_jax.inference import self_check
from mico_jax.interop import exporter
from mico_jax.interop.exporting import (
  export,
  official_folder,
  stablehlo,
  transformers_text,
)
from mico_jax.interop.files import folders, safetensors_file, safetensors_writer
from mico_jax.interop.files.tensors import item, parse_size
from mico_jax.interop.importer import import_checkpoint
from mico_jax.interop.importing import mico_folder
from mico_jax.interop.names import timm_vision, torch_modules
from mico_jax.models import build
from mico_jax.models.presets import PRESETS, VISION
from mico_jax.testing import official_folder as tiny
from mico_jax.testing.tiny_checkpoint import save_tiny, tiny_config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return save_tiny(tmp_path_factory.mktemp("w"))


@pytest.fixture(scope="module")
def source(checkpoint):
  return export.open_source(checkpoint)


def run_cli(capsys, *argv: object) -> tuple[int, str, str]:
  status = cli.main([str(a) for a in argv])
  out = capsys.readouterr()
  return status, out.out, out.err


def test_command_lists_every_target():
  assert tuple(exporter.TARGETS) == cli_export.TARGETS


@pytest.mark.parity
def test_torch_folder_and_report(checkpoint, tmp_path, capsys):
  pytest.importorskip("torch")
  out = tmp_path / "out"
  argv = ("export", "--to", "torch", "--checkpoint", checkpoint)
  status, text, err = run_cli(capsys, *argv, "--out", out, "--json")
  assert status == 0
  report = json.loads(text)
  assert report == {
    "out": str(out),
    **json.loads((out / export.REPORT).read_text()),
  }
  assert max(report["compared"].values()) <= export.TOLERANCE
  wanted = {"embed/va/off_size", "matching_logits", "caption", "raw/matching"}
  assert wanted <= set(report["compared"])
  # The original has no normals: said by name, and only for its part.
  assert "contrastive_head/n/kernel" in err
  assert not (out / "mico").exists()
  for name in ("modeling_mico.py", "config.json", "preprocessing.json"):
    assert (out / name).is_file()
  status, _, err = run_cli(capsys, *argv, "--out", out)
  assert status == 2
  assert "not an empty folder" in err


@pytest.mark.parity
def test_torch_folder_runs_without_this_package(source, tmp_path):
  pytest.importorskip("torch")
  exporter.run(source, "torch", tmp_path / "o", exporter.Options(compare=False))
  code = """
import sys
away = "jax flax mico_jax sentencepiece jaxtyping av soundfile etils grain"
for name in away.split():
  sys.modules[name] = None
import torch
from modeling_mico import MiCo
from PIL import Image
model = MiCo.from_folder(".")
frames = torch.zeros(20, 30, 3, dtype=torch.uint8)
z = model.embed(image=[frames], audio=[torch.ones(9000)], text=["a red cube"])
assert {k: tuple(v.shape) for k, v in z.items()} == dict.fromkeys(z, (1, 32))
z = model.embed(groups="va", video=[frames], audio=[(torch.ones(9000), 8000)])
Image.new("RGBA", (20, 30)).save("clear.png")
white = torch.full((30, 20, 3), 255, dtype=torch.uint8)
both = model.embed(image=["clear.png", white])["image"]
assert torch.allclose(both[0], both[1], atol=1e-6)
from mico_inputs.items import Item
counts = Item(torch.full((9, 9), 1500, dtype=torch.int32), "millimetre")
both = model.embed(depth=[counts, torch.full((9, 9), 1.5)])["depth"]
assert torch.allclose(both[0], both[1], atol=1e-6)
p = model.match(text=["a cube"], video=[frames], depth=[torch.ones(9, 9)])
assert 0 <= float(p) <= 1
assert isinstance(model.caption(normal=[frames], num_beams=2)[0], str)
"""
  subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path / "o",
    env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    check=True,
    timeout=300,
  )


def test_an_older_step_and_what_is_damaged_are_said(checkpoint, tmp_path):
  steps = tmp_path / "checkpoints"
  for step in ("1", "2"):
    shutil.copytree(checkpoint, steps / step)
  config = steps / "2" / "config" / manifest_lib.CONFIG
  config.write_bytes(config.read_bytes() + b" ")
  with pytest.warns(UserWarning, match="skipped step 2"):
    source = export.open_source(tmp_path)
  assert source.checkpoint.folder.name == "1"
  with pytest.warns(UserWarning, match="config"):
    export.open_source(steps / "2", strict=False)


def test_damage_of_an_import_is_said_when_it_is_read(tmp_path):
  folder = tiny.write(tmp_path / "released", tiny.tensors())
  out = tmp_path / "out"
  import_checkpoint("mico", folder, out, self_check=False)
  path = out / "manifest" / manifest_lib.MANIFEST
  about = json.loads(path.read_text())
  about["items"]["params"]["temperature"]["sha256"] = "0" * 64
  data = json.dumps(about).encode()
  path.write_bytes(data)
  (out / "manifest" / manifest_lib.MANIFEST_HASH).write_text(
    manifest_lib.sha256(data)
  )
  with pytest.warns(UserWarning, match="content of temperature differs"):
    assert export.open_source(out, strict=False).params["text"]


def test_full_check_compares_the_outputs(checkpoint, monkeypatch):
  export.open_source(checkpoint, check="full")
  found = (["self-check: embed/image differs."], False)
  monkeypatch.setattr(self_check, "verify", lambda *_: found)
  export.open_source(checkpoint, check="fast")
  with pytest.raises(CheckpointError, match=r"embed/image.*--not-strict"):
    export.open_source(checkpoint, check="full")
  with pytest.warns(UserWarning, match="embed/image"):
    export.open_source(checkpoint, check="full", strict=False)
  monkeypatch.setattr(self_check, "verify", lambda *_: (found[0], True))
  with pytest.warns(UserWarning, match="embed/image"):
    export.open_source(checkpoint, check="full")


def test_comparing_what_cannot_run_is_refused(
  source, tmp_path, capsys, monkeypatch
):
  argv = ("export", "--checkpoint", "nowhere", "--out", tmp_path / "o")
  on = ("--compare", "on")
  status, _, err = run_cli(capsys, *argv, "--to", "mico", *on)
  assert status == 2
  assert "cannot be run here, only torch, timm, openclip, transformers," in err
  monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
  status, _, err = run_cli(capsys, *argv, "--to", "timm", *on)
  assert status == 2
  assert f"needs timm, torch: {extras.install('clients')}" in err
  monkeypatch.undo()
  size = ("--max-shard-size", "1MB")
  status, _, err = run_cli(capsys, *argv, "--to", "timm", *size)
  assert status == 2
  assert "timm reads one file of weights" in err
  on = exporter.Options(compare=True)

  def fail(*args):
    raise ImportError("libtorch.so is missing")

  target = dataclasses.replace(exporter.TARGETS["torch"], compare=fail)
  monkeypatch.setitem(exporter.TARGETS, "torch", target)
  monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
  with pytest.raises(ConfigError, match=r"cannot be loaded: libtorch\.so"):
    exporter.run(source, "torch", tmp_path / "o", on)
  report = exporter.run(source, "torch", tmp_path / "auto")
  assert any("libtorch.so is missing" in note for note in report.notes)
  monkeypatch.undo()
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ConfigError, match=r"needs torch.*\[torch\]"):
    exporter.run(source, "torch", tmp_path / "o", on)
  assert not (tmp_path / "o").exists()


def test_shards_hold_everything_once(source, tmp_path, from_torch):
  options = exporter.Options(max_shard_size=100_000)
  out = tmp_path / "o"
  report = exporter.run(source, "safetensors", out, options)
  index = json.loads((out / safetensors_writer.INDEX).read_text())
  tensors = {}
  for name in set(index["weight_map"].values()):
    found = safetensors_file.read(out / name)
    assert sum(v.nbytes for v in found.values()) <= 100_000
    tensors |= found
  assert set(tensors) == set(index["weight_map"])
  assert len(tensors) == len(report.tensors)
  back = from_torch(tensors, source.model)
  jax.tree.map(np.testing.assert_array_equal, back, dict(source.params))


def test_bfloat16_keeps_its_bits(tmp_path):
  value = jnp.arange(7, dtype=jnp.bfloat16) / jnp.bfloat16(3)
  items = [item("x", np.asarray(value))]
  safetensors_writer.write(tmp_path, items)
  got = safetensors_file.read(tmp_path / safetensors_writer.WEIGHTS)["x"]
  np.testing.assert_array_equal(
    got.view(np.uint16), np.asarray(value).view(np.uint16)
  )


@pytest.mark.parametrize("text", ["5 gigs", "", "-1", "0", "GB"])
def test_bad_sizes_are_named(text):
  with pytest.raises(ConfigError, match="is not like 5GB"):
    parse_size(text)
  assert parse_size("1.5MB") == 1_500_000


def test_nothing_is_left_behind(source, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise OSError("disk full")

  monkeypatch.setattr(safetensors_writer, "_write_file", fail)
  with pytest.raises(OSError, match="disk full"):
    exporter.run(source, "safetensors", tmp_path / "o")
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(ConfigError, match="known: torch, mico"):
    exporter.run(source, "onnx", tmp_path / "o")


def test_an_empty_folder_is_filled_where_it_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for path in (pathlib.Path("."), tmp_path):
    with folders.new_folder(path) as folder:
      (folder / "sub").mkdir()
      (folder / "sub" / "a.txt").write_text("a")
    assert pathlib.Path("sub/a.txt").read_text() == "a"
    assert [p.name for p in tmp_path.iterdir()] == ["sub"]
    with pytest.raises(ConfigError, match="not an empty folder"):
      folders.check_new(path)
    shutil.rmtree("sub")

  def fail():
    with folders.new_folder(pathlib.Path(".")) as folder:
      (folder / "a.txt").write_text("a")
      raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    fail()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["gs://bucket/x", "s3://b", "hf://a/b"])
def test_remote_folders_are_refused(tmp_path, monkeypatch, capsys, out):
  monkeypatch.chdir(tmp_path)
  argv = ("export", "--to", "timm", "--checkpoint", "nowhere", "--out", out)
  status, _, err = run_cli(capsys, *argv)
  assert status == 2
  assert "not on this machine; give a local folder" in err
  assert list(tmp_path.iterdir()) == []


DROPPED = ("PYTHONPATH", "XLA_FLAGS")  # of the environment
TINY = {
  "image_size": 32,
  "patch_size": 8,
  "width": 32,
  "depth": 2,
  "num_heads": 2,
  "mlp_dim": 64,
}


def encoder(name: str):
  vision = dataclasses.replace(VISION[name], **TINY)
  if vision.rope_grid:
    vision = dataclasses.replace(vision, rope_grid=4)
  config = tiny_config()
  return dataclasses.replace(config.model, vision=vision)


def random_params(model):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: (0.2 * rng.standard_normal(s.shape)).astype(np.float32),
    model.abstract_params(),
  )


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("clip_b16", "visual.transformer.resblocks.1.attn.in_proj_weight"),
    ("eva02_b16", "visual.trunk.blocks.1.mlp.fc1_g.weight"),
  ],
)
def test_openclip_names(name, wanted):
  config = encoder(name)
  params = random_params(build(config))
  items = timm_vision.vision_items(params, config.vision, "openclip")
  names = [one.name for one in items]
  assert wanted in names
  assert all(n.startswith("visual.") for n in names)


def test_what_timm_lacks_is_named(tmp_path, source):
  vision = dataclasses.replace(
    VISION["eva02_b16"], mlp="quick_gelu", pre_norm=True
  )
  with pytest.raises(ConfigError, match=r"mlp='quick_gelu'.*pre_norm"):
    timm_vision.timm_entries(vision)
  for vision, match in (
    (VISION["unireplknet_a"], "encoder='unireplknet'"),
    (
      dataclasses.replace(VISION["eva02_b16"], norm_eps=1e-5),
      "norm_eps=1e-05 beside EVA's options",
    ),
    (
      dataclasses.replace(VISION["swin_b"], norm_eps=1e-6),
      "norm_eps=1e-06 in a Swin",
    ),
    (
      dataclasses.replace(VISION["convnext_base"], mlp_dim=2048),
      "mlp_dim=2048 of width 1024",
    ),
    (
      dataclasses.replace(
        VISION["convnext_base"], patch_size=2, stage_depths=(3, 27)
      ),
      r"patch_size=2 in a ConvNeXt, stage_depths=\(3, 27\) in",
    ),
  ):
    with pytest.raises(ConfigError, match=match):
      list(timm_vision.vision_items({}, vision, "timm"))


def test_text_tower_for_transformers(source, tmp_path):
  out = tmp_path / "o"
  off = exporter.Options(compare=False)
  report = exporter.run(source, "transformers", out, off)
  cross = "bert.encoder.layer.1.crossattention.self.key.weight"
  count = 0
  for folder, decoder in (
    (out, False),
    (out / transformers_text.DECODER, True),
  ):
    tensors = safetensors_file.read(folder / safetensors_writer.WEIGHTS)
    assert (cross in tensors) == decoder
    assert "cls.predictions.transform.dense.weight" in tensors
    assert not any(name.startswith("multimodal") for name in tensors)
    config = json.loads((folder / "config.json").read_text())
    assert config["is_decoder"] == config["add_cross_attention"] == decoder
    words = tensors["bert.embeddings.word_embeddings.weight"]
    assert words.shape == (config["vocab_size"], config["hidden_size"])
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert {"model", "normalizer", "post_processor"} <= set(tokenizer)
    count += len(tensors)
  assert len(report.tensors) == count
  assert "outputs not compared: --compare off" in report.notes


def test_stablehlo_runs_with_jax_alone(source, tmp_path):
  """The files, in a process that cannot import this package."""
  out = tmp_path / "o"
  config = dataclasses.replace(
    source.config,
    model=dataclasses.replace(source.config.model, heads=(*"tva", "va")),
  )
  wanted = ("embed_video", "embed_va", "embed_text", "match_va")
  found = stablehlo.functions(config, source.tokenizer)
  out.mkdir()
  for name in wanted:
    lowered = stablehlo.lower(found[name], source.params)
    assert set(lowered.platforms) == {"cpu", "cuda", "tpu"}
    (out / f"{name}.stablehlo").write_bytes(lowered.serialize())
  flat = torch_modules.flatten(source.params)
  items = [item(k, np.asarray(v)) for k, v in flat.items()]
  safetensors_writer.write(out, items)
  rng = np.random.default_rng(0)
  inputs = {
    key: rng.integers(0, 200, (3, *spec.shape)).astype(spec.dtype)
    for key, spec in found["match_va"].inputs.items()
  }
  np.savez(out / "inputs.npz", **inputs)
  code = """
import sys
for name in ("mico_jax", "flax", "torch"):
  sys.modules[name] = None
import jax, numpy as np
from safetensors.numpy import load_file
weights, x = load_file("model.safetensors"), np.load("inputs.npz")
def call(name, *keys, rows=3):
  data = bytearray(open(name + ".stablehlo", "rb").read())
  f = jax.export.deserialize(data)
  return np.asarray(f.call(weights, *(x[k][:rows] for k in keys)))
np.savez("outputs.npz", video=call("embed_video", "video"),
  one=call("embed_video", "video", rows=1),
  va=call("embed_va", "video", "audio"), text=call("embed_text", "text"),
  match=call("match_va", "text", "video", "audio"))
"""
  subprocess.run(
    [sys.executable, "-c", f"import jax.export\n{code}"],
    cwd=out,
    env={k: v for k, v in os.environ.items() if k not in DROPPED},
    check=True,
    timeout=300,
  )
  got = np.load(out / "outputs.npz")
  flat = {k: jnp.asarray(v) for k, v in flat.items()}
  for name, result, keys in (
    ("embed_video", "video", ("video",)),
    ("embed_va", "va", ("video", "audio")),
    ("match_va", "match", ("text", "video", "audio")),
  ):
    arrays = [jnp.asarray(inputs[k]) for k in keys]
    want = jax.jit(found[name].call)(flat, *arrays)
    np.testing.assert_allclose(got[result], want, atol=1e-5)
  np.testing.assert_allclose(got["one"], got["video"][:1], atol=1e-6)
  np.testing.assert_allclose(
    np.linalg.norm(got["text"], axis=-1), 1.0, atol=1e-5
  )


def test_functions_compute_in_float32_and_name_their_weights(
  source, tmp_path, monkeypatch
):
  model = dataclasses.replace(source.config.model, dtype="bfloat16")
  config = dataclasses.replace(source.config, model=model)
  found = stablehlo.functions(config, source.tokenizer)["embed_text"]
  flat = torch_modules.flatten(source.params)
  ids = np.zeros((1, *found.inputs["text"].shape), np.int32)
  assert "bf16" not in str(jax.make_jaxpr(found.call)(flat, ids))
  monkeypatch.setattr(stablehlo, "functions", lambda *_: {})
  for size, name in (
    (100_000, safetensors_writer.INDEX),
    (10**9, safetensors_writer.WEIGHTS),
  ):
    out = tmp_path / str(size)
    out.mkdir()
    report = export.ExportReport("stablehlo", {})
    stablehlo.write(source, out, report, export.Options(size))
    about = json.loads((out / "functions.json").read_text())
    assert about["weights"] == name
    assert (out / name).is_file()


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("mico_g14", "evaclip01_giant"),
    ("mico_eva02_b16", "evaclip02_base"),
    ("mico_eva02_l14", "evaclip02_large"),
    ("mico_eva02_bige14_plus", "evaclip02_bige"),
    # Of the sizes of the original's, of another kind.
    ("mico_b16", ""),
    ("mico_l14", ""),
    ("mico_clip_b16", ""),
  ],
)
def test_names_of_the_originals_encoders(source, name, kind):
  config = dataclasses.replace(source.config, model=PRESETS[name])
  settings = official_folder.hps(config)["model_cfg"]
  assert settings["vision_encoder_type"] == (kind or "evaclip01_giant")
  assert ("tiny_vision" in settings) == (not kind)
  assert official_folder.encoder_type(PRESETS[name].vision) == kind


def test_how_the_original_code_would_write_is_said(source):
  said = lambda **given: official_folder.other_writing(
    GenerationConfig(**given)
  )
  assert said(num_beams=3, length_penalty=0.6) == []
  assert said(num_beams=1, length_penalty=1.0) == []
  (note,) = said(top_p=0.9)
  assert "generation.top_p=0.9: the official code draws no tokens" in note
  (note,) = said(num_beams=3, length_penalty=1.0)
  assert "length_penalty=1.0: the official demo writes with 0.6" in note


def test_settings_of_the_original_name_unusual_sizes(source):
  """Read back by the importer, which refuses settings that contradict."""
  settings = official_folder.hps(source.config)["model_cfg"]
  vision, text = source.config.model.vision, source.config.model.text
  assert settings["tiny_vision"]["head_width"] == 16
  assert settings["tiny_bert"]["num_attention_heads"] == text.num_heads
  mico_folder._check(source.config.model, settings)
  wrong = dataclasses.replace(
    source.config.model, vision=dataclasses.replace(vision, depth=3)
  )
  with pytest.raises(ValueError, match="contradict"):
    mico_folder._check(wrong, settings)
  giant = dataclasses.replace(
    source.config, model=dataclasses.replace(PRESETS["mico_g14"])
  )
  settings = official_folder.hps(giant)["model_cfg"]
  assert settings["vision_encoder_type"] == "evaclip01_giant"
  assert not {"tiny_vision", "tiny_bert"} & set(settings)
