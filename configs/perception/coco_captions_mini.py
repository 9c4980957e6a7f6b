"""A hundred photos with five human captions each (of MS COCO).

    mico-jax pretrain --config perception/coco_captions_mini:PATH/coco_captions_mini/manifest.jsonl

84 photos are too few to learn captions from: this shows real texts, galleries
with five captions a photo, and what overfitting looks like. Behind a comma
"validation": settings are chosen on a fifth of the training photos.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  argument: str = "coco_captions_mini/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of coco_captions_mini.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  config = small_sets.make(
    "coco_captions_mini",
    small_sets.sources(argument, captions={"vision": "captions"}, by=""),
    vision=small_sets.convnet(64, 48, (2, 2), patch_size=8),
    heads=("t", "v"),
    frame_table={"video": 1},
    groups={"ti": {"vision": 1.0}},
    inputs={"image": c.InputConfig(mode="plain")},
    augment={"random_resized_crop": {"scale": (0.35, 1.0)}, "flip": {}},
    batch_size=64,
    steps=200,
    evaluation={
      "suite": "retrieval",
      "label": "",
      "probe_source": "",
      "texts_per_item": 0,
    },
  )
  return c.to_config_dict(config)
