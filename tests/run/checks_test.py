"""A config's mistakes are found before anything is trained."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import pytest

from mico_jax import config as c
from mico_jax import objectives
from mico_jax.evaluation import evaluators
from mico_jax.evaluation.evaluator import Measure
from mico_jax.parallel.mesh import make_mesh
from mico_jax.run import checks, setup
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
    ("tasks.av.objectives={'matching': ('tq',)}", "no modality with letter"),
    ("tasks.av.objectives={'matching': ('tvv',)}", "group 'tvv' needs one or"),
    ("tasks.av.texts={'tav': {'omni': 1.0}}", "'tav' is no group of its"),
    ("data.tokenizer.max_length.visoin=8", "'visoin', which is no kind of"),
    ("train.patch_dropout=1.5", "at most 0.99"),
    ("evaluation.source=x", "no data source; known: test, train"),
    ("evaluation.probe_source=x", "no data source; known: test, train"),
    ("evaluation.suite=x", "known: omniworld, retrieval, classification"),
    ("evaluation.groups=('q',)", "no modality with letter 'q'"),
    ("evaluation.groups=('vd',)", "no contrastive head for 'vd'"),
    ("evaluation.item_pairs=('a-i',)", "write query and candidate letters"),
    ("evaluation.item_pairs=('a:i',)", "needs evaluation.label"),
    ("evaluation.classes='absent'", "cannot be read"),
    ("train.keep_best=x", "'x' is unknown; known: loss, loss/contrastive/"),
    ("train.keep_best=retrieval/t->va/R@2", "retrieval/.../R@1"),
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


@pytest.mark.parametrize(
  ("metric", "lower"),
  [
    ("loss", True),
    ("loss/contrastive/tva", True),
    ("token_accuracy/captioning/ti", False),
    ("retrieval/t->va/R@1", False),
    ("caption/va/CIDEr", False),
    ("retrieval/t->va/median rank", True),
    ("perplexity/captioning/ti", True),
  ],
)
def test_each_metric_declares_its_better_direction(monkeypatch, metric, lower):
  class Ranks(evaluators.TextRetrieval):
    measures: ClassVar = {"median rank": Measure(unit="", lower_is_better=True)}

  class Perplexing(objectives.OBJECTIVES["captioning"]):
    curves = ("token_accuracy", "perplexity")
    lower_is_better = frozenset({"perplexity"})

  monkeypatch.setitem(evaluators.EVALUATORS, "ranks", Ranks)
  monkeypatch.setitem(objectives.OBJECTIVES, "captioning", Perplexing)
  assert checks.lower_is_better(metric) == lower


@dataclasses.dataclass(frozen=True)
class HidingOptions:
  weight: float = 1.0
  share: float = 0.5


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_causal_tower_has_no_use_for_masking_options(monkeypatch, share):
  @dataclasses.dataclass(frozen=True)
  class Hiding(objectives.OBJECTIVES["captioning"]):
    config: Any = HidingOptions()
    name = "hiding"
    masking_options = ("share",)

  monkeypatch.setitem(objectives.OBJECTIVES, "hiding", Hiding)
  config = c.override(
    tiny_checkpoint.tiny_config(),
    (
      *("model.text.encoder=causal", "model.text.kv_heads=1"),
      f"objectives.options={{'hiding': {{'share': {share}}}}}",
    ),
  )
  if share == 0.5:
    setup.check_tasks(config)
    return
  with pytest.raises(c.ConfigError, match=r"hiding.share=0.25 has no effect"):
    setup.check_tasks(config)
