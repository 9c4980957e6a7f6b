"""Import of official folders, and every way it can go wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import types

import jax
import numpy as np
import pytest

import mico_jax
from mico_jax import config as config_lib
from mico_jax.checkpoint import manifest, restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli import main as cli
from mico_jax.config import ConfigError, TokenizerConfig
from mico_jax.interop import exporter, importer
from mico_jax.interop.exporting import export, official_folder
from mico_jax.interop.files import safetensors_writer
from mico_jax.interop.importer import REPORT, import_checkpoint
from mico_jax.interop.importing import convert, run_config, source_tensors
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.interop.names import mico
from mico_jax.models import build
from mico_jax.run.warm_start import warm_start
from mico_jax.testing import official_folder as tiny
from mico_jax.testing.tiny_checkpoint import resign


@pytest.fixture(scope="module")
def values():
  return tiny.tensors()


@pytest.fixture(scope="module")
def imported(tmp_path_factory, values):
  root = tmp_path_factory.mktemp("import")
  folder = tiny.write(root / "released", values)
  report = import_checkpoint("mico", folder, root / "out")
  return root / "out", report


def run(tmp_path, values, **options):
  """Imports without the self-check, which other tests have."""
  hps = {**tiny.HPS, **options.pop("hps", {})}
  folder = tiny.write(tmp_path / "released", values, hps=hps)
  return import_checkpoint(
    "mico", folder, tmp_path / "out", self_check=False, **options
  )


def refused(tmp_path, values, match, error=CheckpointError, **options):
  """The import fails with a message of one line and leaves nothing."""
  with pytest.raises(error, match=match) as caught:
    run(tmp_path, values, **options)
  assert "\n" not in str(caught.value)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["released"]


def test_loads_and_scores(imported):
  path, report = imported
  model = mico_jax.load(path)
  assert not model.notes
  assert "depth" in model.modalities
  rows = model.embed(text=["a b c"])["text"]
  assert rows.shape == (1, 5)
  image = np.full((20, 30, 3), 7, np.uint8)
  assert len(model.caption(image=[image])) == 1
  assert report.outputs
  assert json.loads((path / REPORT).read_text()) == report.as_dict()


def test_values_are_those_of_the_file(imported, values):
  path, _ = imported
  checkpoint = restore.open_checkpoint(path)
  single = {
    mico.rename(name): value.astype(np.float32)
    for name, value in values.items()
  }
  want = mico.from_official(single, checkpoint.config.model)
  jax.tree.map(np.testing.assert_array_equal, dict(checkpoint.params), want)
  info = checkpoint.manifest["items"]["params"]["vision/blocks/norm1/scale"]
  assert [one["name"] for one in info["original"]] == [
    f"evaclip_model.visual.blocks.{i}.norm1.weight" for i in range(2)
  ]


def test_gives_back_every_byte(imported, values):
  path, report = imported
  found = source_tensors.open_tensors(path)
  assert found.keys() == values.keys()
  assert {r["name"] for r in report.tensors} == values.keys()
  for name, value in values.items():
    got = found[name].load()
    assert got.dtype == value.dtype, name
    assert got.tobytes() == value.tobytes(), name


def test_resizes_as_the_original(tmp_path, values):
  report = run(
    tmp_path,
    values,
    hps={"vision_resolution": 24, "max_vision_sample_num": 3},
  )
  assert sorted(report.resized) == [
    "evaclip_model.visual.pos_embed",
    "video_frame_embedding",
  ]
  checkpoint = restore.open_checkpoint(tmp_path / "out")
  assert checkpoint.params["vision"]["pos_embed"].shape == (10, 8)
  table = values["video_frame_embedding"][0].astype(np.float32)
  np.testing.assert_array_equal(
    checkpoint.params["frame_embed"]["video"], table[[0, 1, 2]]
  )
  back = source_tensors.open_tensors(tmp_path / "out")
  assert back["video_frame_embedding"].shape == (1, 4, 6)


def test_highest_step_counts(tmp_path, values):
  tiny.write(tmp_path / "released", {"contra_temp": np.ones(())}, step=9)
  run(tmp_path, values)


def test_text_tower_is_kept_beside(tmp_path, values):
  tower = {"evaclip_model.text.ln_final.weight": np.ones(3, np.float16)}
  report = run(tmp_path, {**values, **tower})
  assert set(tower) <= set(report.extra)
  assert set(tower) <= set(source_tensors.open_tensors(tmp_path / "out"))
  folder, out = tmp_path / "released", tmp_path / "without"
  report = import_checkpoint(
    "mico", folder, out, self_check=False, keep_extra=False
  )
  assert report.extra == []
  assert not (out / "extra").exists()


def test_copy_with_other_values_wins(tmp_path, values):
  copy = "multimodal_encoder.cls.predictions.decoder.weight"
  changed = {**values, copy: values[copy] + np.float16(1)}
  run(tmp_path, changed)
  checkpoint = restore.open_checkpoint(tmp_path / "out")
  np.testing.assert_array_equal(
    checkpoint.params["text"]["embed"]["words"],
    changed[copy].astype(np.float32),
  )
  back = source_tensors.open_tensors(tmp_path / "out")
  assert back.keys() == changed.keys()
  for name, value in changed.items():
    assert back[name].load().tobytes() == value.tobytes(), name


def test_pretraining_starts_from_it(imported):
  path, _ = imported
  config = restore.open_checkpoint(path, check="off").config
  config = config_lib.override(
    config, ["model.vision.image_size=24", "model.normals_as='normal'"]
  )
  model = build(config.model).init(jax.random.key(1))
  params, report, _ = warm_start(model, path)
  assert report.resized == ("vision/pos_embed",)
  assert params["vision"]["pos_embed"].shape == (10, 8)


# ------------------------------------------------------------ onto a checkpoint
def test_imported_texts_bring_their_tokenizer(tmp_path, values):
  folder = tiny.write(tmp_path / "other", values)
  words = (folder / "vocab.txt").read_text().upper()
  (folder / "vocab.txt").write_text(words)
  base = tmp_path / "base"
  import_checkpoint("mico", folder, base, self_check=False)
  config = restore.open_checkpoint(base).config
  lengths = {**config.data.tokenizer.max_length, "default": 17}
  theirs = TokenizerConfig("omniworld", "elsewhere", max_length=lengths)
  data = dataclasses.replace(config.data, tokenizer=theirs)
  resign(base, dataclasses.replace(config, data=data))
  run(tmp_path, values, onto=base)
  found = restore.open_checkpoint(tmp_path / "out")
  assert found.tokenizer_files()["vocab.txt"].decode().split() == [*tiny.PIECES]
  tokenizer = found.config.data.tokenizer
  assert (tokenizer.kind, tokenizer.path) == ("wordpiece", "")
  assert tokenizer.max_length == lengths


def test_a_base_gives_merged_weights_and_nothing_fresh(tmp_path):
  model = build(tiny.MODEL)
  params = jax.tree.map(
    lambda like: np.ones(like.shape, np.float32), model.abstract_params()
  )
  path, fresh = "contrastive_head/v/kernel", "contrastive_head/a/kernel"
  size = params["contrastive_head"]["v"]["kernel"].shape
  deltas = {
    "a": np.full((size[0], 2), 0.5, np.float32),
    "b": np.full((2, size[1]), 0.25, np.float32),
  }
  config = config_lib.Config(model=tiny.MODEL)
  base = restore.Checkpoint(
    tmp_path,
    0,
    config,
    {"import": {"new": [fresh]}},
    {**params, "lora": {path: deltas}},
    "params",
    {},
  )
  leaves, taken, new = importer._complete(convert.Conversion(), model, base)
  scale = config.optimizer.lora_alpha / 2
  np.testing.assert_allclose(leaves[path].read(), 1 + scale * 2 * 0.5 * 0.25)
  assert new == [fresh]
  assert fresh not in taken
  assert path in taken
  assert not np.array_equal(leaves[fresh].read(), np.ones(size))


@pytest.mark.parametrize(
  ("error", "seen"),
  [
    (RuntimeError("shapes differ"), True),
    (KeyError("vision"), True),
    (MemoryError("no room"), False),
    (OSError("disk full"), False),
    (ImportError("libtorch.so"), False),
  ],
)
def test_what_keeps_from_comparing_is_no_defect(
  tmp_path, monkeypatch, error, seen
):
  def fail(*args, **options):
    raise error

  monkeypatch.setattr(export, "open_source", fail)
  monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())
  notes: list[str] = []
  if seen:
    with pytest.raises(type(error)):
      importer._compared(tmp_path, notes)
    return
  assert importer._compared(tmp_path, notes) == {}
  assert str(error) in notes[0]


# --------------------------------------------------------------------- exported
FRAMES = {"audio": 2, "depth": 1, "video": 0}


@pytest.mark.parametrize("kind", ["adaptive", "none"])
def test_settings_of_an_export_are_read_back(tmp_path, kind):
  model = tiny.MODEL
  if kind == "none":  # The file then has no frame table of videos.
    model = dataclasses.replace(model, frame_table=FRAMES)
  values = tiny.tensors(model=model)

  def config_of(hps):
    source = FORMATS["mico"].read(
      tiny.write(tmp_path / "released", values, hps=hps)
    )
    return run_config.run_config(source, None, ())

  hps = {**tiny.HPS, "frame_embedding_type": kind, "itm_ratio": 0.2}
  config = config_of(hps)
  settings = official_folder.hps(config)["model_cfg"]
  for key, value in hps.items():
    if not key.startswith("tiny_") and key != "max_omni_caption_len":
      assert settings[key] == value, key
  assert config_of(settings) == config


@pytest.mark.parametrize("how", ["fps", "dense"])
def test_frames_that_the_original_cannot_choose_are_refused(
  imported, tmp_path, how
):
  source = export.open_source(imported[0])
  inputs = source.config.data.inputs
  video = dataclasses.replace(inputs["video"], sampling=how, fps=2.0)
  data = dataclasses.replace(
    source.config.data, inputs={**inputs, "video": video}
  )
  checkpoint = dataclasses.replace(
    source.checkpoint, config=dataclasses.replace(source.config, data=data)
  )
  source = dataclasses.replace(source, checkpoint=checkpoint)
  with pytest.raises(ConfigError, match=f"video.sampling='{how}'.*--to torch"):
    exporter.run(source, "mico", tmp_path / "a")
  assert not (tmp_path / "a").exists()
  options = exporter.Options(compare=False)
  report = exporter.run(source, "torch", tmp_path / "b", options)
  assert not (tmp_path / "b" / "mico").exists()
  assert any("no folder for the official code" in n for n in report.notes)
  about = json.loads((tmp_path / "b" / "preprocessing.json").read_text())
  assert f'"{how}"' in json.dumps(about)


def test_torch_folder_without_what_the_import_dropped(
  tmp_path, values, monkeypatch
):
  run(tmp_path, values, hps={"vision_resolution": 24}, keep_extra=False)
  source = export.open_source(tmp_path / "out")
  options = exporter.Options(compare=False)
  report = exporter.run(source, "torch", tmp_path / "torch", options)
  assert any("--drop-extra" in note for note in report.notes)
  assert (tmp_path / "torch" / "model.safetensors").is_file()
  assert not (tmp_path / "torch" / "mico").exists()
  with pytest.raises(source_tensors.DroppedError):
    exporter.run(source, "mico", tmp_path / "mico", options)

  def altered(*args):
    raise CheckpointError("the checkpoint was altered")

  monkeypatch.setattr(official_folder, "write", altered)
  with pytest.raises(CheckpointError, match="altered"):
    exporter.run(source, "torch", tmp_path / "again", options)
  assert not (tmp_path / "again").exists()


# ------------------------------------------------------------------ bad input
def test_layers_that_no_tensor_fills(tmp_path, values):
  name = "multimodal_encoder.bert.encoder.layer.999999999.x"
  broken = {**values, name: np.zeros(1, np.float32)}
  refused(tmp_path, broken, "no MiCo: layer 999999999 of a file of")


def test_position_tables_that_are_no_square(tmp_path, values):
  name = "evaclip_model.visual.pos_embed"
  broken = {**values, name: values[name][:, :-1]}
  refused(tmp_path, broken, "position table of 4 rows")


def test_missing_and_unexpected_and_misshaped(tmp_path, values):
  broken = {k: v for k, v in values.items() if k != "contra_temp"}
  broken["surprise"] = np.zeros(2, np.float32)
  name = "itm_head.linear2.bias"
  broken[name] = np.zeros(3, np.float32)
  refused(
    tmp_path,
    broken,
    r"missing contra_temp; unexpected surprise; mis-shaped "
    r"itm_head.linear2.bias \[3\].*expected \[2\]",
  )


def test_nan(tmp_path, values):
  broken = dict(values)
  broken["contra_head_va.bias"] = np.full(5, np.nan, np.float32)
  refused(tmp_path, broken, "'contra_head_va.bias' holds 5 NaN")


def test_other_numbers(tmp_path, values):
  doubles = {**values, "contra_temp": np.array(0.1)}
  refused(tmp_path, doubles, "float32 cannot hold")
  exact = {**values, "contra_temp": np.array(0.5)}
  run(tmp_path, exact)
  back = source_tensors.open_tensors(tmp_path / "out")["contra_temp"]
  assert back.load().tobytes() == exact["contra_temp"].tobytes()


def test_whole_numbers_are_no_weights(tmp_path, values):
  broken = {**values, "contra_temp": np.array(1, np.int64)}
  refused(tmp_path, broken, "'contra_temp' holds int64")


def test_other_architecture(tmp_path, values):
  other = {"visual.proj": np.ones((2, 2), np.float32)}
  refused(tmp_path, other, "no MiCo")


@pytest.mark.parametrize(
  ("hps", "match"),
  [
    ({"contra_dim": 512}, "contra_dim 512, the weights have 5"),
    ({"vision_resolution": 20}, "no multiple of the weights' patch size 8"),
    ({"vision_resolution": "large"}, "expected a positive whole number"),
    ({"max_depth_sample_num": 2}, "the original never resizes it"),
    ({"tiny_vision": {"width": 16, "head_width": 4}}, "width 16.*have 8"),
    ({"tiny_vision": None}, "evaclip01_giant has width 1408.*have 8"),
    ({"tiny_vision": {"width": 8}}, "width=8 and head_width=None"),
    ({"tiny_vision": {"width": 8, "head_width": 3}}, "a divisor of the first"),
    ({"tiny_vision": {"width": 8, "head_width": 0}}, "head_width=0, expected"),
    ({"tiny_vision": [8, 4]}, "not the settings of a MiCo run"),
    (
      {"tiny_vision": {"width": 8, "head_width": 4, "drop_path_rate": "low"}},
      "drop_path_rate='low'",
    ),
    ({"tiny_bert": {"num_attention_heads": "two"}}, "positive whole number"),
    ({"vision_encoder_type": ["a"]}, "not the settings of a MiCo run"),
    ({"itm_ratio": "low"}, "itm_ratio='low', expected a number"),
    ({"itm_ratio": -0.1}, "itm_ratio=-0.1, expected a number"),
  ],
)
def test_config_against_weights(tmp_path, values, hps, match):
  refused(tmp_path, values, match, hps=hps)


def test_missing_pieces_of_the_folder(tmp_path, values):
  folder = tiny.write(tmp_path / "released", values, hps=None)
  out = tmp_path / "out"
  with pytest.raises(CheckpointError, match=r"hps\.json: no such file"):
    import_checkpoint("mico", folder, out)
  (folder / "log").mkdir()
  for text in ("{}", "[" * 100_000):
    (folder / "log" / "hps.json").write_text(text)
    with pytest.raises(CheckpointError, match="expected JSON with an object"):
      import_checkpoint("mico", folder, out)
  with pytest.raises(CheckpointError, match="no folder ckpt"):
    import_checkpoint("mico", tmp_path, out)
  with pytest.raises(CheckpointError, match="no such file or folder"):
    import_checkpoint("mico", tmp_path / "nowhere", out)
  assert not out.exists()


def test_vocabulary(tmp_path, values):
  folder = tiny.write(tmp_path / "released", values)
  (folder / "vocab.txt").unlink()
  with pytest.raises(ConfigError, match="bert-base-uncased"):
    import_checkpoint("mico", folder, tmp_path / "out")
  longer = tmp_path / "released" / "longer.txt"
  longer.write_text("\n".join([*tiny.PIECES, "zebra"]) + "\n")
  with pytest.raises(ConfigError, match=r"26 pieces.*embeddings for 25"):
    import_checkpoint("mico", folder, tmp_path / "out", vocabulary=longer)
  with pytest.raises(ConfigError, match="No such file"):
    import_checkpoint("mico", folder, tmp_path / "out", vocabulary="nope.txt")


def test_out_must_be_new(tmp_path, values):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "mine.txt").write_text("keep")
  with pytest.raises(ConfigError, match="not an empty folder"):
    run(tmp_path, values)
  assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
  folder = tmp_path / "released"
  with pytest.raises(ConfigError, match="not on this machine"):
    import_checkpoint("mico", folder, "gs://bucket/out")


def test_altered_tensors_are_found(tmp_path, values):
  tower = {"evaclip_model.text.ln_final.weight": np.ones(300, np.float16)}
  run(tmp_path, {**values, **tower})
  (file,) = (tmp_path / "out" / "extra").iterdir()
  data = file.read_bytes()
  one = np.float16(1).tobytes()
  file.write_bytes(data.replace(9 * one, 8 * one + b"\x01\x3c", 1))
  back = source_tensors.open_tensors(tmp_path / "out")
  with pytest.raises(CheckpointError, match=r"ln_final.weight' differs"):
    back[next(iter(tower))].load()


def test_a_resized_table_without_its_original_is_not_given_back(
  tmp_path, values
):
  run(tmp_path, values, hps={"vision_resolution": 24}, keep_extra=False)
  back = source_tensors.open_tensors(tmp_path / "out")
  with pytest.raises(CheckpointError, match="--drop-extra"):
    back["evaclip_model.visual.pos_embed"].load()


def test_altered_import_is_refused(tmp_path, values):
  run(tmp_path, values)
  extra = tmp_path / "out" / "config" / manifest.CONFIG
  extra.write_bytes(extra.read_bytes() + b" ")
  with pytest.raises(CheckpointError, match="content differs"):
    source_tensors.open_tensors(tmp_path / "out")


def test_hub_names(tmp_path):
  with pytest.raises(ConfigError, match="is not hf://owner/name"):
    import_checkpoint("mico", "hf://../../etc", tmp_path / "out")


def test_hub_repositories_are_fetched_without_code(
  tmp_path, values, monkeypatch
):
  folder = tiny.write(tmp_path / "snapshot", values)
  asked = {}

  def snapshot_download(name, **options):
    asked.update(options, name=name)
    if name == "no/body":
      raise OSError("404 Client Error:\nnot found")
    return str(folder)

  fake = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
  import_checkpoint(
    "mico", "hf://some/model@main", tmp_path / "out", self_check=False
  )
  assert (asked["name"], asked["revision"]) == ("some/model", "main")
  assert not any(p.endswith(".py") for p in asked["allow_patterns"])
  with pytest.raises(ConfigError, match=r"cannot be fetched .404 Client"):
    import_checkpoint("mico", "hf://no/body", tmp_path / "other")
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(ConfigError, match=r"huggingface_hub.*\[hub\]"):
    import_checkpoint("mico", "hf://some/model", tmp_path / "other")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, values, capsys):
  folder = tiny.write(tmp_path / "released", values, hps=None)
  argv = ["import", "--from", "mico", str(folder), "--out"]
  assert cli.main([*argv, str(tmp_path / "out")]) == 2
  found = capsys.readouterr()
  assert found.err.startswith("mico-jax: error: ")
  assert "hps.json: no such file" in found.err
  assert found.err.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_shards(tmp_path, values):
  from mico_jax.interop.files.opening import open_tensors

  names = sorted(values)
  halves = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
  for file, part in halves.items():
    safetensors_writer.write_arrays(
      tmp_path / file, {n: values[n] for n in part}
    )
  places = {n: f for f, part in halves.items() for n in part}
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": places}))
  assert open_tensors(index).keys() == values.keys()
  for bad, match in (
    ({**places, "x": "../secret.safetensors"}, "outside of its folder"),
    ({**places, "x": "a.safetensors"}, "'x' is not in"),
  ):
    index.write_text(json.dumps({"weight_map": bad}))
    with pytest.raises(CheckpointError, match=match):
      open_tensors(index)
  index.write_text("[]")
  with pytest.raises(CheckpointError, match="not an index"):
    open_tensors(index)
