r"""Activities from a smart watch (BasicMotions of the UEA archive), by a head.

    cd FOLDER  # with imu_basicmotions.npz
    python -m mico_jax.data.parts entries imu_basicmotions.npz \
        --splits train test --media imu={split}_x \
        --field class_name={split}_y --names class_name=classes \
        --captions "a person standing still" "a person running" \
        "a person walking" "a person playing badminton" > imu_basicmotions.jsonl
    mico-jax pretrain --config perception/imu_basicmotions:FOLDER/imu_basicmotions.jsonl

A line of the manifest names an array of [6, 100], accelerometer and gyroscope
at 10 Hz: {"imu": "imu_basicmotions.npz:train_x[0]", "class_name": "Walking",
"caption": "a person walking", "split": "train"}. A head learns the class beside
the contrast with the caption, so that both answers can be compared. Behind a
comma "validation": settings are chosen on a fifth of the training samples.
"""  # noqa: E501

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets


def get_config(
  argument: str = "imu_basicmotions.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of imu_basicmotions.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  config = small_sets.make(
    "imu_basicmotions",
    small_sets.sources(
      argument,
      captions={"omni": "caption"},
      by="class_name",
      stated={"units": {"imu": "m/s2,rad/s"}, "rates": {"imu": 10.0}},
    ),
    vision=c.VisionConfig(
      image_size=16,
      patch_size=8,
      width=64,
      depth=2,
      num_heads=4,
      mlp_dim=128,
    ),
    heads=("t", "m"),
    frame_table={"imu": 1},
    groups={"tm": {"omni": 1.0}},
    inputs={"imu": c.InputConfig(mode="jitter")},
    batch_size=32,
    steps=200,
    learning_rate=1e-3,
    learned={"classification": {"targets": {"m": {"fields": ("class_name",)}}}},
    evaluation={"label": "class_name"},
  )
  return c.to_config_dict(config)
