r"""Heartbeats of one electrode, normal or of an infarction (ECG200 of UCR).

    cd FOLDER  # with ecg200.npz
    python -m mico_jax.data.parts entries ecg200.npz --splits train test \
        --media biosignal={split}_x --field class_name={split}_y \
        --names class_name=classes \
        --captions "an electrocardiogram of an abnormal heartbeat" \
        "an electrocardiogram of a normal heartbeat" > ecg200.jsonl
    mico-jax pretrain --config perception/ecg200:FOLDER/ecg200.jsonl

A line names a beat of 96 samples: {"biosignal": "ecg200.npz:train_x[0]",
"class_name": "normal heartbeat", "caption": "an electrocardiogram of a normal
heartbeat", "split": "train"}. Beats are cut to that number of samples, so they
have no rate of their own; the one that is stated spreads them over the whole
frame, in tokens of a sample and a half. A head learns the class beside the
contrast with the caption. Behind a comma "validation": settings are chosen on a
fifth of the training samples. R. Olszewski, dissertation, Carnegie Mellon
University, 2001.
"""

import ml_collections

from mico_jax import config as c
from mico_jax.train import small_sets

SAMPLES = 96
FRAME = 1024  # samples of a frame, at 100 Hz


def get_config(
  argument: str = "ecg200.jsonl",
) -> ml_collections.ConfigDict:
  """Config for a manifest in the form of ecg200.

  Args:
    argument: "MANIFEST" or "MANIFEST,validation".
  """
  config = small_sets.make(
    "ecg200",
    small_sets.sources(
      argument,
      captions={"omni": "caption"},
      by="class_name",
      stated={
        "units": {"biosignal": "standardised"},
        "rates": {"biosignal": 100.0 * SAMPLES / FRAME},
        "channels": {"biosignal": "ECG"},
      },
    ),
    vision=c.VisionConfig(
      image_size=16,
      patch_size=8,
      width=64,
      depth=2,
      num_heads=4,
      mlp_dim=128,
    ),
    heads=("t", "b"),
    frame_table={"biosignal": 1},
    groups={"tb": {"omni": 1.0}},
    inputs={"biosignal": c.InputConfig(mode="standardised_jitter")},
    batch_size=32,
    steps=200,
    learning_rate=1e-3,
    learned={"classification": {"targets": {"b": {"fields": ("class_name",)}}}},
    evaluation={"label": "class_name"},
  )
  return c.to_config_dict(config)
