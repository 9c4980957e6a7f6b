"""A config's mistakes are found before anything is trained."""

from __future__ import annotations

import jax
import pytest

from mico_jax import config as c
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import checks
from mico_jax.run.setup import resolve
from mico_jax.testing import tiny_checkpoint


def mistake(*overrides: str) -> str:
  """The message that a config with these overrides gives."""
  base = tiny_checkpoint.tiny_config()
  with pytest.raises(c.ConfigError) as caught:
    resolve(c.override(base, overrides)).check_training()
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  ("override", "message"),
  [
    (
      "train.log_every=0",
      "train.log_every=0: expected an integer of at least 1",
    ),
    ("data.inputs.video.frames=0", "data.inputs.video.frames=0"),
    ("tasks.av.batch_size=0", "tasks.av.batch_size=0"),
    ("train.patch_dropout=1.5", "at most 0.99"),
    ("evaluation.source=x", "no data source; known: test, train"),
    ("evaluation.probe_source=x", "no data source; known: test, train"),
    ("evaluation.suite=x", "known: omniworld, retrieval, classification"),
    ("evaluation.groups=('q',)", "no modality with letter 'q'"),
    ("evaluation.groups=('vd',)", "no contrastive head for 'vd'"),
    ("evaluation.item_pairs=('a-i',)", "write query and candidate letters"),
    ("evaluation.item_pairs=('a:i',)", "needs evaluation.label"),
    ("evaluation.classes='absent'", "cannot be read"),
    ("model.remat=x", "none, full"),
    ("model.attention=x", "auto, pallas_tpu, cudnn, xla, reference"),
    ("model.dtype=float8", 'one of "float32", "bfloat16"'),
    ("model.vision.num_heads=5", "must divide"),
    ("parallel.rules=x", "known: ddp"),
    ("parallel.mesh={'rows': -1}", "no mesh axis; known: data, fsdp"),
    ("parallel.mesh={'data': 1, 'fsdp': -1}", "does not use"),
    ("parallel.slices={'data': 3}", "must divide the"),
    ("parallel.offload=('params',)", 'one of "opt_state", "ema"'),
    ("tasks.av.batch_size=9", "must be a multiple of"),
    ("tasks.av.sources.x=1", "which data.sources lacks"),
    ("tasks.av.steps=0", "not all 0"),
  ],
)
def test_mistakes(override, message):
  several = override.startswith(("tasks.av.batch_size=9", "parallel"))
  if several and jax.device_count() == 1:
    pytest.skip("needs more than one device")
  assert message in mistake(override)


STAGED = (
  "model.vision.encoder=convnext",
  "model.vision.image_size=32",
  "model.vision.patch_size=4",
  "model.vision.width=16",
  "model.vision.depth=2",
  "model.vision.num_heads=16",
  "model.vision.mlp_dim=32",
  "model.vision.stage_depths=(1, 1)",
  "model.vision.stage_widths=(8, 16)",
)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("train.patch_dropout=0.5", "train.patch_dropout=0.5 encodes a part"),
    (
      "tasks.av.objectives={'masked_modelling': ('ti',)}",
      "tasks.av.objectives: masked_modelling encodes a part",
    ),
    ("model.vision.num_heads=2", "num_heads=2 says nothing to"),
    ("model.vision.encoder=nope", "known: vit, swin, convnext, unireplknet"),
    ("model.vision.stage_depths=(1,)", "must name a depth and a width"),
  ],
)
def test_mistakes_of_encoders_in_stages(override, message):
  assert message in mistake(*STAGED, override)


def test_omniworld_suite_needs_its_source(tmp_path):
  path = tmp_path / "m.jsonl"
  path.write_text('{"id": "0", "image": "0.png", "caption": "x"}\n')
  message = mistake(
    "evaluation.suite=omniworld",
    "data.sources.test.kind=manifest",
    f"data.sources.test.path={path}",
  )
  assert "needs an omniworld source" in message


@pytest.mark.multidevice
def test_mesh_must_divide_the_heads():
  base = tiny_checkpoint.tiny_config()
  overrides = (
    "parallel.mesh={'data': -1, 'tensor': 4}",
    "parallel.rules=fsdp_tp",
  )
  config = c.override(base, overrides)
  mesh = make_mesh(config.parallel)
  with pytest.raises(c.ConfigError, match="num_heads=2 must be a multiple"):
    checks.check_mesh(config, mesh)
  few = c.override(
    config,
    (
      *("model.text.encoder=causal", "model.text.kv_heads=1"),
      *("model.text.num_heads=4", "model.vision.num_heads=4"),
    ),
  )
  with pytest.raises(c.ConfigError, match="kv_heads=1 must be a multiple"):
    checks.check_mesh(few, mesh)


@pytest.mark.multidevice
def test_more_processes_than_rows(monkeypatch):
  config = c.override(tiny_checkpoint.tiny_config(), ("tasks.av.batch_size=4",))
  mesh = make_mesh(config.parallel)
  monkeypatch.setattr(checks.jax, "process_count", lambda: mesh.size)
  with pytest.raises(c.ConfigError, match="more than there are rows"):
    checks.check_mesh(config, mesh)
