"""MiCo's pretraining at ViT-g/14, the paper's headline: 300,000 steps.

mico-jax pretrain --config mico_g14:ROOT
mico-jax plan --config mico_g14:@v5p:4x4x4 --topology v5p:4x4x4
"""

import dataclasses

import ml_collections

from mico_jax import config as c
from mico_jax.models.presets import PRESETS
from mico_jax.plan.choice import Choice, chosen, split_argument

# By arithmetic; `mico-jax plan` checks it. 1.16 B parameters
# with gradients and Adam take 17 GiB, more than a v5e has, so they are split.
# 128 is the largest power of two that divides the width of 1408: 256 devices
# are two copies of 128 pieces; over 256 nothing of the encoder would be split.
_COPIES = {"data": 2, "fsdp": 128}
CHOICES = {
  # 8 rows of a chip with four views: without remat they need about 53 GiB.
  "v5e:16x16": Choice(mesh=_COPIES),
  "v5p:4x4x4": Choice(),
  "v6e:16x16": Choice(mesh=_COPIES),
  # 256 rows with four views on each GPU, in parts.
  "h100:8": Choice(micro_batches=16),
  "h200:8": Choice(micro_batches=8),
}


def get_config(given: str = "") -> ml_collections.ConfigDict:
  """The recipe at size g.

  Args:
    given: "ROOT@DEVICES", see `mico_b16`.
  """
  root, devices = split_argument(given)
  config = c.load("mico_b16", arg=root)
  config = dataclasses.replace(
    config,
    name="mico_g14",
    model=dataclasses.replace(PRESETS["mico_g14"], dtype="bfloat16"),
    train=dataclasses.replace(config.train, steps=300_000),
  )
  return c.to_config_dict(chosen(config, CHOICES, devices))
