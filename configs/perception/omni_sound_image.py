"""Sounds and photos of the same four things, paired by class.

    mico-jax pretrain --config perception/omni_sound_image:PATH/omni_sound_image/manifest.jsonl

The 96 clips of the training part are those of esc10, the photos those of
caltech101. There is no part of its own to choose settings on: they are those of
these two sets.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  manifest: str = "omni_sound_image/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of omni_sound_image.

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
  # One word for what is seen and heard brings both to one place.
  one_word = {"vision": "class_name", "audio": "class_name"}
  config = small_sets.make(
    "omni_sound_image",
    # The manifest names files of its sibling folders.
    small_sets.sources(manifest, captions=one_word, root=".."),
    vision=small_sets.convnet(64, 64, (2, 2), patch_size=8),
    heads=("t", "v", "a"),
    frame_table={"video": 1, "audio": 4},
    groups={"ti": {"vision": 1.0}, "ta": {"audio": 1.0}},
    inputs={
      "image": c.InputConfig(mode="plain"),
      "audio": c.InputConfig(frames=4, mode="speed_augment"),
    },
    augment={"random_resized_crop": {"scale": (0.35, 1.0)}, "flip": {}},
    audio=c.AudioConfig(hop_ms=20.0, window_ms=40.0),
    batch_size=48,
    steps=300,
    evaluation={
      "suite": "classification,nearest,item_pairs",
      "item_pairs": ("a:i", "i:a"),
    },
  )
  return c.to_config_dict(config)
