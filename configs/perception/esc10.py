"""Environmental sounds with one fixed caption per class (ESC-10).

    mico-jax pretrain --config perception/esc10:PATH/esc10/manifest.jsonl

Behind a comma "validation": settings are chosen on fold 3, trained on folds 1
and 2. With 240 clips to learn from, augmentation matters most.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  argument: str = "esc10/manifest.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of esc10.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  config = small_sets.make(
    "esc10",
    small_sets.sources(
      argument,
      captions={"audio": "caption"},
      held=({"fold": (1, 2)}, {"fold": 3}),
    ),
    vision=small_sets.convnet(64, 64, (2, 2), patch_size=8),
    heads=("t", "a"),
    frame_table={"audio": 4},
    groups={"ta": {"audio": 1.0}},
    inputs={"audio": c.InputConfig(frames=4, mode="plain")},
    augment={**small_sets.SOUNDS, "speed": {"change": 0.15}},
    # Five seconds in four slices of 64 frames.
    audio=c.AudioConfig(hop_ms=20.0, window_ms=40.0),
    batch_size=48,
    steps=700,
    learned={
      "classification": {
        "targets": {"a": {"fields": ("label",)}},
        "label_smoothing": 0.1,
      }
    },
  )
  return c.to_config_dict(config)
