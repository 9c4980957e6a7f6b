"""MiCo's pretraining at ViT-g/14, the paper's headline: 300,000 steps.

mico-jax pretrain --config mico_g14:ROOT
mico-jax plan --config mico_g14:@v5p:4x4x4 --topology v5p:4x4x4
"""

import dataclasses

import ml_collections

from mico_jax import config as c
from mico_jax.models.presets import PRESETS
from mico_jax.parallel.choice import GPUS, Choice, chosen, split_argument

# Parameters, gradients and Adam lie split over sixteen TPU devices each, or all
# GPUs. Attention is kept from the forward pass, the rest is computed again:
# keeping more costs more in copies than it saves in products. Planned, see
# mico_jax/docs/plans.md.
CHOICES = {
  "v5e:16x16": Choice(remat="attention"),
  "v5p:4x4x4": Choice(remat="attention"),
  "v6e:16x16": Choice(remat="attention"),
  # 256 rows with four views on each GPU, in few parts.
  "h100:8": Choice(mesh=GPUS, remat="attention", micro_batches=4),
  "h200:8": Choice(mesh=GPUS, remat="attention", micro_batches=2),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """The recipe at size g.

  Args:
    argument: "ROOT@DEVICES", see `mico_b16`.
  """
  root, devices = split_argument(argument)
  config = c.load("mico_b16", arg=root)
  config = dataclasses.replace(
    config,
    name="mico_g14",
    model=dataclasses.replace(PRESETS["mico_g14"], dtype="bfloat16"),
    train=dataclasses.replace(config.train, steps=300_000),
  )
  return c.to_config_dict(chosen(config, CHOICES, devices))
