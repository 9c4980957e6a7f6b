"""Captioning, scored with CIDEr.

    mico-jax pretrain --config finetune/caption:coco,PATH/manifest.jsonl,vocab.txt --init CKPT

The published COCO row goes on with self-critical training (2.5e-6, batch 64,
2.5 epochs), which is not part of this package.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train.finetuning import Setting, make, parse

TABLE = {
  "coco": Setting("ti", 1e-5, 64, 5, 113_287, size=480),
  "clotho": Setting("ta", 2e-5, 64, 10, 3_839, slices=3),
  "audiocaps": Setting("ta", 2e-5, 64, 10, 49_838),
  "msrvtt": Setting("tvas", 2e-5, 128, 10, 6_513, frames=8, test_frames=8),
  "youcook2": Setting("tvas", 3e-5, 64, 30, 10_337, frames=8, test_frames=16),
  "valor32k": Setting("tva", 1e-5, 64, 10, 25_000, frames=8, test_frames=12),
}


def get_config(arg: str = "coco") -> ml_collections.ConfigDict:
  """Config of "SET,MANIFEST,VOCABULARY,PRESET"; see `finetuning.parse`."""
  name, setting, manifest, vocabulary, model = parse(arg, TABLE)
  config = make(
    name,
    setting,
    manifest,
    vocabulary,
    model,
    objectives={"captioning": (setting.group,)},
    max_length={"default": 40, "omni": 70, "subtitle": 70},
    evaluation={"captions": 1_000, "groups": ()},
  )
  return c.to_config_dict(config)
