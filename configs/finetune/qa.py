"""Question answering: the answer is written after the question.

    mico-jax pretrain --config finetune/qa:msrvtt_qa,PATH/manifest.jsonl,vocab.txt --init CKPT

Samples are those that the published splits count: videos, or (TGIF) pairs.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train.finetuning import Setting, make, parse

TABLE = {
  "msrvtt_qa": Setting("tvas", 2e-5, 64, 4.5, 6_513, frames=8, test_frames=8),
  "activitynet_qa": Setting(
    "tva", 2e-5, 64, 10, 3_200, frames=8, test_frames=16, slices=2
  ),
  "msvd_qa": Setting("tv", 1e-5, 64, 10, 1_200, frames=8, test_frames=14),
  "tgif_frame": Setting("tv", 2e-5, 64, 10, 39_389, frames=4, test_frames=4),
  "vqav2": Setting("ti", 2e-5, 128, 20, 82_783, size=384),
  "music_avqa": Setting(
    "tva", 2e-5, 64, 20, 9_277, frames=8, test_frames=8, slices=2
  ),
}


def get_config(arg: str = "msrvtt_qa") -> ml_collections.ConfigDict:
  """Config of "SET,MANIFEST,VOCABULARY,PRESET"; see `finetuning.parse`."""
  name, setting, manifest, vocabulary, model = parse(arg, TABLE)
  config = make(
    name,
    setting,
    manifest,
    vocabulary,
    model,
    objectives={"question_answering": (setting.group,)},
    max_length={"default": 40, "question": 30, "answer": 10, "subtitle": 70},
    evaluation={"questions": 1_000, "groups": ()},
  )
  return c.to_config_dict(config)
