"""Handwritten digits (a part of MNIST).

    mico-jax pretrain --config perception/mnist:PATH/mnist/manifest.jsonl

Behind a comma "validation": settings are chosen on a fifth of the training
digits, see `mico_jax.train.small_sets`.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  argument: str = "mnist/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of mnist.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  config = small_sets.make(
    "mnist",
    small_sets.sources(
      argument,
      captions={"vision": "caption"},
      # Its records name the array and the row alone.
      files={"image": "mnist.npz:{image}"},
    ),
    vision=small_sets.convnet(32, 48, (2, 2)),
    heads=("t", "v"),
    frame_table={"video": 1},
    groups={"ti": {"vision": 1.0}},
    inputs={"image": c.InputConfig(mode="shift")},
    batch_size=128,
    steps=350,
  )
  return c.to_config_dict(config)
