"""The fine-tuning configs hold the published table and can be run."""

from __future__ import annotations

import pytest

from mico_jax import config as config_lib
from mico_jax.run import setup
from mico_jax.testing.tiny_data import write_manifest
from mico_jax.train import finetuning

SETS = {
  "retrieval": ("coco", "clotho", "msrvtt", "didemo"),
  "caption": ("coco", "audiocaps", "msrvtt"),
  "qa": ("msrvtt_qa", "vqav2", "msvd_qa"),
  "classify": ("image", "audio_large", "video"),
}
CASES = [(kind, name) for kind, names in SETS.items() for name in names]


def load(kind: str, name: str, manifest: object = "m.jsonl"):
  arg = f"{name},{manifest},omniworld,mico_tiny"
  return config_lib.load(f"finetune/{kind}", arg=arg)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_it_resolves(kind, name, tmp_path):
  manifest = write_manifest(
    tmp_path / "set", 8, split=["train"] * 4 + ["test"] * 4, label=[0, 1] * 4
  )
  config = setup.resolve(load(kind, name, manifest)).config
  assert config.name == name
  assert config.tasks[name].batch_size in (64, 128, 256, 512, 4096)
  assert config.data.sources["train"].count == 4


def test_rows_of_the_table():
  msrvtt = load("retrieval", "msrvtt")
  assert msrvtt.optimizer.learning_rate == 2e-5
  assert msrvtt.train.steps == round(3.6 * 9000 / 64)
  assert msrvtt.data.inputs["video"].frames == 8
  assert msrvtt.tasks["msrvtt"].objectives["matching"] == ("tvas",)
  assert load("caption", "coco").model.vision.image_size == 480
  large = config_lib.load("finetune/retrieval", arg="coco")
  assert large.model.vision.width == 1408
  assert large.model.vision.image_size == 378  # 384 is no multiple of 14
  assert load("classify", "image").optimizer.weight_decay == 1e-8


def test_unknown_sets_are_named():
  with pytest.raises(config_lib.ConfigError, match=r"no set 'x'.*known: coco"):
    load("retrieval", "x")
  with pytest.raises(config_lib.ConfigError, match="no preset 'y'"):
    finetuning.parse("a,,,y", {"a": finetuning.Setting("tv", 1, 1, 1, 1)})
