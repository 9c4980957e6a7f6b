"""Retrieval: contrastive and matching, the 50 best re-ranked by matching.

mico-jax pretrain --config finetune/retrieval:msrvtt,PATH/manifest.jsonl,vocab.txt --init CKPT
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train.finetuning import Setting, make, parse

TABLE = {
  "coco": Setting("ti", 1e-5, 256, 5, 113_287, size=384),
  "flickr": Setting("ti", 1e-5, 256, 5, 29_000, size=384),
  "clotho": Setting("ta", 2e-5, 64, 10, 3_839, slices=3),
  "audiocaps": Setting("ta", 2e-5, 64, 10, 49_291),
  "msrvtt": Setting("tvas", 2e-5, 64, 3.6, 9_000, frames=8, test_frames=16),
  "youcook2": Setting("tvas", 3e-5, 64, 30, 10_337, frames=8, test_frames=16),
  "valor32k": Setting("tva", 2e-5, 64, 10, 25_000, frames=8, test_frames=8),
  "vatex": Setting("tvas", 2e-5, 64, 2.5, 25_991, frames=8, test_frames=16),
  "didemo": Setting(
    "tva", 2e-5, 64, 40, 8_394, frames=8, test_frames=32, slices=2
  ),
  "activitynet": Setting(
    "tva", 2e-5, 64, 20, 10_009, frames=8, test_frames=32, slices=2
  ),
}
PARAGRAPHS = ("didemo", "activitynet")  # queries of several sentences


def get_config(arg: str = "msrvtt") -> ml_collections.ConfigDict:
  """Config of "SET,MANIFEST,VOCABULARY,PRESET"; see `finetuning.parse`."""
  name, setting, manifest, vocabulary, model = parse(arg, TABLE)
  length = 70 if name in PARAGRAPHS else 40
  config = make(
    name,
    setting,
    manifest,
    vocabulary,
    model,
    objectives={
      "contrastive": (setting.group,),
      "matching": (setting.group,),
    },
    max_length={"default": length, "omni": 70, "subtitle": 70},
    evaluation={"rerank": 50, "texts_per_item": 0},
  )
  return c.to_config_dict(config)
