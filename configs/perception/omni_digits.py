"""Spoken and handwritten digits: image + audio + text, paired by class.

    mico-jax pretrain --config perception/omni_digits:PATH/omni_digits/manifest.jsonl

Evaluated on the test records with `pair` = 0: sound against picture (right
when the digit is the same), and both against their captions. Its recordings
and pictures are those of spoken_digits and mnist, and so are the settings.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  manifest: str = "omni_digits/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of omni_digits.

  Args:
    manifest: path of manifest.jsonl.

  Raises:
    ConfigError: for anything behind a comma.
  """
  if "," in manifest:
    raise c.ConfigError(
      f"{manifest!r}: expected the path of a manifest; this set has no part of "
      "its own to choose settings on."
    )
  data = small_sets.sources(
    manifest,
    captions={
      "vision": "image_caption",
      "audio": "audio_caption",
      # What a picture and a sound have in common: the digit's name.
      "omni": "class_name",
    },
    root="..",  # the manifest names files of its sibling folders
    test={"pair": 0},
  )
  config = small_sets.make(
    "omni_digits",
    data,
    vision=small_sets.convnet(32, 48, (2, 2)),
    heads=("t", "v", "a"),
    frame_table={"video": 1, "audio": 2},
    groups={
      "ti": {"vision": 0.25, "omni": 0.75},
      "ta": {"audio": 0.25, "omni": 0.75},
    },
    inputs={
      "image": c.InputConfig(mode="shift"),
      "audio": c.InputConfig(frames=2, mode="speed_augment"),
    },
    batch_size=128,
    steps=400,
    evaluation={
      "suite": "retrieval",
      "groups": ("i", "a"),
      "item_pairs": ("a:i", "i:a"),
    },
  )
  return c.to_config_dict(config)
