"""Small photos of ten classes (a part of CIFAR-10).

    mico-jax pretrain --config perception/cifar10:PATH/cifar10/manifest.jsonl

Behind a comma "validation": settings are chosen on a fifth of the training
photos, see `mico_jax.train.small_sets`.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  argument: str = "cifar10/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of cifar10.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  config = small_sets.make(
    "cifar10",
    small_sets.sources(argument, captions={"vision": "caption"}),
    vision=small_sets.convnet(32, 64, (2, 2)),
    heads=("t", "v"),
    frame_table={"video": 1},
    groups={"ti": {"vision": 1.0}},
    inputs={"image": c.InputConfig(mode="plain")},
    augment={"random_resized_crop": {"scale": (0.5, 1.0)}, "flip": {}},
    batch_size=128,
    steps=300,
  )
  return c.to_config_dict(config)
